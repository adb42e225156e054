"""Diffusion: a denoiser that sees all the data, or VIS alone and is led by the rest (METHOD sections 6 and 7)."""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.guidance import Convergence, Factorized, divided
from jointdiff.diffusion.solvers import DEFAULT, SOLVERS, fields_of, levels_of
from jointdiff.diffusion.symmetry import Symmetry
from jointdiff.gaussian import GaussianPosterior
from jointdiff.nuisances import nuisances_of
from jointdiff.reconstruct.base import CHUNK, Draws, NoiseStream, Reconstructor, chunks
from jointdiff.reconstruct.guard import guarded
from jointdiff.reconstruct.refine import refined
from jointdiff.reconstruct.wiener import stop_of
from jointdiff.scene import Grid, Observation

BATCH = {"amortized": CHUNK, "factorized": 4}
"""Samples drawn at once in each mode: GMRES keeps some thirty fields for each."""

MODES = tuple(BATCH)


class Diffusion(Reconstructor):
    """Samples of the learned posterior, each through a symmetry of its own, and of images without the errors that it
    draws for them (nuisances.py); their mean is the posterior mean.

    evaluations: of the network per sample, at least 3. solver: one of SOLVERS. mode: one of MODES; ``factorized`` takes
    derivatives of the network, which then computes in float32, and raises InputError for a sky without VIS. guard:
    let the Gaussian posterior speak where a sample contradicts the data (guard.py). refine: let the data speak where
    the network is known to be less exact than they are (refine.py).
    """

    method = "diffusion"

    def __init__(
        self,
        denoiser: Denoiser,
        evaluations: int = 8,
        solver: str = DEFAULT,
        mode: str = "amortized",
        guard: bool = True,
        refine: bool = True,
    ):
        if mode == "factorized":
            denoiser = copy(denoiser)  # the weights are the caller's, the precision is not
            denoiser.network_dtype = None
        super().__init__(denoiser)
        assert solver in SOLVERS, f"{solver}: expected one of {', '.join(SOLVERS)}"
        assert mode in MODES, f"{mode}: expected one of {', '.join(MODES)}"
        self.evaluations: int = evaluations
        self.mode: str = mode
        self._solver, self.guard = solver, guard
        self.network_errors = denoiser.network_errors if refine else ()

    @property
    def seamless(self) -> bool:
        return self.mode == "amortized"

    def check(self, observations: Sequence[Observation], label: str) -> None:
        if self.mode == "factorized":
            divided(observations, label)

    # Not inference_mode: forward.py keeps Fourier matrices, and training may later use those made here.
    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        posterior, residual, convergence = whole, *_ = self._told(observations, grid)
        amplitude, uncertain = posterior.amplitude.to(observations[0].image.dtype), self.denoiser.levels
        if uncertain and self.mode == "factorized":  # whose posterior has the observations in another order
            whole = self.denoiser.condition(observations, grid, amplitude).posterior
        nuisances, light = nuisances_of(whole, uncertain, self.belief), whole.mean
        belief = nuisances.belief
        levels = levels_of(self._solver, posterior, self.evaluations)
        fields, channels = fields_of(self._solver, levels), posterior.mean.shape[1]
        samples, shares, errors, guided, solved = [], [], [], True, True
        for numbers in chunks(count, BATCH[self.mode]):
            noise = [stream.white(numbers, grid, posterior.mean, f"sky {n}", channels) for n in range(fields)]
            (white,) = stream.normal(numbers, [(belief.count,)], posterior.mean)
            errors.append(belief.draw(white))
            if belief.count:
                images, start = nuisances.corrected(errors[-1]), nuisances.sky(errors[-1])
                posterior, residual, convergence = self._told(images, grid, amplitude, start)
            views = [Symmetry.numbered(number, grid, self.denoiser.network.stride) for number in numbers]
            drawn = SOLVERS[self._solver](partial(residual, symmetries=views), posterior, levels, noise)
            if self.network_errors:
                given = posterior, posterior.observations, light, self.network_errors
                drawn, found = refined(drawn, *given, numbers, stream)
                solved = solved and found
            if self.guard:
                drawn, share = guarded(drawn, posterior, partial(self._gaussian, posterior, numbers, noise[0], stream))
                shares.append(share)
            samples.append(drawn)
            guided = guided and convergence.converged
        drawn = torch.cat(samples).to(amplitude)
        if not guided:
            text = "the ground data were in part taken in with the covariance of Γ, for the network's did not converge"
            warnings.warn(f"{stream.name}: {text}", stacklevel=2)
        if not solved:
            warnings.warn(
                f"{stream.name}: what the network gets wrong was corrected in part only, for a scene so bright",
                stacklevel=2,
            )
        replaced = torch.cat(shares).mean((0, 1)) if shares else None
        return Draws(drawn, drawn.mean(0), guided and solved, nuisances.offsets(torch.cat(errors)), replaced)

    def _gaussian(self, posterior: GaussianPosterior, numbers: range, scene: Tensor, stream: NoiseStream) -> Tensor:
        """Exact samples of the Gaussian posterior, (S, C, H, W); scene: white noise of the samples ``numbers``."""
        data = stream.data(numbers, posterior.observations, posterior.mean)
        return posterior.perturbed(scene, data, stop_of(self.shared))

    def _told(
        self,
        observations: Sequence[Observation],
        grid: Grid,
        amplitude: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[GaussianPosterior, Callable, Convergence]:
        """The Gaussian posterior, D − μ about it, and whether its systems converge. start: a first guess of μ₀."""
        if self.mode == "factorized":
            guided = Factorized.of(self.denoiser, observations, grid, amplitude)
            return guided.posterior, guided.residual, guided.convergence
        options = self.shared.told(start) if self.shared else {"amplitude": amplitude, "start": start}
        conditioning = self.denoiser.condition(observations, grid, **options)
        return conditioning.posterior, partial(self.denoiser.correction, conditioning=conditioning), Convergence()
