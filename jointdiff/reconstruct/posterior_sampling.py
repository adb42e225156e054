"""The standard diffusion posterior samplers, with our own weights as their prior and our own forward model.

    dx = (x − D′)/σ dσ + noise,   D′ = D + C Aᵀ v,   C = Cov[x | x_t] = σ² ∂D/∂x_t        (Tweedie's; Efron 2011)

They differ in v, what they take the spread of x | x_t for:

    dps     v ∝ N⁻¹ (y − A D)                         none, with a step of its own (Chung et al. 2023, arXiv 2209.14687)
    pigdm   (N + r² A Aᵀ) v = y − A D                 r² I, r² = σ² u²/(σ² + u²) (Song et al. 2023, ICLR, ΠGDM)
    mmps    (N + A C Aᵀ) v = y − A D                  C itself (Rozet et al. 2024, arXiv 2405.13712)

The prior is the denoiser as it was trained with every observation missing or, ``-vis``, with VIS alone; then VIS is in
the network and not in y. The steps are ancestral (Ho et al. 2020, arXiv 2006.11239, in variance-exploding form).
"""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.guidance import Factorized, Guess, divided
from jointdiff.diffusion.sampler import REACH, column
from jointdiff.diffusion.symmetry import Symmetry
from jointdiff.gaussian import evidence_amplitude, field, solve, spectrum
from jointdiff.linear import conjugate_gradient
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, chunks
from jointdiff.scene import Grid, Observation

MOMENTS = (0.1, 10)
"""Of moment matching: the error of δ, in posterior standard deviations, and the steps of GMRES in which to reach it."""

BATCH = 4
"""Samples drawn at once: GMRES keeps some ten fields for each."""


class PosteriorSampling(Reconstructor):
    """Ancestral sampling of one of these approximations, from σ_max to the last σ of our own solver, then to 0.

    vis: whether the network sees VIS, or nothing. steps: noise levels, evenly spaced in log σ.
    """

    def __init__(self, denoiser: Denoiser, vis: bool = False, steps: int = 100):
        denoiser = copy(denoiser)  # the weights are the caller's, the precision is not: derivatives are of float32
        denoiser.network_dtype = None
        super().__init__(denoiser)
        self.vis, self.evaluations = vis, steps
        self.method = f"{self.method}-vis" if vis else self.method

    def check(self, observations: Sequence[Observation], label: str) -> None:
        if self.vis:
            divided(observations, label)

    @abstractmethod
    def led(self, guided: Factorized, x_t: Tensor, sigma: Tensor, rho: Tensor, seen: Sequence[Symmetry]) -> Tensor:
        """D′ (B, C, H, W); ρ = σ′²/σ², σ′ the next level. seen: the symmetry of each sample."""

    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        guided = self._guided(observations, grid)
        top, low = REACH * guided.prior.sigma_range[1], guided.posterior.sigma_range[0]
        levels = top * (low / top) ** torch.linspace(0, 1, self.evaluations).to(top).unsqueeze(1)
        shape = guided.prior.mean.shape[1:]
        samples = []
        for numbers in chunks(count, BATCH):
            seen = [Symmetry.numbered(number, grid, self.denoiser.network.stride) for number in numbers]
            draw = partial(stream.white, numbers, grid, guided.prior.mean, channels=shape[0])
            first, white = draw("prior"), draw("sky 0")
            marginal = guided.prior.marginal()
            x = marginal.mean + marginal.colour(first) + column(top) * white
            for step, (sigma, following) in enumerate(pairwise([*levels, torch.zeros_like(low)])):
                rho = column((following / sigma).square())
                led = self.led(guided, x, sigma, rho, seen)
                x = led + rho * (x - led) + (1 - rho).sqrt() * column(following) * draw(f"step {step}")
            samples.append(x)
        drawn = torch.cat(samples).to(observations[0].image.dtype)
        return Draws(drawn, drawn.mean(0), guided.convergence.converged)

    def _guided(self, observations: Sequence[Observation], grid: Grid) -> Factorized:
        """The prior and the data that lead it. A prior of nothing still has the amplitude that the data give."""
        if self.vis:
            return Factorized.between(self.denoiser, *divided(observations), grid, None, *MOMENTS)
        model = self.denoiser.forward_model(observations, grid)
        amplitude = evidence_amplitude(model, observations, self.denoiser.prior.on(grid))
        nothing = [replace(o, ivar=torch.zeros_like(o.ivar)) for o in observations]
        return Factorized.between(self.denoiser, nothing, observations, grid, amplitude, *MOMENTS)


