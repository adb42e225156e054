"""Closed-form p(scene | observations) under a Gaussian-process prior, frequency by frequency.

The prior on a scene of amplitude a is a stationary Gaussian process with the band covariance a² Γ(|k|) at each
frequency of the orthonormal DFT (METHOD section 5):

    P(k) = Γ(k)⁻¹/a² + Σ_o |J_o|² |P̂_o/T̂|² w̄_o c_o c_oᵀ (+ I/σ²),    S = P⁻¹ = L⁻ᵀ L⁻¹,    μ = S (Aᵀ N⁻¹ y (+ x_t/σ²))

with w̄ the inverse variance per scene pixel, over the noise's own spectrum ρ(k) where it is correlated. This is the
joint Wiener filter (Wiener 1949); it samples exactly, and it preconditions the denoiser. A *spectrum* here is
(B, H, W//2 + 1, C), complex; a *matrix field* has C, C real behind.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from jointdiff.forward import ForwardModel, half_plane_weights, wavenumber
from jointdiff.linear import conjugate_gradient
from jointdiff.scene import Grid, Observation

EVIDENCE_MIN_TRANSFER = 0.1
"""Of an observation, only frequencies that its PSF passes better than this vote on the amplitude."""

REGULARISATION = 1e-4
"""Γ += REGULARISATION tr(Γ)/C I, so that no combination of bands is taken as known a priori."""

EVIDENCE_MAX_WAVENUMBER = 2.5
"""Frequencies (cycles/arcsec) that vote on the amplitude; beyond them the sky is noise in every band."""


def spectrum(field: Tensor) -> Tensor:
    """Orthonormal DFT of (B, C, H, W) as a spectrum (B, H, W//2 + 1, C)."""
    return torch.fft.rfft2(field, norm="ortho").movedim(1, -1)


def field(spectrum: Tensor, grid: Grid) -> Tensor:
    """The real field (B, C, H, W) of a spectrum."""
    return torch.fft.irfft2(spectrum.movedim(-1, 1), s=grid.shape, norm="ortho")


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.contiguous())


def apply(matrices: Tensor, vectors: Tensor) -> Tensor:
    """A matrix field (…, C, C) real times a spectrum (…, C) complex."""
    return _complex(matrices @ torch.view_as_real(vectors))


def solve_lower(lower: Tensor, vectors: Tensor, transpose: bool = False) -> Tensor:
    """L⁻¹ v, or L⁻ᵀ v, for a lower-triangular matrix field and a spectrum."""
    matrix = lower.mT if transpose else lower
    return _complex(torch.linalg.solve_triangular(matrix, torch.view_as_real(vectors), upper=transpose))


