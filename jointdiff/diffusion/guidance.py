"""Guidance: a denoiser of VIS alone, led by ground data that its network never sees.

    p(x | VIS, ground) ∝ p(x | VIS) p(ground | x),        true where their noises are independent (METHOD section 7)

A guidance is itself a denoiser: a posterior, and a residual (x_t, σ) → D′ − μ about it. Samplers never know of data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as default

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.sampler import column
from jointdiff.diffusion.symmetry import Symmetry
from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import (
    Conditional,
    GaussianPosterior,
    apply,
    field,
    solve,
    solve_lower,
    spectrum,
)
from jointdiff.linear import conjugate_gradient
from jointdiff.scene import Grid, Observation


@dataclass
class Convergence:
    """How well the linear systems of all calls were solved, one for every sample and σ.

    errors: of each (B,), rms in posterior standard deviations. failed: those left above the tolerance, for which the
    Gaussian covariance stood in for the network's.
    """

    errors: list[Tensor] = default(default_factory=list)
    failed: list[Tensor] = default(default_factory=list)

    @property
    def converged(self) -> bool:
        """Whether the network's covariance was used throughout."""
        return not any(bool(failed.any()) for failed in self.failed)


@dataclass(frozen=True)
class Guess:
    """What is known of a sky at one x_t without the data that lead it.

    prior: the Gaussian p(x | x_t, what is known). denoised: D (B, C, H, W). misfit: y − A D (B, h, w) of each
    observation that leads. widening: w → (C − S) w, or None where D is that Gaussian's mean.
    """

    prior: Conditional
    denoised: Tensor
    misfit: list[Tensor]
    widening: Callable[[Tensor], Tensor | None]


def divided(observations: Sequence[Observation], label: str = "scene") -> tuple[list[Observation], list[Observation]]:
    """What was seen of VIS, and of the ground's bands. Raises InputError, naming the field, where either is nothing."""
    present = [o for o in observations if bool(o.present.all())]
    parts = [o for o in present if o.band.name == "VIS"], [o for o in present if o.band.name != "VIS"]
    for name, seen in zip(("VIS", "the ground"), parts, strict=True):
        if not seen:
            raise InputError(f"{label}: no observation of {name}, as mode factorized needs: take mode amortized")
    return parts


