"""The only unit conversions: every tensor is nJy per pixel, every angle arcsec.

AB magnitudes follow Oke & Gunn (1983): m_AB = 31.4 - 2.5 log10(f / nJy).
"""

import math

import numpy as np

AB_ZEROPOINT_NJY = 31.4
"""AB magnitude of 1 nJy."""

SIGMA_PER_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))
"""Standard deviation of a Gaussian of unit full width at half maximum."""

ARCSEC_PER_DEGREE = 3600.0


def njy_per_count(zeropoint: float) -> float:
    """Flux in nJy of one count in an image whose AB zero point is ``zeropoint`` (mag)."""
    return 10 ** (0.4 * (AB_ZEROPOINT_NJY - zeropoint))


def magnitude(flux):
    """AB magnitude of a flux in nJy; NaN where the flux is not positive."""
    flux = np.asarray(flux, dtype=float)
    return AB_ZEROPOINT_NJY - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def magnitude_error(flux, flux_error):
    """First-order error (mag) of an AB magnitude; NaN where the flux is not positive."""
    flux = np.asarray(flux, dtype=float)
    return 2.5 / math.log(10) * np.asarray(flux_error) / np.where(flux > 0, flux, np.nan)


def flux(magnitude):
    """Flux in nJy of an AB magnitude."""
    return 10 ** (0.4 * (AB_ZEROPOINT_NJY - np.asarray(magnitude, dtype=float)))
