"""HSC PDR3 and Rubin/LSST coadds: exposures of the LSST Science Pipelines, whole or cut out, and their PSF images.

An exposure has its header in HDU 0 and image, mask and variance in HDUs 1 to 3; the planes of a cutout may be empty.
Mask bits are named in the mask's header (MP_SAT = 1 …). HSC's zero point is FLUXMAG0, the counts of AB magnitude 0
(Aihara et al. 2022, PASJ 74, 247); Rubin's coadds are in nJy (dp1.lsst.io). A PSF image is a stamp on the coadd's
pixels without a sky WCS: HSC's PSF picker serves it, for Rubin it is psf.computeKernelImage(position).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, open_fits, read_image
from jointdiff.io.observations import MAX_PSF
from jointdiff.io.surveys.product import Product, Wanted, bits, check_pixels, make_product, read_beside
from jointdiff.scene import Band
from jointdiff.survey import Depth, load_survey
from jointdiff.units import AB_ZEROPOINT_NJY

_BAD = ("BAD", "SAT", "NO_DATA", "UNMASKEDNAN", "SUSPECT", "VIGNETTED", "STREAK")
"""Mask planes that spoil a pixel of a coadd; those that are repaired in it (INTRP, CR) or only say what is there
(DETECTED, BRIGHT_OBJECT) do not."""


@dataclass(frozen=True)
class _Archive:
    """How a survey's files are named: its name, bands, and a pattern with the band in a file's name."""

    name: str
    survey: str
    bands: str
    pattern: re.Pattern


_HSC = _Archive("hsc-pdr3", "hsc", "grizy", re.compile(r"HSC-([GRIZY])2?(?![A-Z0-9])", re.IGNORECASE))
_LSST = _Archive("lsst", "lsst", "ugrizy", re.compile(r"(?:^|[_\W])(?:band|lsst)?_?([ugrizy])(?=[_.\W]|$)"))


def read_hsc(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    """The bands of one field from HSC PDR3 cutouts (or patches) and PSF-picker files, one of each a band.

    Raises InputError for a file that is neither, a band without an image or PSF, and whatever is wrong in them.
    """
    return _read(files, wanted, _HSC)


def read_lsst(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    """The bands of one field from Rubin deep coadds (or cutouts of them) and PSF images, one of each a band.

    Raises InputError for a file that is neither, a band without an image or PSF, and whatever is wrong in them.
    """
    return _read(files, wanted, _LSST)


def _read(files: Sequence[Path], wanted: Wanted | None, archive: _Archive) -> tuple[Product, ...]:
    found: dict[tuple[str, str], Path] = {}
    for path in files:
        with open_fits(path, archive.name) as hdus:
            kind, header = _kind(hdus, path, archive), hdus[0].header.copy()
        band = _band_of(header, path, archive)
        if (band, kind) in found:
            raise InputError(f"{band}: two files are its {kind}: {found[band, kind]}, {path}")
        found[band, kind] = path
    products = []
    for band in dict.fromkeys(band for band, _ in found):
        for kind, other in (("image", "PSF"), ("PSF", "image")):
            if (band, kind) not in found:
                raise InputError(f"{band}: its {other} was given, but no {kind} ({found[band, other]})")
        products.append(_read_band(band, found[band, "image"], found[band, "PSF"], wanted, archive))
    return tuple(products)


def _kind(hdus: fits.HDUList, path: Path, archive: _Archive) -> str:
    """Whether a file is an "image" or a "PSF"."""
    images = [hdu for hdu in hdus if hdu.is_image and len(hdu.shape) == 2 and 0 not in hdu.shape]
    if not images:
        told = "a catalogue" if any(isinstance(hdu, fits.BinTableHDU) for hdu in hdus) else "no image"
        raise InputError(f"{archive.name}: {told}: expected a coadd, a cutout of one, or a PSF image ({path})")
    if "CTYPE1" in images[0].header and images[0].header["CTYPE1"].startswith("RA"):
        check_pixels(images[0].header, load_survey(archive.survey).pixel_scale, archive.name, str(path))
        return "image"
    if max(images[0].shape) <= MAX_PSF:
        return "PSF"
    raise InputError(f"{archive.name}: an image without a sky WCS, and too large for a PSF ({path})")


def _band_of(header: fits.Header, path: Path, archive: _Archive) -> str:
    """From the header's FILTER or BAND (g, HSC-G, r2, i_sim_1.4, LSST-r), else from the file's name."""
    for key in ("FILTER", "BAND"):
        text = str(header.get(key, "")).strip()
        match = re.fullmatch(rf"(?:{archive.survey}-)?([A-Z])(?:2|_.*)?", text, re.IGNORECASE)
        if match and match[1].lower() in archive.bands:
            return match[1].lower()
        if text:
            raise InputError(f"{archive.name}: filter {text!r}, expected one of {', '.join(archive.bands)} ({path})")
    names = {name.lower() for name in archive.pattern.findall(path.name) if name.lower() in archive.bands}
    if len(names) != 1:
        known = "several" if names else "none"
        example = "HSC-G" if archive is _HSC else "psf_g.fits"
        raise InputError(f"{archive.name}: no FILTER in the header and {known} in its name, such as {example} ({path})")
    return names.pop()


def _read_band(name: str, path: Path, psf_path: Path, wanted: Wanted | None, archive: _Archive) -> Product:
    with open_fits(path, name) as hdus:
        first, planes = hdus[0].header.copy(), [_plane(hdu) for hdu in hdus]
    number = planes.index(True)  # _kind saw one
    image = read_image(f"{path}[{number}]", Path(), name, view=wanted)
    has_mask, has_variance = (planes[number + step : number + step + 1] == [True] for step in (1, 2))
    notes: list[str] = []
    masked: np.ndarray | None = None
    variance: np.ndarray | Depth = load_survey(archive.survey).depths[name]
    if has_mask:
        masked = _masked(read_beside(f"{path}[{number + 1}]", name, image))
    else:
        notes.append("no mask plane: no pixel is masked but those that are not finite")
    if has_variance:
        plane = read_beside(f"{path}[{number + 2}]", name, image)
        variance = plane.data
        if (variance < 0).any():
            raise InputError(f"{name}: variance is negative, down to {np.nanmin(variance):.3g} ({plane.address})")
    psf = read_image(str(psf_path), Path(), name, MAX_PSF**2)
    band = Band(name, f"{archive.survey}-{name}")
    return make_product(band, image, _zeropoint(first, image, name), variance, masked, psf, None, notes)


def _plane(hdu) -> bool:
    return bool(getattr(hdu, "is_image", False)) and len(hdu.shape) == 2 and 0 not in hdu.shape


def _masked(mask: FitsImage) -> np.ndarray:
    planes = {key[3:].upper(): value for key, value in mask.header.items() if key.upper().startswith("MP_")}
    return bits(mask.data, [planes[name] for name in _BAD if name in planes])


def _zeropoint(first: fits.Header, image: FitsImage, label: str) -> float:
    """AB mag of one count: of a nJy where the image is in nJy, else from FLUXMAG0."""
    unit = str(image.header.get("BUNIT", first.get("BUNIT", ""))).strip()
    if unit.lower() == "njy":
        return AB_ZEROPOINT_NJY
    value = first.get("FLUXMAG0", image.header.get("FLUXMAG0"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(
            f"{label}: BUNIT is {unit or 'absent'} and FLUXMAG0 is {value!r}: no zero point ({image.address})"
        )
    return 2.5 * math.log10(value)