class Factorized:
    """D′ = E[x | x_t, VIS, ground] by moment matching: exact wherever p(x | x_t, VIS) is Gaussian.

        D′ = D + δ,   (I + C Aᵀ N⁻¹ A) δ = C Aᵀ N⁻¹ (y − A D),
        C = Cov[x | x_t, VIS] = σ² ∂D/∂x_t = S + σ² ∂(D − μ)/∂x_t

    (Boys et al. 2023, arXiv 2310.06721, in the form that leaves masked pixels out; C is Tweedie's, Efron 2011, JASA
    106, 1602.) Conjugate gradients solve it for C = S, and from there GMRES for C: C w is a vector–Jacobian product,
    and a network's C is not symmetric. Where GMRES fails, S stands in for C.

    vis: the Gaussian posterior of VIS alone, or of what else the network sees; residual: D − μ about it, of (x_t, σ,
    symmetries), differentiable in x_t.
    posterior: the Gaussian posterior of all data, of the same amplitude; the sampler integrates about it. model,
    ground: the ground data.
    tolerance: error of δ, rms over all modes in posterior standard deviations; the few that the ground tells of may
    hold it all. steps: of GMRES, at most.
    """

    def __init__(
        self,
        residual: Callable[[Tensor, Tensor, Sequence[Symmetry]], Tensor],
        vis: GaussianPosterior,
        posterior: GaussianPosterior,
        model: ForwardModel,
        ground: Sequence[Observation],
        tolerance: float = 0.01,
        steps: int = 30,
    ):
        self.posterior, self.convergence = posterior, Convergence()
        self._residual, self.prior = residual, vis
        self.model, self.data = model, ground
        self._tolerance, self._steps = tolerance, steps

    @classmethod
    def of(
        cls, denoiser: Denoiser, observations: Sequence[Observation], grid: Grid, amplitude: Tensor | None = None
    ) -> "Factorized":
        """From a denoiser and observations of one sky (B = 1, or several images of the same weights); the amplitude
        is VIS's, where it is not given.

        All but the network is in double precision: bright sources leave float32 short of the tolerance.
        Raises InputError where VIS, or every other band, was not observed.
        """
        return cls.between(denoiser, *divided(observations), grid, amplitude)

    @classmethod
    def between(
        cls,
        denoiser: Denoiser,
        known: Sequence[Observation],
        led: Sequence[Observation],
        grid: Grid,
        amplitude: Tensor | None = None,
        tolerance: float = 0.01,
        steps: int = 30,
    ) -> "Factorized":
        """The denoiser sees what is ``known``; the likelihood of what has ``led`` does the rest.

        amplitude: (1,), where what is known does not tell it, because it is all masked. tolerance, steps: of GMRES.
        """
        conditioning = denoiser.condition(known, grid, amplitude)
        single, amplitude = conditioning.posterior.mean.dtype, conditioning.posterior.amplitude.double()
        known, led = ([o.to(torch.float64) for o in seen] for seen in (known, led))
        gamma = denoiser.prior.on(grid).double()

        def posterior(seen: Sequence[Observation]) -> GaussianPosterior:
            return GaussianPosterior(denoiser.forward_model(seen, grid), seen, gamma, amplitude)

        def residual(x_t: Tensor, sigma: Tensor, symmetries: Sequence[Symmetry]) -> Tensor:
            return denoiser.correction(x_t.to(single), sigma.to(single), conditioning, symmetries).double()

        prior, full = posterior(known), posterior([*known, *led])
        return cls(residual, prior, full, denoiser.forward_model(led, grid), led, tolerance, steps)

    def guess(self, x_t: Tensor, sigma: Tensor, symmetries: Sequence[Symmetry] = ()) -> Guess:
        """What is known without the data that lead: D, the force of those data on it, and C − S."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            correction = self._residual(x_t, sigma, symmetries)
        prior = self.prior.given(x_t.detach(), sigma)
        denoised = prior.mean + correction.detach()
        misfit = [o.image - seen for o, seen in zip(self.data, self.model(denoised), strict=True)]

        def widening(w: Tensor) -> Tensor | None:
            if not correction.requires_grad:
                return None
            (product,) = torch.autograd.grad(correction, x_t, w, retain_graph=True)
            return column(sigma.square()) * product

        return Guess(prior, denoised, misfit, widening)

    def force(self, guess: Guess) -> Tensor:
        """Aᵀ N⁻¹ (y − A D)."""
        return self.model.adjoint([o.weigh(left) for o, left in zip(self.data, guess.misfit, strict=True)])

    def residual(self, x_t: Tensor, sigma: Tensor, symmetries: Sequence[Symmetry] = ()) -> Tensor:
        """D′ − μ (B, C, H, W) about ``posterior``, for x_t (B, C, H, W) at σ (B,), or (1,) for samples of one sky."""
        guess, full = self.guess(x_t, sigma, symmetries), self.posterior.given(x_t.detach(), sigma)
        prior, force = guess.prior, self.force(guess)
        gaussian = self._gaussian_shift(force, prior, full)
        shift, error = self._shift(guess.widening, force, prior, full, gaussian)
        failed = ~(error <= self._tolerance)  # NaN too
        shift = torch.where(failed.view(-1, 1, 1, 1), gaussian, shift)
        self.convergence.errors.append(error)
        self.convergence.failed.append(failed)
        return guess.denoised + shift - full.mean

    def _precision(self, x: Tensor) -> Tensor:
        """Aᵀ N⁻¹ A x of the ground data."""
        return self.model.normal(x, self.data)

    def _precise(self, x: Tensor, prior: Conditional) -> Tensor:
        """S⁻¹ x, of VIS and x_t."""
        return field(apply(prior.lower, apply(prior.lower.mT, spectrum(x))), self.posterior.grid)

    def _shift(
        self,
        widening: Callable[[Tensor], Tensor | None],
        force: Tensor,
        prior: Conditional,
        full: Conditional,
        start: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """δ and its error (B,): GMRES for q = Lᵀ (δ − start), L Lᵀ the precision of all data and x_t.

        Multiplied by L⁻¹ S⁻¹, the system is the identity for even noise and C = S, and residuals are errors of q.
        S⁻¹ S is never formed, for it would cost half of the digits.
        """

        def scaled(gaussian: Tensor, vector: Tensor) -> Tensor:  # L⁻¹ (gaussian + S⁻¹ (C − S) vector)
            wider = widening(vector)
            if wider is not None:
                gaussian = gaussian + self._precise(wider, prior)
            return field(solve_lower(full.lower, spectrum(gaussian)), self.posterior.grid)

        def operator(q: Tensor) -> Tensor:
            shift = full.colour(q)
            seen = self._precision(shift)
            return scaled(self._precise(shift, prior) + seen, seen)

        left = force - self._precision(start)
        rhs = scaled(left - self._precise(start, prior), left)
        q, error = gmres(operator, rhs, self._tolerance, self._steps)
        return start + full.colour(q), error

    def _gaussian_shift(self, force: Tensor, prior: Conditional, full: Conditional) -> Tensor:
        """δ for C = S: (S⁻¹ + Aᵀ N⁻¹ A) δ = Aᵀ N⁻¹ (y − A D), symmetric and positive."""

        def operator(x: Tensor) -> Tensor:
            return self._precise(x, prior) + self._precision(x)

        def precondition(x: Tensor) -> Tensor:
            return field(solve(full.lower, spectrum(x)), self.posterior.grid)

        return conjugate_gradient(operator, precondition, force, precondition(force), 0.1 * self._tolerance, 200)


def gmres(operator: Callable[[Tensor], Tensor], rhs: Tensor, tolerance: float, steps: int) -> tuple[Tensor, Tensor]:
    """Solves operator(x) = rhs for a batch (B, …) of any linear systems: x, and the rms of each residual (B,).

    Saad & Schultz (1986, SIAM J. Sci. Stat. Comput. 7, 856), without restarts. Each system stops when its own rms is
    below ``tolerance``, whatever the others do. The residual is that of x itself, taken anew at the end.
    """
    batch, size = len(rhs), rhs[0].numel()
    flat = rhs.flatten(1)
    norm = flat.norm(dim=1, keepdim=True)
    basis, columns = [flat / norm.clamp(min=torch.finfo(rhs.dtype).tiny)], list[Tensor]()
    weights = rhs.new_zeros(batch, 0)
    error = norm.squeeze(1)
    while len(columns) < steps and bool((error > tolerance * size**0.5).any()):
        image = operator(basis[-1].view_as(rhs)).flatten(1)
        image = torch.where(image.isfinite().all(1, keepdim=True), image, 0.0)  # that system fails, the others go on
        entries = rhs.new_zeros(batch, steps + 1)
        for i, vector in enumerate(basis):  # modified Gram–Schmidt
            entries[:, i] = (vector * image).sum(1)
            image = image - entries[:, i : i + 1] * vector
        length = image.norm(dim=1, keepdim=True)
        entries[:, len(basis)] = length.squeeze(1)
        basis.append(image / length.clamp(min=torch.finfo(rhs.dtype).tiny))
        columns.append(entries)
        hessenberg = torch.stack(columns, -1)[:, : len(basis)].double()
        target = torch.zeros_like(hessenberg[:, :, 0])
        target[:, :1] = norm.double()
        found = (torch.linalg.pinv(hessenberg) @ target.unsqueeze(-1)).squeeze(-1)
        left = ((hessenberg @ found.unsqueeze(-1)).squeeze(-1) - target).norm(dim=1).to(rhs)
        done = error <= tolerance * size**0.5
        padded = torch.nn.functional.pad(weights, (0, 1))
        weights, error = torch.where(done.unsqueeze(1), padded, found.to(rhs)), torch.where(done, error, left)
    x = sum((weights[:, i : i + 1] * basis[i] for i in range(weights.shape[1])), torch.zeros_like(flat)).view_as(rhs)
    return x, (rhs - operator(x)).flatten(1).norm(dim=1) / size**0.5
