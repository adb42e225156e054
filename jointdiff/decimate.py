"""Ground images that were resampled to the scene's fine pixels, brought back to pixels of their own resolution.

Euclid's MER pipeline serves ground images on the 0.1 arcsec pixels of VIS, several to a PSF. Sums of 2 × 2 hold the
same information in a quarter of the pixels, whose noise is far less correlated (METHOD section 4).
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jointdiff.correlation import correlation_function, power_spectrum
from jointdiff.scene import Frame, Grid, Observation, pair_of_pairs

OVERSAMPLED = 5.0
"""FWHM in pixels from which 2 × 2 of them are summed: of what lies beyond the band of the sums such a PSF passes less
than 1 %."""

_REACH = 15
"""Largest lag of correlated noise that is carried over, pixels."""


def at_its_resolution(observation: Observation, scale: float) -> Observation:
    """Without the pixels that only repeat each other: of images OVERSAMPLED and no coarser than ``scale`` (arcsec).

    Others stay as they are, as do those whose PSF has pixels that do not divide the image's.
    """
    while (
        oversampled(observation.frame, scale) and min(observation.frame.grid.shape) >= 2 and _divides(observation.frame)
    ):
        observation = decimated(observation)
    return observation


def oversampled(frame: Frame, scale: float) -> bool:
    """Whether pixels no coarser than ``scale`` (arcsec) are so fine that 2 × 2 of them hold no more than their sum."""
    return frame.grid.scale <= 1.01 * scale and psf_fwhm(frame) >= OVERSAMPLED * frame.grid.scale


def psf_fwhm(frame: Frame) -> float:
    """FWHM (arcsec) of the Gaussian with the stamp's noise-equivalent area 1/Σp² (King 1983, PASP 95, 163); the widest.

    Unlike a crossing of half the maximum it needs no interpolation of undersampled stamps.
    """
    area = 1 / frame.psf.square().sum((-2, -1)).min()  # 4πσ² for a Gaussian
    return math.sqrt(2 * math.log(2) / math.pi * float(area)) * frame.psf_scale * frame.grid.scale


def decimated(observation: Observation) -> Observation:
    """Sums of 2 × 2 pixels, nJy per new pixel, as A of the new frame predicts them exactly.

    An odd last row or column is left out. A block is masked where one of its pixels is; its variance has their
    covariance in it. The PSF keeps its sampling.
    """
    assert _divides(observation.frame), "PSF pixels that do not divide the image's"
    frame, (h, w) = observation.frame, observation.frame.grid.shape
    matrix = np.asarray(frame.grid.matrix)
    y, x = frame.grid.origin + matrix @ [0.5, 0.5]
    grid = Grid((h // 2, w // 2), pair_of_pairs(2 * matrix), (float(y), float(x)))
    seen = -torch.nn.functional.max_pool2d(-(observation.ivar > 0).to(observation.ivar), 2)
    variance = _sums(torch.where(observation.ivar > 0, 1 / observation.ivar, 0.0))
    correlation = observation.correlation
    if correlation is not None:
        lags = _block_lags(correlation_function(correlation, (h, w), _REACH))
        middle = lags[..., lags.shape[-2] // 2, lags.shape[-1] // 2][..., None, None]
        variance, correlation = variance * middle / 4, power_spectrum(lags / middle, grid.shape)
    ivar = seen / torch.where(seen > 0, variance, 1.0)
    image = torch.where(seen > 0, _sums(torch.where(observation.ivar > 0, observation.image, 0.0)), 0.0)
    new = replace(frame, grid=grid, psf=_block_psf(frame), psf_scale=frame.psf_scale / 2)
    return replace(observation, frame=new, image=image, ivar=ivar, correlation=correlation)


def _divides(frame: Frame) -> bool:
    """Whether the image's pixel is a multiple of the PSF's, so that the PSF of a block is a sum of shifted stamps."""
    return abs(1 / frame.psf_scale - round(1 / frame.psf_scale)) < 1e-6


def _sums(images: Tensor) -> Tensor:
    return 4 * torch.nn.functional.avg_pool2d(images, 2)


def _block_psf(frame: Frame) -> Tensor:
    """The mean (B, n + m, n + m) of four stamps whose centres lie one image pixel, m of theirs, apart."""
    apart = round(1 / frame.psf_scale)
    pads = [(x, apart - x, y, apart - y) for y in (0, apart) for x in (0, apart)]
    return torch.stack([torch.nn.functional.pad(frame.psf, pad) for pad in pads]).mean(0)


def _block_lags(lags: Tensor) -> Tensor:
    """Covariance of sums of 2 × 2 at every second lag, of a correlation function whose lag zero is in the middle."""
    triangle = lags.new_tensor([1.0, 2.0, 1.0])
    kernel = torch.outer(triangle, triangle)[None, None]
    sums = torch.nn.functional.conv2d(lags.unsqueeze(1), kernel, padding=1).squeeze(1)
    rows, columns = (n // 2 % 2 for n in lags.shape[-2:])
    return sums[..., rows::2, columns::2]
