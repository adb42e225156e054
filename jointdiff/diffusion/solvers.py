"""Other solvers beside our own, to compare it with. All start alike, and take the same arguments as ``sample``.

Their σ come from ``levels_of``, which knows how many calls of the denoiser each of them makes.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from jointdiff.diffusion.sampler import Flow, Residual, column, noise_levels, sample
from jointdiff.gaussian import GaussianPosterior


def _denoiser(residual: Residual, posterior: GaussianPosterior) -> Residual:
    """D = μ + residual."""
    return lambda x, sigma: posterior.given(x, sigma).mean + residual(x, sigma)


def heun(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Heun's second-order steps of dx/dσ = (x − D)/σ (Karras et al. 2022, arXiv 2206.00364, algorithm 1)."""
    flow, denoise = Flow(residual, posterior), _denoiser(residual, posterior)
    x = flow.state(flow.start(noise[0], levels)[0], levels[1])
    for sigma, following in pairwise(levels[1:]):
        step = column(following - sigma)
        slope = (x - denoise(x, sigma)) / column(sigma)
        predicted = x + step * slope
        if following.any():
            slope = 0.5 * (slope + (predicted - denoise(predicted, following)) / column(following))
        x = x + step * slope
    return x


def dpm(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """DPM-Solver++(2M) in D, for α = 1 (Lu et al. 2022, arXiv 2211.01095, algorithm 2); the last step is of order 1."""
    flow, denoise = Flow(residual, posterior), _denoiser(residual, posterior)
    x = flow.state(flow.start(noise[0], levels)[0], levels[1])
    before: tuple[Tensor, Tensor] | None = None
    for sigma, following in pairwise(levels[1:]):
        denoised = denoise(x, sigma)
        target = denoised
        if before is not None and following.any():
            ratio = torch.log(sigma / following) / torch.log(before[1] / sigma)
            target = denoised + 0.5 * column(ratio) * (denoised - before[0])
        shrink = column(following / sigma)
        x = shrink * x + (1 - shrink) * target
        before = denoised, sigma
    return x


def ancestral(residual: Residual, posterior: GaussianPosterior, levels: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """x′ drawn from p(x′ | x_t), as if p(x | x_t, y) were a Gaussian of mean D and the covariance of Γ.

    With ρ = σ′²/σ² and c² = s²σ²/(s²+σ²) (Ho et al. 2020, arXiv 2006.11239, equation 7, but for a posterior of some
    width): mean D + ρ (x_t − D), variance (1 − ρ)² c² + (1 − ρ) σ′². Exact for F = 0. Takes a white field a step.
    """
    flow, denoise = Flow(residual, posterior), _denoiser(residual, posterior)
    s = flow.deviations
    x = flow.state(flow.start(noise[0], levels)[0], levels[1])
    for (sigma, following), white in zip(pairwise(levels[1:]), noise[1:], strict=True):
        denoised, rho = denoise(x, sigma), column((following / sigma).square())
        variance = (1 - rho).square() * (s * flow.sine(sigma)).square() + (1 - rho) * column(following).square()
        x = denoised + rho * (x - denoised) + flow.image(variance.sqrt() * flow.modes(white))
    return x


SOLVERS: dict[str, Callable[[Residual, GaussianPosterior, Tensor, Sequence[Tensor]], Tensor]] = {
    "multistep": sample,
    "ancestral": ancestral,
    "dpm": dpm,
    "heun": heun,
}
"""By name; the first, our own, is the default."""

DEFAULT = next(iter(SOLVERS))


def levels_of(solver: str, posterior: GaussianPosterior, evaluations: int) -> Tensor:
    """σ (N + 1, B), on which a solver makes at most that many calls of the denoiser, at least 3 (4 for heun)."""
    return noise_levels(posterior, evaluations // 2 + 1 if solver == "heun" else evaluations)


def evaluations_of(solver: str, levels: Tensor) -> int:
    """Calls of the denoiser that a solver makes on these levels."""
    return 2 * len(levels) - 4 if solver == "heun" else len(levels) - 1


def fields_of(solver: str, levels: Tensor) -> int:
    """White fields that a solver takes on these levels."""
    return len(levels) - 1 if solver == "ancestral" else 1
