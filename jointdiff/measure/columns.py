"""The columns of catalogs, in one table: unit, UCD and description of each.

UCDs are IVOA UCD1+ (Cecconi et al. 2021, UCD1+ controlled vocabulary 1.4): what a quantity is, for programs to read.
"""

from typing import NamedTuple

import numpy as np
from astropy.table import Column

from jointdiff.io.products import UCD

_WAVELENGTHS = {"u": "em.opt.U", "g": "em.opt.B", "r": "em.opt.R", "i": "em.opt.I", "z": "em.opt.I", "y": "em.opt.I"}
_WAVELENGTHS |= {"Y": "em.IR.J", "J": "em.IR.J", "H": "em.IR.H"}
"""The word for the wavelengths of a band; em.opt for another, as VIS, which spans several."""


class Kind(NamedTuple):
    """What a column holds. unit: in the words of astropy; ucd: with {em} for the wavelengths of a column's band."""

    unit: str | None
    ucd: str
    text: str


_FLUX, _FLUX_ERROR = "phot.flux.density;{em}", "stat.error;phot.flux.density;{em}"
_MORPHOLOGY, _MORPHOLOGY_ERROR = "src.morph.param;{em}", "stat.error;src.morph.param;{em}"
_DEVIATION = "its posterior standard deviation"

KINDS = {
    "object_id": Kind(None, "meta.id;meta.main", "scene and number in it"),
    "scene": Kind(None, "meta.id;obs.field", "name of the scene"),
    "ra": Kind("deg", "pos.eq.ra;meta.main", "right ascension of the detection, ICRS"),
    "dec": Kind("deg", "pos.eq.dec;meta.main", "declination of the detection, ICRS"),
    "x": Kind("pix", "pos.cartesian.x;instr.pixel", "scene pixel, first at 0"),
    "y": Kind("pix", "pos.cartesian.y;instr.pixel", "scene pixel, first at 0"),
    "flux": Kind("nJy", _FLUX, "flux in the grown, deblended segment"),
    "flux_err": Kind("nJy", _FLUX_ERROR, _DEVIATION),
    "aper_flux": Kind("nJy", _FLUX, "flux in a circle of radius APERRAD arcsec"),
    "aper_flux_err": Kind("nJy", _FLUX_ERROR, _DEVIATION),
    "gauss_flux": Kind("nJy", _FLUX, "flux under a Gaussian of sigma GAUSSRAD arcsec and peak 1, as before any PSF"),
    "gauss_flux_err": Kind("nJy", _FLUX_ERROR, _DEVIATION),
    "mag": Kind("mag", "phot.mag;{em}", "AB magnitude of flux; NaN if negative"),
    "mag_err": Kind("mag", "stat.error;phot.mag;{em}", "its first-order error"),
    "flux_ml": Kind("nJy", _FLUX, "maximum-likelihood flux from this band's data and the VIS template, no prior"),
    "flux_ml_err": Kind("nJy", _FLUX_ERROR, "its error"),
    "chi2": Kind(None, "stat.fit.chi2;{em}", "reduced chi-square of the residual under the source"),
    "flux_cov": Kind("nJy2", "stat.covariance;phot.flux.density", "posterior covariance of flux between "),
    "r50": Kind("arcsec", "phys.angSize;{em}", "radius of half the segment's VIS flux, at the target PSF"),
    "e1": Kind(None, "src.ellipticity;{em}", "VIS ellipticity (a-b)/(a+b) cos 2 phi, phi from +x to +y"),
    "e2": Kind(None, "src.ellipticity;{em}", "VIS ellipticity (a-b)/(a+b) sin 2 phi, phi from +x to +y"),
    "r50_err": Kind("arcsec", "stat.error;phys.angSize;{em}", "posterior standard deviation of r50"),
    "e1_err": Kind(None, "stat.error;src.ellipticity;{em}", "posterior standard deviation of e1"),
    "e2_err": Kind(None, "stat.error;src.ellipticity;{em}", "posterior standard deviation of e2"),
    "position_angle": Kind("deg", "pos.posAng", "of the major axis of (e1, e2), from north to east, 0 to 180"),
    "sersic_n": Kind(None, _MORPHOLOGY, "Sersic index of the model that, convolved with the target PSF, fits best"),
    "concentration": Kind(None, _MORPHOLOGY, "5 log10(r80/r20), at the target PSF"),
    "asymmetry": Kind(
        None, _MORPHOLOGY, "under a turn by 180 degrees, at the target PSF; noise of the samples raises it"
    ),
    "gini": Kind(None, _MORPHOLOGY, "Gini coefficient of the pixels, at the target PSF"),
    "m20": Kind(None, _MORPHOLOGY, "log10 of the brightest 20 percent's share of the second moment, at the target PSF"),
    **{
        f"{kind}_err": Kind(None, _MORPHOLOGY_ERROR, f"{_DEVIATION}, as sampled: no factor is fitted for it")
        for kind in ("sersic_n", "concentration", "asymmetry", "gini", "m20")
    },
    "sersic_flagged": Kind(None, "meta.number", "samples, of MORPHNUM, whose fit statmorph flags; -1: not measured"),
    "morphology_flagged": Kind(None, "meta.number", "the same for its other indices; -1: not measured, below MORPHSNR"),
    "sigma": Kind(None, "stat.snr", "how much no sample explains, in deviations of a Gaussian"),
    "size": Kind("arcsec", "phys.angSize", "FWHM of a blob or a patch, radius of a ring, before the PSF"),
    "shape": Kind(
        None, "meta.note", "what stands out most: a blob, a ring, a patch of no known shape, or of a texture"
    ),
    "band": Kind(None, "meta.id;instr.bandpass", "in which band; all: in all together"),
    "flags": Kind(None, "meta.code.qual", "sum of the bits that the header explains: FLAG1, FLAG2 ..."),
}
"""By name, without the band that may follow it."""


def column(kind: str, values: np.ndarray, band: str = "", more: str = "") -> Column:
    """A column of that kind, named after its band if it is of one. more: what follows the description."""
    unit, ucd, text = KINDS[kind]
    return Column(
        values,
        name=f"{kind}_{band}" if band else kind,
        unit=unit,
        description=(f"{band}: " if band else "") + text + more,
        meta={UCD: ucd.format(em=_WAVELENGTHS.get(band, "em.opt"))},
    )
