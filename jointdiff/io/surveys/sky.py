"""The noise of an image that came without a variance: measured on its sky."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, convolve1d, uniform_filter

from jointdiff.errors import InputError
from jointdiff.survey import Depth

LEAST_SKY = 0.05
"""Share of the seen pixels that must be sky: with less, what looks like noise is the wings of sources."""

_SIGMA_PER_MAD = 1.4826
_SIGNIFICANT = 5.0  # the smoothed flux, in its own noise, that counts for Poisson noise, as in simulate/observe.py


@dataclass(frozen=True)
class Sky:
    """Level and standard deviation of the sky's pixels, in the image's units; share of the seen pixels that are sky."""

    level: float
    sigma: float
    share: float


def measure_sky(image: np.ndarray, seen: np.ndarray, label: str, place: str) -> Sky:
    """The sky of an image (h, w), where ``seen`` (h, w), by median and MAD of the pixels that no source touches.

    A source is what lies three deviations above the sky, by itself or in the mean of 5 × 5, and two pixels around it.
    Raises InputError where hardly a pixel is left, or the pixels have no scatter.
    """
    sky = seen
    level = sigma = 0.0
    for _ in range(10):
        level, sigma = _middle_and_scatter(image[sky])
        excess = np.where(seen, image - level, 0.0)
        mean = uniform_filter(excess, 5, mode="nearest")
        above = (excess > 3 * sigma) | (mean > 3 * _middle_and_scatter(mean[sky])[1])
        found = seen & ~binary_dilation(above & seen, iterations=2)
        if found.sum() <= LEAST_SKY * seen.sum():
            share = found.sum() / max(1, seen.sum())
            raise InputError(
                f"{label}: no variance plane, and only {share:.1%} of its pixels are sky: take a larger part ({place})"
            )
        if (found == sky).all():
            break
        sky = found
    if not 0 < sigma < np.inf:
        raise InputError(f"{label}: no variance plane, and its sky has a scatter of {sigma:.3g} ({place})")
    return Sky(level, sigma, float(sky.sum() / seen.sum()))


def variance_of(image: np.ndarray, sky: Sky, depth: Depth) -> np.ndarray:
    """Variance (h, w) of a sky-limited image, in its units squared: the sky's, and source Poisson noise.

    Sky and sources are photons of one exposure, so a source as bright as the survey's sky doubles the sky's variance.
    ``depth`` knows how bright that sky is (in nJy per survey pixel); the image is in nJy per pixel of the same survey.
    The sources are those of the smoothed image where it is significant (METHOD section 4).
    """
    sky_flux = depth.sky_sigma**2 * depth.electrons_per_njy
    kernel = np.array([0.25, 0.5, 0.25])
    smooth = image - sky.level
    for axis in (0, 1):
        smooth = convolve1d(smooth, kernel, axis, mode="nearest")
    flux = np.where(smooth > _SIGNIFICANT * (kernel @ kernel) * sky.sigma, smooth, 0.0)
    return sky.sigma**2 * (1 + flux / sky_flux)


def _middle_and_scatter(values: np.ndarray) -> tuple[float, float]:
    middle = float(np.median(values)) if values.size else np.nan
    return middle, _SIGMA_PER_MAD * float(np.median(np.abs(values - middle))) if values.size else np.nan
