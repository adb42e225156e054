"""Amortized diffusion: one denoiser that sees all the data, and the solver of METHOD section 6."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.sampler import noise_levels, sample
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, chunks
from jointdiff.scene import Grid, Observation


class Diffusion(Reconstructor):
    """Samples of the learned posterior; their mean is the posterior mean.

    evaluations: of the network per sample, at least 3.
    """

    method = "diffusion"
    mode = "amortized"

    def __init__(self, denoiser: Denoiser, evaluations: int = 8):
        super().__init__(denoiser)
        self.evaluations: int = evaluations

    # Not inference_mode: forward.py keeps Fourier matrices, and training may later use those made here.
    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        conditioning = self.denoiser.condition(observations, grid)
        posterior = conditioning.posterior
        levels = noise_levels(posterior, self.evaluations)

        def residual(x_t: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser.correction(x_t, sigma, conditioning)

        shape = posterior.mean.shape[1:]
        samples = []
        for numbers in chunks(count):
            first, second = stream.normal(numbers, [shape, shape], posterior.mean)
            samples.append(sample(residual, posterior, levels, (first, second)))
        drawn = torch.cat(samples)
        return Draws(drawn, drawn.mean(0))
