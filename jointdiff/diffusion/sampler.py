"""The sampler: the probability-flow ODE with its Gaussian part integrated exactly.

With S₀ = S(y, ∞) = U diag(s²) Uᵀ, one step from σ to σ′ (METHOD section 6; exponential integrators as in
DPM-Solver, Lu et al. 2022, arXiv 2206.00927, but about the Wiener posterior instead of zero):

    x′ = μ₀ + R (x − μ₀) + Φ (D − μ),  R = √((s²+σ′²)/(s²+σ²)),  Φ = √(s²+σ′²) [atan(σ/s) − atan(σ′/s)] √(s²+σ²)/(sσ)

It is exact for F = 0 in any number of steps; between steps F̃ is extrapolated linearly in log σ.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
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


class Flow:
    """The probability flow in the eigenbasis of S₀, where F̃ = (D − μ) √(s²+σ²)/(sσ) drives each mode."""

    def __init__(self, posterior: GaussianPosterior):
        self._posterior = posterior
        self._s, self._vectors = posterior.modes

    def modes(self, image: Tensor) -> Tensor:
        """Uᵀ x̂, the spectrum of an image (B, C, H, W) mode by mode."""
        return apply(self._vectors.mT, spectrum(image))

    def image(self, modes: Tensor) -> Tensor:
        """The inverse of ``modes``."""
        return field(apply(self._vectors, modes), self._posterior.grid)

    def start(self, centre: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """centre + (S₀ + σ²)^{1/2} noise."""
        return centre + self.image(torch.hypot(self._s, _column(sigma)) * self.modes(noise))

    def force(self, residual: Tensor, sigma: Tensor) -> Tensor:
        """F̃ of a residual D − μ."""
        level = _column(sigma)
        return self.modes(residual) * torch.hypot(self._s, level) / (self._s * level)

    def step(self, x: Tensor, sigma: Tensor, following: Tensor, force: Tensor, slope: Tensor | None = None) -> Tensor:
        """x at ``following`` from x at σ, for F̃ = force + slope · log(σ/ς) at ς between the two."""
        s, now, then, centre = self._s, _column(sigma), _column(following), self._posterior.mean
        drive = torch.atan2(s * (now - then), s.square() + now * then) * force  # ∫ dθ, θ = atan(ς/s)
        if slope is not None:
            drive = drive + self._moment(now, then) * slope
        shrink = torch.hypot(s, then) / torch.hypot(s, now)
        return centre + self.image(shrink * self.modes(x - centre) + torch.hypot(s, then) * drive)

    def _moment(self, now: Tensor, then: Tensor) -> Tensor:
        """∫ log(σ/ς) dθ(ς) from σ′ to σ, by Gauss–Legendre quadrature in log ς; σ′ = 0 stands for 10⁻³ σ."""
        span = torch.log(now / torch.maximum(then, 1e-3 * now))
        total = torch.zeros_like(self._s)
        for node, weight in zip(*np.polynomial.legendre.leggauss(6), strict=True):
            depth = 0.5 * (1 + node) * span
            level = now * torch.exp(-depth)
            total += 0.5 * weight * span * depth * self._s * level / (self._s.square() + level.square())
        return total


def _column(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


def sample(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
    """Scene samples (B, C, H, W).

    residual: D − μ of the denoiser. levels: σ (N, B), the last zero. noise: two independent white fields.
    The start is drawn about D, not zero, so that a finite σ_max leaves no bias. From the second step on the force
    follows the line through its last two values (Adams–Bashforth).
    """
    flow, high = Flow(posterior), levels[0]
    x = posterior.mean + _column(high) * noise[0]
    x = flow.start(posterior.given(x, high).mean + residual(x, high), high, noise[1])
    before: tuple[Tensor, Tensor] | None = None
    for sigma, following in pairwise(levels):
        force = flow.force(residual(x, sigma), sigma)
        slope = None if before is None else (force - before[0]) / torch.log(_column(before[1] / sigma))
        x = flow.step(x, sigma, following, force, slope)
        before = force, sigma
    return x