def covariance(guided: Factorized, guess: Guess, w: Tensor) -> Tensor:
    """C w = S w + (C − S) w."""
    gaussian = field(solve(guess.prior.lower, spectrum(w)), guided.posterior.grid)
    wider = guess.widening(w)
    return gaussian if wider is None else gaussian + wider


class DPS(PosteriorSampling):
    """A step of its own against the gradient of the misfit, as if x | x_t had no width.

        x′ ← x′ − ζ/λ · σ²/2 · ∇ ‖N^{-1/2}(y − A D)‖² = x′ + ζ/λ · C Aᵀ N⁻¹ (y − A D)

    λ ≥ ‖C Aᵀ N⁻¹ A‖, from Γ, keeps the step stable at any noise level and brightness, for ζ below 2 if the network's
    C is no wider. Its authors divide by the norm of the misfit, with a constant tuned for every task: skies' signal to
    noise varies so much that no one constant is both stable and of use.
    """

    method = "dps"

    def __init__(self, denoiser: Denoiser, vis: bool = False, steps: int = 1000, zeta: float = 1.0):
        super().__init__(denoiser, vis, steps)
        self.zeta = zeta

    def led(self, guided: Factorized, x_t: Tensor, sigma: Tensor, rho: Tensor, seen: Sequence[Symmetry]) -> Tensor:
        guess = guided.guess(x_t, sigma, seen)
        precision = guided.model.precision(guided.data)
        products = torch.cholesky_inverse(guess.prior.lower) * precision  # whose sums are traces, at least the norms
        bound = products.sum((-2, -1)).amax((-2, -1))
        step = self.zeta / column(bound) * covariance(guided, guess, guided.force(guess))
        return guess.denoised + step / (1 - rho)  # of which x′ takes 1 − ρ


class PiGDM(PosteriorSampling):
    """v by conjugate gradients. u² is the prior's largest variance of any mode, so that C ≤ r² and no step overshoots.

    Its authors' skies have one variance, u² = 1, as a white prior has; for that D′ is exact. For ours C is much less
    than r² at small scales, whose data then count for less than they should.
    """

    method = "pigdm"

    def led(self, guided: Factorized, x_t: Tensor, sigma: Tensor, rho: Tensor, seen: Sequence[Symmetry]) -> Tensor:
        guess = guided.guess(x_t, sigma, seen)
        known = (guided.prior.modes[0].amax((1, 2, 3))).square()
        inverse = column(1 / known + 1 / sigma.square())  # r⁻²
        model, data = guided.model, guided.data
        stationary = model.precision(data) + inverse.unsqueeze(-1) * torch.eye(x_t.shape[1]).to(x_t)
        lower = torch.linalg.cholesky(stationary)

        def precondition(w: Tensor) -> Tensor:
            return field(solve(lower.expand(len(w), *lower.shape[1:]), spectrum(w)), guided.posterior.grid)

        force = guided.force(guess)
        # Aᵀ v, as (I/r² + Aᵀ N⁻¹ A)⁻¹ Aᵀ N⁻¹ (y − A D)/r²: masked pixels are then no trouble.
        back = conjugate_gradient(
            lambda w: model.normal(w, data) + inverse * w, precondition, force, precondition(force), 0.01, 50
        )
        return guess.denoised + covariance(guided, guess, inverse * back)


class MMPS(PosteriorSampling):
    """D′ by moment matching, as mode factorized has it, from conjugate gradients and then GMRES."""

    method = "mmps"

    def __init__(self, denoiser: Denoiser, vis: bool = False, steps: int = 20):
        super().__init__(denoiser, vis, steps)

    def led(self, guided: Factorized, x_t: Tensor, sigma: Tensor, rho: Tensor, seen: Sequence[Symmetry]) -> Tensor:
        return guided.residual(x_t, sigma, seen) + guided.posterior.given(x_t, sigma).mean