def solve(lower: Tensor, vectors: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ v for a Cholesky factor and a spectrum."""
    return _complex(torch.cholesky_solve(torch.view_as_real(vectors), lower))


@dataclass(frozen=True)
class GaussianPrior:
    """Γ against physical frequency: wavenumbers (K,) in cycles/arcsec, covariances (K, C, C) for unit amplitude."""

    wavenumbers: Tensor
    covariances: Tensor

    def on(self, grid: Grid) -> Tensor:
        """Γ (H, W//2 + 1, C, C) on a grid, linear in |k|, which keeps it positive; regularised."""
        k = torch.as_tensor(wavenumber(grid)).to(self.wavenumbers)
        upper = torch.searchsorted(self.wavenumbers, k).clamp(1, len(self.wavenumbers) - 1)
        left, right = self.wavenumbers[upper - 1], self.wavenumbers[upper]
        t = ((k - left) / (right - left)).clamp(0, 1)[..., None, None]
        gamma = (1 - t) * self.covariances[upper - 1] + t * self.covariances[upper]
        bands = gamma.shape[-1]
        floor = REGULARISATION * gamma.diagonal(dim1=-2, dim2=-1).mean(-1)
        return gamma + floor[..., None, None] * torch.eye(bands).to(gamma)


def fit_prior(scenes: Tensor, grid: Grid, bins: int = 24, iterations: int = 4) -> GaussianPrior:
    """Measures Γ from scenes (N, C, H, W), each divided by its amplitude; empty ones are left out.

    The amplitude of a scene is the one that Γ itself gives it, √⟨x̂ᴴ Γ⁻¹ x̂⟩ over the frequencies that vote on the
    evidence, so the two are found in turn (Tyler 1987, Ann. Statist. 15, 234). Dividing by the rms instead lets
    extended sources rule at low frequencies, and leaves Γ two to four times too small at high ones.
    """
    scenes = scenes[scenes.square().mean((1, 2, 3)) > 0]
    k = torch.as_tensor(wavenumber(grid)).to(scenes)
    weights = torch.as_tensor(half_plane_weights(grid)).to(scenes).expand_as(k)
    rings = _rings(k, bins)
    x = spectrum(scenes)
    amplitude = scenes.square().mean((1, 2, 3)).sqrt()
    shares = [weights[ring] / weights[ring].sum() for ring in rings]
    centres = torch.stack([(w * k[ring]).sum() for w, ring in zip(shares, rings, strict=True)])
    for _ in range(iterations):
        y = x / amplitude.view(-1, 1, 1, 1)
        power = torch.einsum("nhwi,nhwj->hwij", y, y.conj()).real / len(y)
        means = [(w[:, None, None] * power[ring]).sum(0) for w, ring in zip(shares, rings, strict=True)]
        prior = GaussianPrior(centres, torch.stack(means))
        amplitude = scene_amplitude(scenes, prior.on(grid), grid)
    return prior


def scene_amplitude(scenes: Tensor, gamma: Tensor, grid: Grid) -> Tensor:
    """The amplitude (N,) of known scenes: √⟨x̂ᴴ Γ⁻¹ x̂⟩ per mode, over the frequencies that vote on the evidence."""
    vote, weights = _voters(grid, scenes)
    lower = torch.linalg.cholesky(gamma[vote])
    distance = solve_lower(lower.expand(len(scenes), *lower.shape), spectrum(scenes)[:, vote]).abs().square().mean(-1)
    return ((weights * distance).sum(-1) / weights.sum()).sqrt()


def _voters(grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
    """Which frequencies (H, W//2 + 1) vote on the amplitude, and how often each of them stands in the full plane."""
    vote = torch.as_tensor(wavenumber(grid) <= EVIDENCE_MAX_WAVENUMBER, device=like.device)
    return vote, torch.as_tensor(half_plane_weights(grid)).to(like).expand(vote.shape)[vote]


def _rings(k: Tensor, bins: int) -> list[Tensor]:
    """Masks of the rings in |k| that hold a frequency, evenly spaced in log |k|; the first is k = 0 alone."""
    low, high = math.log10(float(k[k > 0].min())), math.log10(float(k.max()))
    edges = torch.cat([k.new_zeros(1), torch.logspace(low - 1e-3, high + 1e-3, bins).to(k)])
    rings = [(k >= inner) & (k < outer) for inner, outer in itertools.pairwise(edges)]
    return [ring for ring in rings if ring.any()]


class Evidence:
    """The log evidence (B,) of amplitudes (B,), up to a constant (MacKay 1992).

    gamma: Γ (H, W//2 + 1, C, C). floor: (B,), 0.2 times the noise per scene pixel of the most sensitive observation.
    What an instrument hardly passes does not vote: the edge of the data, or an error of the PSF, has more power there
    than any sky can have. Data on a fraction f of the torus hold f of its signal power and f of its noise power, but
    the stationary precision would pass f² of the signal: vector / √f and precision / f agree (as in power spectra of
    cut skies: Feldman, Kaiser & Peacock 1994, ApJ 426, 23; Hivon et al. 2002, ApJ 567, 2).
    """

    def __init__(self, model: ForwardModel, observations: Sequence[Observation], gamma: Tensor):
        model = model.passing(EVIDENCE_MIN_TRANSFER)
        even = [evenly_weighed(o) for o in observations]
        roots = [_seen_fraction(o, model.grid).sqrt() for o in observations]
        vector = spectrum(model.adjoint([o.weigh(o.image) / root for o, root in zip(even, roots, strict=True)]))
        seen = [replace(o, ivar=o.ivar / root.square()) for o, root in zip(even, roots, strict=True)]
        precision = model.precision(seen)
        self.floor = 0.2 / precision[:, 0, 0].diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=1e-12).sqrt()
        vote, self._weights = _voters(model.grid, gamma)
        self._precision, self._vector = precision[:, vote], vector[:, vote]
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(gamma[vote]))

    def __call__(self, amplitude: Tensor) -> Tensor:
        a, bands = amplitude.view(-1, 1), self._inverse.shape[-1]
        lower = torch.linalg.cholesky(self._precision + self._inverse / a.square()[..., None, None])
        logdet = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 2 * bands * a.log()
        fit = solve_lower(lower, self._vector).abs().square().sum(-1)
        return 0.5 * (self._weights * (fit - logdet)).sum(-1)


def likeliest_amplitude(
    evidence: Callable[[Tensor], Tensor], floor: Tensor, points: int = 10, decades: float = 4.0
) -> Tensor:
    """The amplitude (B,), at least ``floor`` (B,), that maximises an evidence: a log grid, then two parabolas."""

    def at(log_a: Tensor) -> Tensor:  # scalar or (B,) → (B,)
        return evidence(floor * log_a.exp())

    log_amplitudes = torch.linspace(0, decades * math.log(10), points).to(floor)
    grid_step = log_amplitudes[1]
    best = torch.stack([at(a) for a in log_amplitudes]).argmax(0)
    log_a = log_amplitudes[best]
    for step in (grid_step, grid_step / 4):
        left, middle, right = (at(log_a + d * step) for d in (-1, 0, 1))
        bend = 2 * middle - left - right
        shift = torch.where(bend > 0, 0.5 * (right - left) / bend.clamp(min=1e-30), right.sign())
        log_a = (log_a + step * shift.clamp(-1, 1)).clamp(min=0)
    return floor * log_a.exp()


def evidence_amplitude(model: ForwardModel, observations: Sequence[Observation], gamma: Tensor) -> Tensor:
    """The amplitude (B,) that maximises the Gaussian evidence. gamma: Γ (H, W//2 + 1, C, C)."""
    evidence = Evidence(model, observations, gamma)
    return likeliest_amplitude(evidence, evidence.floor)


def _seen_fraction(observation: Observation, grid: Grid) -> Tensor:
    """Share (B, 1, 1) of the grid's sky on which the observation has data; 1 where it has none."""
    pixel = abs(float(np.linalg.det(grid.footprint(observation.frame.grid)))) / (grid.shape[0] * grid.shape[1])
    share = pixel * (observation.ivar > 0).to(observation.ivar).sum((-2, -1), keepdim=True)
    return torch.where(share > 0, share, 1.0)


class Conditional:
    """The Gaussian p(x | x_t, y): its mean, and its covariance S through the Cholesky factor L of P = S⁻¹."""

    def __init__(self, mean: Tensor, lower: Tensor, grid: Grid):
        self.mean, self.lower, self._grid = mean, lower, grid

    def colour(self, white: Tensor) -> Tensor:
        """S^{1/2} white, (B, C, H, W): white noise to a draw of covariance S."""
        return field(solve_lower(self.lower, spectrum(white), transpose=True), self._grid)

    def whiten(self, residual: Tensor) -> Tensor:
        """Lᵀ residual, (B, C, H, W): the inverse of ``colour``."""
        return field(apply(self.lower.mT, spectrum(residual)), self._grid)


def evenly_weighed(observation: Observation) -> Observation:
    """An observation whose seen pixels all have their mean inverse variance.

    With these weights data and stationary precision agree. Under its own, a bright source, whose Poisson noise gives it
    little weight, would look as faint to the evidence and to the starting point of the mean.
    """
    ivar = observation.ivar
    seen = (ivar > 0).to(ivar)
    mean = ivar.sum((-2, -1), keepdim=True) / seen.sum((-2, -1), keepdim=True).clamp(min=1)
    return replace(observation, ivar=mean * seen)


class GaussianPosterior:
    """p(scene | observations) for a Gaussian prior, and p(scene | x_t, observations) at any noise level.

    model, observations: what was seen. gamma: Γ (H, W//2 + 1, C, C) on the model's grid.
    amplitude: (B,), or None for the maximum of the evidence. start: a first guess (B, C, H, W) of the mean.
    weights: of each observation in the stationary precision, as ForwardModel.precision has them.
    """

    def __init__(
        self,
        model: ForwardModel,
        observations: Sequence[Observation],
        gamma: Tensor,
        amplitude: Tensor | None = None,
        tolerance: float = 0.03,
        max_steps: int = 100,
        start: Tensor | None = None,
        weights: Sequence[Tensor] | None = None,
    ):
        self.grid = model.grid
        self.weighted_data = model.adjoint([o.weigh(o.image) for o in observations])  # Aᵀ N⁻¹ y
        self.data_precision = model.precision(observations, weights)
        self.model, self.observations = model, observations
        self._even = [evenly_weighed(o) for o in observations]
        even_data = model.adjoint([o.weigh(o.image) for o in self._even])
        if amplitude is None:
            amplitude = evidence_amplitude(model, observations, gamma)
        self.amplitude = amplitude
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gamma))
        self.prior_precision = inverse / amplitude.square().view(-1, 1, 1, 1, 1)
        self.precision = self.prior_precision + self.data_precision
        self.lower = torch.linalg.cholesky(self.precision)
        self.covariance = torch.cholesky_inverse(self.lower)  # S: a product is several times faster than a solution

        start = self._covariance(even_data) if start is None else start
        self._stop = tolerance, max_steps
        self.mean = self._solve(self.weighted_data, start)
        self._precision_mean = apply(self.precision, spectrum(self.mean))  # P̄ μ₀

    def _operator(self, x: Tensor) -> Tensor:
        """The exact precision, Aᵀ N⁻¹ A x + Γ⁻¹ x / a²."""
        return self.model.normal(x, self.observations) + field(apply(self.prior_precision, spectrum(x)), self.grid)

    def solve(self, rhs: Tensor, tolerance: float) -> Tensor:
        """P⁻¹ rhs of the exact precision, (S, C, H, W) for one scene (B = 1), each to ``tolerance`` of its norm."""
        norm = (rhs * self._covariance(rhs)).flatten(1).mean(1).clamp(min=1e-30).sqrt().view(-1, 1, 1, 1)
        unit = rhs / norm
        start = self._covariance(unit)
        return norm * conjugate_gradient(self._operator, self._covariance, unit, start, tolerance, self._stop[1])

    def answer(self, rhs: Tensor, error: float) -> Tensor:
        """P⁻¹ rhs likewise, each to ``error`` posterior standard deviations along any one direction."""
        start, tolerance = self._covariance(rhs), error / rhs[0].numel() ** 0.5
        return conjugate_gradient(self._operator, self._covariance, rhs, start, tolerance, self._stop[1])

    def _solve(self, rhs: Tensor, start: Tensor, stop: tuple[float, int] | None = None) -> Tensor:
        return conjugate_gradient(self._operator, self._covariance, rhs, start, *(stop or self._stop))

    def _covariance(self, x: Tensor) -> Tensor:
        return field(apply(self.covariance, spectrum(x)), self.grid)

    def marginal(self) -> Conditional:
        """p(x | y), no x_t."""
        return Conditional(self.mean, self.lower, self.grid)

    def given(self, x_t: Tensor, sigma: Tensor) -> Conditional:
        """p(x | x_t, y) for x_t = x + σ n; x_t (B, C, H, W), σ (B,). One scene serves any number of x_t."""
        inverse = sigma.square().reciprocal().view(-1, 1, 1, 1)
        identity = torch.eye(self.precision.shape[-1]).to(self.precision)
        lower = torch.linalg.cholesky(self.precision + inverse.unsqueeze(-1) * identity)
        mean = solve(lower, self._precision_mean + inverse * spectrum(x_t))
        return Conditional(field(mean, self.grid), lower, self.grid)

    def perturbed(self, scene: Tensor, data: Sequence[Tensor], stop: tuple[float, int] | None = None) -> Tensor:
        """Exact posterior samples (S, C, H, W), for one scene (B = 1, or S images of it), whatever the masks.

        From white noise in the scene (S, C, H, W) and each image (S, h, w); stop: other tolerance and steps than μ₀'s.
        With ξ of covariance P, the solution of P x = Aᵀ N⁻¹ y + ξ is one (Papandreou & Yuille 2010, NIPS 23).
        """
        weighted = [o.weighed_noise(white) for o, white in zip(self.observations, data, strict=True)]
        prior = field(apply(torch.linalg.cholesky(self.prior_precision), spectrum(scene)), self.grid)
        xi = self.model.adjoint(weighted) + prior
        return self._solve(self.weighted_data + xi, self.mean + self._covariance(xi), stop)

    def residual(self, mean: Tensor) -> Tensor:
        """Aᵀ N⁻¹ y − P x (B, C, H, W) of the exact precision: zero at the exact mean."""
        return self.weighted_data - self._operator(mean)

    def error(self, mean: Tensor) -> Tensor:
        """How far (B,) an image is from the exact mean, rms in posterior standard deviations of the stationary S."""
        residual = self.residual(mean)
        return (residual * self._covariance(residual)).mean((1, 2, 3)).clamp(min=0).sqrt()

    @cached_property
    def coverage(self) -> Tensor:
        """A band's own precision (B, C, H, W) over its mean: 1 where data are as deep as on average, 0 where absent."""
        hits = self.model.coverage(self.observations)
        average = self.data_precision[:, 0, 0].diagonal(dim1=-2, dim2=-1).view(*hits.shape[:2], 1, 1)
        return hits / average.clamp(min=1e-12)

    @cached_property
    def footprint(self) -> Tensor:
        """Where each band was seen (B, C, H, W), blurred by its PSF: up to 1, however deep; 0 where it was not."""
        hits = self.model.coverage(self._even)
        return hits / hits.amax((-2, -1), keepdim=True).clamp(min=1e-12)

    @cached_property
    def sigma_range(self) -> tuple[Tensor, Tensor]:
        """(σ_min, σ_max), each (B,), in which a network can tell something of the posterior's modes.

        0.2 times the standard deviation below which modes hold a twentieth of the posterior variance, and 5 times the
        largest. Smaller modes than that are the prior's own: the solver draws them exactly in its last step.
        """
        variance = self.covariance.diagonal(dim1=-2, dim2=-1).flatten(1).sort(1).values
        share = variance.cumsum(1) / variance.sum(1, keepdim=True)
        low = variance.gather(1, (share < 0.05).sum(1, keepdim=True)).squeeze(1)
        return 0.2 * low.sqrt(), 5 * variance[:, -1].sqrt()

    @cached_property
    def modes(self) -> tuple[Tensor, Tensor]:
        """S₀ = U diag(s²) Uᵀ: s (B, H, W//2 + 1, C) and U (…, C, C). Used at sampling only.

        In float64, of L Lᵀ: a deep band beside one that a bright sky leaves open spans more than float32 resolves, and
        eigenvalues of P came out negative. Cholesky factors do not mind, for they do not mix the bands' scales.
        """
        lower = self.lower.double()
        values, vectors = torch.linalg.eigh(lower @ lower.mT)
        return values.rsqrt().to(self.lower), vectors.to(self.lower)
