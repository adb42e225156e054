"""Diffusion: a denoiser that sees all the data, or VIS alone and is led by the rest (METHOD sections 6 and 7)."""

import warnings
from collections.abc import Sequence
from copy import copy
from functools import partial

import torch

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.guidance import Factorized, divided
from jointdiff.diffusion.solvers import DEFAULT, SOLVERS, fields_of, levels_of
from jointdiff.diffusion.symmetry import Symmetry
from jointdiff.reconstruct.base import CHUNK, Draws, NoiseStream, Reconstructor, chunks
from jointdiff.scene import Grid, Observation

BATCH = {"amortized": CHUNK, "factorized": 4}
"""Samples drawn at once in each mode: GMRES keeps some thirty fields for each."""

MODES = tuple(BATCH)


class Diffusion(Reconstructor):
    """Samples of the learned posterior, each through a symmetry of its own; their mean is the posterior mean.

    evaluations: of the network per sample, at least 3. solver: one of SOLVERS. mode: one of MODES; ``factorized`` takes
    derivatives of the network, which then computes in float32, and raises InputError for a sky without VIS.
    """

    method = "diffusion"

    def __init__(self, denoiser: Denoiser, evaluations: int = 8, solver: str = DEFAULT, mode: str = "amortized"):
        if mode == "factorized":
            denoiser = copy(denoiser)  # the weights are the caller's, the precision is not
            denoiser.network_dtype = None
        super().__init__(denoiser)
        assert solver in SOLVERS, f"{solver}: expected one of {', '.join(SOLVERS)}"
        assert mode in MODES, f"{mode}: expected one of {', '.join(MODES)}"
        self.evaluations: int = evaluations
        self.mode: str = mode
        self._solver = solver

    @property
    def seamless(self) -> bool:
        return self.mode == "amortized"

    def check(self, observations: Sequence[Observation], label: str) -> None:
        if self.mode == "factorized":
            divided(observations, label)

    # Not inference_mode: forward.py keeps Fourier matrices, and training may later use those made here.
    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        if self.mode == "factorized":
            guided = Factorized.of(self.denoiser, observations, grid)
            posterior, correction = guided.posterior, guided.residual
        else:
            options = self.shared.options if self.shared else {}
            guided, conditioning = None, self.denoiser.condition(observations, grid, **options)
            posterior = conditioning.posterior
            correction = partial(self.denoiser.correction, conditioning=conditioning)
        levels = levels_of(self._solver, posterior, self.evaluations)
        fields, channels = fields_of(self._solver, levels), posterior.mean.shape[1]
        samples = []
        for numbers in chunks(count, BATCH[self.mode]):
            seen = [Symmetry.numbered(number, grid, self.denoiser.network.stride) for number in numbers]
            noise = [stream.white(numbers, grid, posterior.mean, f"sky {n}", channels) for n in range(fields)]
            samples.append(SOLVERS[self._solver](partial(correction, symmetries=seen), posterior, levels, noise))
        drawn = torch.cat(samples).to(observations[0].image.dtype)
        converged = guided is None or guided.convergence.converged
        if not converged:
            text = "the ground data were in part taken in with the covariance of Γ, for the network's did not converge"
            warnings.warn(f"{stream.name}: {text}", stacklevel=2)
        return Draws(drawn, drawn.mean(0), converged)
