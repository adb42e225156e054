"""Methods without a posterior: one estimate of the sky, whose errors are found by adding the noise once more."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jointdiff.errors import InputError
from jointdiff.forward import response
from jointdiff.reconstruct.base import CHUNK, Draws, NoiseStream, Reconstructor, chunks
from jointdiff.scene import Grid, Observation

Estimator = Callable[[Sequence[Tensor]], Tensor]
"""Images (S, h, w), one set for each observation, to skies (S, C, H, W), nJy per pixel."""


class PointEstimate(Reconstructor):
    """An estimate of the sky as the mean, and estimates from images with their stated noise added once more as samples.

    Such a bootstrap (Efron & Tibshirani 1993, chapter 6) gives the scatter that the noise leaves in the estimate,
    exactly so where it is linear in the data; it knows nothing of what the method itself gets wrong.
    """

    @abstractmethod
    def estimator(self, observations: Sequence[Observation], grid: Grid) -> Estimator:
        """What the method makes of images seen as these observations (B = 1) were."""

    def check(self, observations: Sequence[Observation], label: str) -> None:
        """Raises InputError, naming the field, for a band without data: without a prior nothing tells of it."""
        bands = self.denoiser.bands
        seen = [response(o.band, bands)[0] for o in observations if bool(o.present.all())]
        names = {o.band.name for o in observations if bool(o.present.all())}
        missing = [band.name for band in bands if band.name not in names]
        if missing or int(torch.linalg.matrix_rank(torch.tensor(seen))) < len(bands):
            what = ", ".join(missing) or "some band"
            raise InputError(f"{label}: {what} not observed, and method {self.method} infers no band from others")

    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        estimate = self.estimator(observations, grid)
        mean = estimate([o.image for o in observations])[0]
        samples = []
        for numbers in chunks(count, CHUNK):
            noise = stream.data(numbers, observations, mean)
            samples.append(estimate([o.image + o.noise(white) for o, white in zip(observations, noise, strict=True)]))
        return Draws(torch.cat(samples), mean)
