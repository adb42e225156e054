"""Sérsic index, concentration, asymmetry, Gini and M20 by statmorph (Rodriguez-Gomez et al. 2019, MNRAS 483, 4140).

Concentration 5 log10(r80/r20) and asymmetry follow Conselice (2003, ApJS 147, 1), Gini and M20 Lotz et al. (2004, AJ
128, 163). All are of images at the target PSF, which is not taken out, but for the Sérsic fit, whose model is convolved
with it. Segments are the same for every sample and for a truth, so only the pixels differ. statmorph comes with the
extra ``morphology``, and takes some 0.15 s a source and sample.
"""

import math
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from jointdiff.errors import InputError
from jointdiff.measure.detection import Segments
from jointdiff.units import SIGMA_PER_FWHM

INDICES = ("sersic_n", "concentration", "asymmetry", "gini", "m20")
"""What is measured, in statmorph's names."""

MIN_SNR = 20.0
"""Sources are measured from this signal to noise of their VIS aperture flux on; below it the indices are noise."""

_BAD = 2
"""statmorph's flag of a bad measurement; 1 is suspect, 4 a failure. The flag of a Sérsic fit is 0 if all went well."""


@dataclass(frozen=True)
class Morphology:
    """Of K sources on S images. values: (S, K, 5), in the order of INDICES, NaN where flagged or not measured.

    flagged: (S, K, 5), what statmorph flags: the four indices together, the Sérsic fit by itself. measured: (K,).
    """

    values: np.ndarray
    flagged: np.ndarray
    measured: np.ndarray


def require_statmorph(key: str) -> None:
    """Raises InputError, for what asked for it, where statmorph is not installed."""
    if find_spec("statmorph") is None:
        raise InputError(f"{key}: statmorph is not installed: pip install 'jointdiff[morphology]'")


def measure_morphology(
    images: np.ndarray, segments: Segments, chosen: np.ndarray, target_fwhm: float, scale: float
) -> Morphology:
    """The indices of the ``chosen`` (K,) sources on images (S, H, W), of pixels of ``scale`` arcsec.

    target_fwhm: arcsec, of the images' Gaussian PSF.
    """
    from statmorph import SourceMorphology

    class Indices(SourceMorphology):
        """Without what is not asked for, which takes half of the time, and whose failures the one flag would tell of.

        Nor is the level of the sky compared with its noise: a true sky has none, but it has the wings of galaxies.
        """

        sky_mean = 0.0
        smoothness = multimode = intensity = deviation = rms_asymmetry2 = outer_asymmetry = shape_asymmetry = math.nan

    shape = (len(images), len(segments), len(INDICES))
    values, flagged = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    settings = {"psf": _gaussian(SIGMA_PER_FWHM * target_fwhm / scale), "n_sigma_outlier": 0}  # no pixel is broken
    for s, image in enumerate(np.asarray(images, dtype=float)):
        even = np.ones_like(image)  # every pixel counts alike in the fit: a truth has no noise to weigh it by
        for k in np.flatnonzero(chosen):
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")  # what is wrong, its flags say
                    found = Indices(image, segments.labels, int(k) + 1, weightmap=even, **settings)
            except Exception:  # it asserts, divides and indexes on sources that are too small or too odd
                flagged[s, k] = True
                continue
            row = np.array([found[name] for name in INDICES], dtype=float)
            bad = np.full(len(INDICES), found.flag >= _BAD) | ~np.isfinite(row)
            bad[INDICES.index("sersic_n")] = found.flag_sersic > 0 or not np.isfinite(row[0])
            values[s, k], flagged[s, k] = np.where(bad, np.nan, row), bad
    return Morphology(values, flagged, np.asarray(chosen, dtype=bool))


def _gaussian(sigma: float) -> np.ndarray:
    """A PSF stamp of odd sides, sum 1; sigma in pixels."""
    reach = int(np.ceil(4 * sigma))
    profile = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    stamp = np.outer(profile, profile)
    return stamp / stamp.sum()
