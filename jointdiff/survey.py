"""What the surveys are: numbers from surveycodex, filter curves from speclite.

surveycodex gives PSF width, sky brightness, zero point and exposure time (each with its reference);
speclite gives the filter curves, atmosphere and detector included.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from jointdiff.errors import InputError
from jointdiff.units import AB_ZEROPOINT_NJY

BANDS = ("VIS", "u", "g", "r", "i", "z", "y")
"""The band names, from METHOD section 1."""

FILTERS = {
    "VIS": "Euclid-VIS",
    "cfht-u": "cfht_megacam-u",
    "cfht-r": "cfht_megacam-r",
    **{f"hsc-{band}": f"hsc2017-{band}" for band in "gzy"},
    # The r and i filters were replaced in 2016 by r2 and i2, which took most of the survey.
    **{f"hsc-{band}": f"hsc2017-{band}2" for band in "ri"},
    **{f"lsst-{band}": f"lsst2023-{band}" for band in "ugrizy"},
    # Euclid's ground partners beside HSC and CFHT: DES in the south, Pan-STARRS in the north.
    **{f"decam-{band}": f"decam2014-{band}" for band in "griz"},
    "ps1-i": "panstarrs-i",
    # What simulated images of galaxies are made through.
    **{f"sdss-{band}": f"sdss2010-{band}" for band in "ugriz"},
}
"""The curve that speclite holds for each filter name that a scene file may use."""

_SURVEYS = {"euclid": "Euclid_VIS", "hsc": "HSC", "lsst": "LSST"}

# surveycodex 1.3 lists the 565 s of one dither for Euclid VIS; the Wide Survey stacks four
# (Euclid Collaboration: Scaramella et al. 2022, A&A 662, A112, section 4). With four, the sky noise
# is 1.7 nJy a pixel, as in the Q1 RMS maps (1.8); with one it would be 3.4.
_DITHERS = {"euclid": 4}


@dataclass(frozen=True)
class Depth:
    """How deep one survey is in one band.

    fwhm: typical PSF full width at half maximum, arcsec.
    sky_sigma: sky noise, nJy per survey pixel.
    electrons_per_njy: detected electrons of 1 nJy in the whole exposure (for source Poisson noise).
    """

    fwhm: float
    sky_sigma: float
    electrons_per_njy: float

    def poisson_variance(self, flux):
        """Source Poisson variance (nJy²) of a noiseless flux (nJy per pixel)."""
        return flux / self.electrons_per_njy


@dataclass(frozen=True)
class Survey:
    """One survey: its name, pixel scale (arcsec) and the depth of each of its bands."""

    name: str
    pixel_scale: float
    depths: dict[str, Depth]


@cache
def load_survey(name: str) -> Survey:
    """The survey ``name``: euclid, hsc or lsst.

    Raises InputError for another name.
    """
    if name not in _SURVEYS:
        raise InputError(f"unknown survey {name!r}: expected one of {', '.join(_SURVEYS)}")
    from surveycodex import get_survey

    source = get_survey(_SURVEYS[name])
    scale = float(source.pixel_scale.to_value("arcsec"))
    depths = {}
    for code in source.available_filters:
        entry = source.get_filter(code)
        seconds = entry.full_exposure_time.to_value("s") * _DITHERS.get(name, 1)
        zeropoint = entry.zeropoint.value  # mag of 1 electron per second
        sky = 10 ** (0.4 * (zeropoint - entry.sky_brightness.value)) * scale**2 * seconds
        gain = 10 ** (0.4 * (zeropoint - AB_ZEROPOINT_NJY)) * seconds
        band = "VIS" if code == "IE" else code
        depths[band] = Depth(float(entry.psf_fwhm.to_value("arcsec")), float(np.sqrt(sky) / gain), float(gain))
    return Survey(name, scale, depths)


@cache
def filter_curve(name: str):
    """The speclite FilterResponse of the filter ``name`` (a key of FILTERS).

    Raises InputError for an unknown filter.
    """
    if name not in FILTERS:
        raise InputError(f"unknown filter {name!r}: expected one of {', '.join(FILTERS)}")
    from speclite.filters import load_filter

    return load_filter(FILTERS[name])
