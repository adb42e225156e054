"""The sampler: the probability-flow ODE with its Gaussian part integrated exactly.

With S₀ = S(y, ∞) = U diag(s²) Uᵀ, the coordinates z of x = μ₀ + U √(s²+σ²) z, and θ = atan(σ/s), which falls from
π/2 (σ = ∞, where z is white) to 0 (the sample), the flow is (METHOD section 6)

    dz = −F̃ dθ,    F̃ = Uᵀ(D − μ) √(s²+σ²)/(sσ)

(exponential integrators as in DPM-Solver, Lu et al. 2022, arXiv 2206.00927, but about the Wiener posterior instead of
zero). It is exact for F = 0 in any number of steps. F̃/√sin θ is interpolated in log σ: a posterior wider than σ has
F̃ ∝ σ, one narrower a constant F̃, and the root lies between.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum

Residual = Callable[[Tensor, Tensor], Tensor]
"""(x_t, σ) → D − μ, (B, C, H, W): what a denoiser adds to the Gaussian posterior mean."""

REACH = 2.0
"""σ_max over the top of ``sigma_range``, in sampling as in training. With half of it, bright sources of a trained model
have errors a tenth too small, whatever the number of steps."""

_DEPTH = 1e-3
"""What stands for σ = 0, in units of the last σ, in the quadrature of the last step."""


def noise_levels(posterior: GaussianPosterior, levels: int) -> Tensor:
    """σ (levels + 1, B): σ_max, then log-spaced from σ_max/2 to σ_min, then 0.

    The first step leads from σ = ∞ to σ_max/2; it sees the network at σ_max, the middle of it in cos θ.
    """
    assert levels >= 3, "one to start, one at each end"
    low, high = posterior.sigma_range
    t = torch.linspace(0, 1, levels - 1).to(low).unsqueeze(1)
    steps = torch.exp((1 - t) * (0.5 * REACH * high).log() + t * low.log())
    return torch.cat([REACH * high.unsqueeze(0), steps, torch.zeros_like(steps[:1])])


class Flow:
    """The probability flow in the eigenbasis of S₀, in which z is white at σ = ∞ and, if F = 0, never changes."""

    def __init__(self, residual: Residual, posterior: GaussianPosterior):
        self.posterior = posterior
        self.deviations, self._vectors = posterior.modes
        self._residual = residual

    def modes(self, image: Tensor) -> Tensor:
        """Uᵀ x̂, the spectrum of an image (B, C, H, W) mode by mode."""
        return apply(self._vectors.mT, spectrum(image))

    def image(self, modes: Tensor) -> Tensor:
        """The inverse of ``modes``."""
        return field(apply(self._vectors, modes), self.posterior.grid)

    def reach(self, sigma: Tensor) -> Tensor:
        """√(s²+σ²)."""
        return torch.hypot(self.deviations, column(sigma))

    def sine(self, sigma: Tensor) -> Tensor:
        """sin θ = σ/√(s²+σ²)."""
        return column(sigma) / self.reach(sigma)

    def state(self, z: Tensor, sigma: Tensor) -> Tensor:
        """x (B, C, H, W) of z at σ."""
        return self.posterior.mean + self.image(self.reach(sigma) * z)

    def force(self, z: Tensor, sigma: Tensor) -> Tensor:
        """F̃: one call of the network."""
        residual = self.modes(self._residual(self.state(z, sigma), sigma))
        return residual * self.reach(sigma) / (self.deviations * column(sigma))

    def start(self, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """z at levels[1], from white noise at σ = ∞; and F̃ at levels[0], which it took.

        The midpoint rule in cos θ (where σ ≫ s, cos θ doubles as σ halves): F̃/sin θ is a constant there for a posterior
        of another mean, and proportional to cos θ for one of another width. A finite σ_max leaves no bias of either.
        """
        z = self.modes(noise)
        force = self.force(z, levels[0])
        return z + self.deviations / self.reach(levels[1]) * force / self.sine(levels[0]), force

    def weights(self, now: Tensor, then: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """∫ √sin θ dθ and ∫ t √sin θ dθ from σ to σ′, t = log(σ/ς)/gap but at most 1.

        Gauss–Legendre quadrature in log ς. The bound keeps the last, infinitely long step from an endless line.
        """
        s, span = self.deviations, torch.log(now / torch.maximum(then, _DEPTH * now))
        total, moment = torch.zeros_like(s), torch.zeros_like(s)
        for node, weight in zip(*np.polynomial.legendre.leggauss(8), strict=True):
            depth = 0.5 * (1 + node) * span
            level = now * torch.exp(-depth)
            share = 0.5 * weight * column(span) * s * column(level) / self.reach(level).square()
            share = share * self.sine(level).sqrt()
            total, moment = total + share, moment + share * column(depth / gap).clamp(max=1)
        return total, moment


def column(sigma: Tensor) -> Tensor:
    """σ (B,) against images and spectra."""
    return sigma.view(-1, 1, 1, 1)


def sample(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Scene samples (B, C, H, W), with one call of the denoiser at each level but the last.

    residual: D − μ of the denoiser. levels: σ (N, B) of ``noise_levels``. noise: a white field (B, C, H, W); others
    are left alone. Each step is predicted from the last two forces (Adams–Bashforth) and, when the next one is known,
    taken again by the trapezoidal rule, at no further call (PEC; as UniPC, Zhao et al. 2023, arXiv 2302.04867).
    """
    flow = Flow(residual, posterior)
    z, force = flow.start(noise[0], levels)
    last, before = levels[0], force / flow.sine(levels[0]).sqrt()
    anchor: Tensor | None = None
    for sigma, following in pairwise(levels[1:]):
        drive = flow.force(z, sigma) / flow.sine(sigma).sqrt()
        gap = torch.log(last / sigma)
        if anchor is not None:
            total, moment = flow.weights(last, sigma, gap)
            z = anchor + total * before + moment * (drive - before)
        anchor = z
        total, moment = flow.weights(sigma, following, gap)
        z = z + total * drive + moment * (drive - before)
        last, before = sigma, drive
    return flow.state(z, levels[-1])
