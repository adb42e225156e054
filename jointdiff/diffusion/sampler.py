"""The sampler: the probability-flow ODE with its Gaussian part integrated exactly.

With S₀ = S(y, ∞) = U diag(s²) Uᵀ, one step from σ to σ′ (METHOD section 6; exponential integrators as in
DPM-Solver, Lu et al. 2022, arXiv 2206.00927, but about the Wiener posterior instead of zero):

    x′ = μ₀ + R (x − μ₀) + Φ (D − μ),  R = √((s²+σ′²)/(s²+σ²)),  Φ = √(s²+σ′²) [atan(σ/s) − atan(σ′/s)] √(s²+σ²)/(sσ)

It is exact for F = 0 in any number of steps.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum

Residual = Callable[[Tensor, Tensor], Tensor]
"""(x_t, σ) → D − μ, (B, C, H, W): what a denoiser adds to the Gaussian posterior mean."""


def noise_levels(posterior: GaussianPosterior, evaluations: int) -> Tensor:
    """σ (evaluations, B) for that many network calls: log-spaced from σ_max to σ_min, then 0.

    The start costs one call and each step one more.
    """
    assert evaluations >= 3, "one call to start, one at each end"
    low, high = posterior.sigma_range
    t = torch.linspace(0, 1, evaluations - 1).to(low).unsqueeze(1)
    levels = torch.exp((1 - t) * high.log() + t * low.log())
    return torch.cat([levels, torch.zeros_like(levels[:1])])


class ModeStep:
    """One step in the eigenbasis of S₀."""

    def __init__(self, posterior: GaussianPosterior):
        self._posterior = posterior
        self._s, self._vectors = posterior.modes

    def _filter(self, gain: Tensor, image: Tensor) -> Tensor:
        modes = apply(self._vectors.mT, spectrum(image))
        return field(apply(self._vectors, gain * modes), self._posterior.grid)

    def start(self, centre: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """centre + (S₀ + σ²)^{1/2} noise."""
        return centre + self._filter(torch.hypot(self._s, _column(sigma)), noise)

    def __call__(self, x: Tensor, residual: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
        s, now, then = self._s, _column(sigma), _column(following)
        before, after = torch.hypot(s, now), torch.hypot(s, then)
        turn = torch.atan2(s * (now - then), s.square() + now * then)  # atan(σ/s) − atan(σ′/s)
        centre = self._posterior.mean
        return (
            centre
            + self._filter(after / before, x - centre)
            + self._filter(after * turn * before / (s * now), residual)
        )


def _column(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


def sample(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
    """Scene samples (B, C, H, W).

    residual: D − μ of the denoiser. levels: σ (N, B), the last zero. noise: two independent white fields.
    The start is drawn about D, not zero, so that a finite σ_max leaves no bias.
    """
    step, high = ModeStep(posterior), levels[0]
    x = posterior.mean + high.view(-1, 1, 1, 1) * noise[0]
    x = step.start(posterior.given(x, high).mean + residual(x, high), high, noise[1])
    for sigma, following in pairwise(levels):
        x = step(x, residual(x, sigma), sigma, following)
    return x
