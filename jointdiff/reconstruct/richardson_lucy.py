"""Richardson–Lucy: each band deconvolved by itself, multiplicatively, and stopped early.

The unknown is the sky u ≥ 0 before the target PSF T, seen through the whole PSF, so that the kernel K is positive; the
answer is T ⊛ u, as every method's. Each filter is deconvolved as it is observed, and the maps are then turned into the
scene's bands by the inverse of the colour terms.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.forward import ForwardModel, gaussian_transfer, response
from jointdiff.reconstruct.bootstrap import Estimator, PointEstimate
from jointdiff.scene import Grid, Observation

TINY = 1e-12
"""Light (of 1) below which a pixel counts as unseen, and stays as it is."""

Update = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]]
"""(data, model, ivars), pedestal included, to the images whose back-projections' ratio multiplies the sky."""


def poisson(data: Sequence[Tensor], model: Sequence[Tensor], ivars: Sequence[Tensor]) -> tuple[list, list]:
    """u ← u · Kᵀ(m d/(K u + p)) / Kᵀ m (Richardson 1972; Lucy 1974), m the observed pixels.

    The variance goes as the model, so that of the data does not enter.
    """
    seen = [(ivar > 0).to(ivar) for ivar in ivars]
    ratios = [m * d / f for m, d, f in zip(seen, data, model, strict=True)]
    return ratios, [m.expand_as(f) for m, f in zip(seen, model, strict=True)]


def gaussian(data: Sequence[Tensor], model: Sequence[Tensor], ivars: Sequence[Tensor]) -> tuple[list, list]:
    """u ← u · Kᵀ(w d) / Kᵀ(w (K u + p)), w the inverse variance; χ² falls at every step where K ≥ 0.

    The image-space reconstruction algorithm (Daube-Witherspoon & Muehllehner 1986, IEEE Trans. Med. Imaging 5, 61; De
    Pierro 1987).
    """
    return [w * d for w, d in zip(ivars, data, strict=True)], [w * f for w, f in zip(ivars, model, strict=True)]


def multiplicative(
    forward: Callable[[Tensor], list[Tensor]],
    adjoint: Callable[[Sequence[Tensor]], Tensor],
    data: Sequence[Tensor],
    ivars: Sequence[Tensor],
    pedestals: Sequence[Tensor],
    start: Tensor,
    iterations: int,
    update: Update = poisson,
) -> Tensor:
    """The sky after so many multiplicative steps from ``start``; pedestals p are added to the data and to the model.

    A pedestal keeps noisy data of no sky positive, and the larger it is the slower faint pixels follow their noise
    (Snyder, Hammoud & White 1993, JOSA A 10, 1014). What is negative all the same counts as zero.
    """
    raised = [(d + p).clamp(min=0) for d, p in zip(data, pedestals, strict=True)]
    sky = start
    for _ in range(iterations):
        model = [f.clamp(min=0) + p for f, p in zip(forward(sky), pedestals, strict=True)]
        model = [f.clamp(min=TINY * float(f.amax())) for f in model]
        above, below = (adjoint(images).clamp(min=0) for images in update(raised, model, ivars))
        seen = below > TINY * below.amax()
        sky = sky * torch.where(seen, above / torch.where(seen, below, 1.0), 1.0)
    return sky


class RichardsonLucy(PointEstimate):
    """Stopped after a number of iterations of its own for VIS and for the ground, tuned once on validation scenes.

    vis, ground: iterations. pedestal: in units of the noise of a pixel. update: ``poisson`` or ``gaussian``.
    """

    method = "richardson-lucy"
    update = staticmethod(poisson)

    def __init__(self, denoiser: Denoiser, vis: int = 20, ground: int = 260, pedestal: float = 3.0):
        super().__init__(denoiser)
        self.vis, self.ground, self.pedestal = vis, ground, pedestal

    def estimator(self, observations: Sequence[Observation], grid: Grid) -> Estimator:
        bands = list(dict.fromkeys(o.band for o in observations if bool(o.present.all())))
        groups = [[i for i, o in enumerate(observations) if o.band == band] for band in bands]
        channels = [self._channel([observations[i] for i in group], grid) for group in groups]
        like = observations[0].image
        mixing = torch.linalg.pinv(like.new_tensor([response(band, self.denoiser.bands)[0] for band in bands]))

        def estimate(images: Sequence[Tensor]) -> Tensor:
            maps = [one([images[i] for i in group]) for one, group in zip(channels, groups, strict=True)]
            return torch.einsum("co,sohw->schw", mixing, torch.cat(maps, 1))

        return estimate

    def _channel(self, observations: Sequence[Observation], grid: Grid) -> Estimator:
        """Images (S, h, w) of one filter to its sky at the target PSF, (S, 1, H, W)."""
        band, fwhm = observations[0].band, self.denoiser.target_fwhm
        model, ivars = ForwardModel(grid, (band,), fwhm, observations), [o.ivar for o in observations]
        target = torch.as_tensor(gaussian_transfer(grid, fwhm)).to(observations[0].image)
        noise = [ivar[ivar > 0].median().rsqrt() for ivar in ivars]
        iterations = self.vis if band.name == "VIS" else self.ground

        def blurred(sky: Tensor) -> Tensor:
            return torch.fft.irfft2(target * torch.fft.rfft2(sky), s=grid.shape)

        def estimate(images: Sequence[Tensor]) -> Tensor:
            sky = multiplicative(
                lambda u: model(blurred(u)),
                lambda y: blurred(model.adjoint(y)),
                images,
                ivars,
                [self.pedestal * sigma for sigma in noise],
                self._level(images[0], observations[0], noise[0], grid).expand(-1, 1, *grid.shape),
                iterations,
                self.update,
            )
            return blurred(sky)

        return estimate

    @staticmethod
    def _level(image: Tensor, observation: Observation, noise: Tensor, grid: Grid) -> Tensor:
        """A flat sky (S, 1, 1, 1) of as much light as the images hold, but no less than a hundredth of the noise."""
        seen = observation.ivar > 0
        mean = (image * seen).sum((-2, -1)) / seen.sum()
        area = abs(float(np.linalg.det(grid.footprint(observation.frame.grid))))
        return (mean.clamp(min=0.01 * float(noise)) / area).view(-1, 1, 1, 1)


class ImageSpace(RichardsonLucy):
    """The same with the Gaussian likelihood's multiplicative step."""

    method = "isra"
    update = staticmethod(gaussian)
