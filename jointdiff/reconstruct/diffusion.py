"""Amortized diffusion: one denoiser that sees all the data, and the solver of METHOD section 6."""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.solvers import DEFAULT, SOLVERS, fields_of, levels_of
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, chunks
from jointdiff.scene import Grid, Observation


class Diffusion(Reconstructor):
    """Samples of the learned posterior; their mean is the posterior mean.

    evaluations: of the network per sample, at least 3. solver: one of SOLVERS.
    """

    method = "diffusion"
    mode = "amortized"

    def __init__(self, denoiser: Denoiser, evaluations: int = 8, solver: str = DEFAULT):
        super().__init__(denoiser)
        assert solver in SOLVERS, f"{solver}: expected one of {', '.join(SOLVERS)}"
        self.evaluations: int = evaluations
        self._solver = solver

    # Not inference_mode: forward.py keeps Fourier matrices, and training may later use those made here.
    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        conditioning = self.denoiser.condition(observations, grid)
        posterior = conditioning.posterior
        levels = levels_of(self._solver, posterior, self.evaluations)

        def residual(x_t: Tensor, sigma: Tensor) -> Tensor:
            return self.denoiser.correction(x_t, sigma, conditioning)

        shapes = [posterior.mean.shape[1:]] * fields_of(self._solver, levels)
        solve = SOLVERS[self._solver]
        samples = [
            solve(residual, posterior, levels, stream.normal(numbers, shapes, posterior.mean))
            for numbers in chunks(count)
        ]
        drawn = torch.cat(samples)
        return Draws(drawn, drawn.mean(0))
