"""Euclid MER products of Q1: mosaic tiles with their RMS, FLAG and catalogue-PSF files, and cutouts of many HDUs.

A tile is EUC_MER_BGSUB-MOSAIC-<band>_TILE…, EUC_MER_MOSAIC-<band>-RMS_TILE…, EUC_MER_MOSAIC-<band>-FLAG_TILE… and
EUC_MER_CATALOG-PSF-<band>_TILE…, an image each (Euclid Collaboration: Romelli et al. 2025, arXiv 2503.15305). A cutout
is one file with <filter>_FLUX, <filter>_RMS and <filter>_PSF for each filter. MAGZERO is the AB zero point, ground
images are resampled to the 0.1 arcsec pixels of VIS, and PSF stamps have the same pixels.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from jointdiff.errors import InputError
from jointdiff.io.fits import FitsImage, open_fits, read_image
from jointdiff.io.observations import MAX_PSF
from jointdiff.io.surveys.product import Product, Wanted, bits, check_pixels, make_product, only_one, read_beside
from jointdiff.io.wcs import celestial_wcs, image_centre
from jointdiff.scene import Band

_FILTERS = {
    "VIS": ("VIS", "VIS"),
    **{name: ("u", "cfht-u") for name in ("MEGACAM_U", "CFIS_U")},
    **{name: ("r", "cfht-r") for name in ("MEGACAM_R", "CFIS_R")},
    **{f"{name}_{band.upper()}": (band, f"hsc-{band}") for name in ("HSC", "WISHES") for band in "gz"},
    **{name: ("i", "ps1-i") for name in ("PANSTARRS_I", "GPC_I")},
    **{f"{name}_{band.upper()}": (band, f"decam-{band}") for name in ("DECAM", "DES") for band in "griz"},
}
"""From MER's filter, or the survey in a file's name, to our band and filter curve."""

PIXEL = 0.1
"""arcsec, of every mosaic."""

_NISP = ("NIR_Y", "NIR_J", "NIR_H")

_FLAGS = (0, 1, 2, 3)
"""Bits of the FLAG mosaic that spoil a pixel: INVALID, HOT, COLD, SATUR (Euclid data products, VIS flag map)."""

_NAME = re.compile(
    r"EUC_MER_(?P<product>[A-Z-]+?)(?:-(?P<band>VIS|NIR-[YJH]|[A-Z]+-[UGRIZ]))?(?:-(?P<plane>RMS|FLAG))?_TILE"
)

_KINDS = {"BGSUB-MOSAIC": "image", "MOSAIC-RMS": "rms", "MOSAIC-FLAG": "flag", "CATALOG-PSF": "psf"}

_NOT_IMAGES = {
    "FINAL-CAT": "the MER catalogue",
    "FINAL-MORPH-CAT": "the MER morphology catalogue",
    "FINAL-CUTOUTS-CAT": "the MER catalogue of cutouts",
    "FINAL-SEGMAP": "a MER segmentation map",
    "FINAL-DEEP": "a MER catalogue",
    "BGMOD": "a MER background model",
    "GRID-PSF": "a MER grid of PSFs for sources (EUC_MER_CATALOG-PSF is the one to give)",
}


def read_euclid(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    """The bands of one field, in VIS and the ground bands that a scene can hold; NISP's are left out.

    files: one cutout of many HDUs, or the files of one tile. Raises InputError, in the words of the archive, for files
    that are something else, for a mosaic without its RMS or PSF file, and for whatever is wrong in them.
    """
    cutouts = [path for path in files if _is_cutout(path)]
    if not cutouts:
        return _read_tile(files, wanted)
    if len(files) > 1:
        raise InputError(
            f"{cutouts[0]}: a cutout of many bands is a field by itself: give it alone, not {len(files)} files"
        )
    return _read_cutout(cutouts[0], wanted)


def _is_cutout(path: Path) -> bool:
    with open_fits(path, "euclid-q1") as hdus:
        return any(hdu.name.endswith("_FLUX") for hdu in hdus)


def _read_cutout(path: Path, wanted: Wanted | None) -> tuple[Product, ...]:
    with open_fits(path, "euclid-q1") as hdus:
        filters = [hdu.name.removesuffix("_FLUX") for hdu in hdus if hdu.name.endswith("_FLUX")]
        names = {hdu.name for hdu in hdus}
    products = []
    for name in filters:
        if name in _NISP:
            continue
        band = _band(name, path)
        missing = [f"{name}_{plane}" for plane in ("RMS", "PSF") if f"{name}_{plane}" not in names]
        if missing:
            raise InputError(f"{band.name}: {name}_FLUX has no {' and no '.join(missing)} beside it ({path})")
        image = read_image(f"{path}[{name}_FLUX]", Path(), band.name, view=wanted)
        check_pixels(image.header, PIXEL, band.name, image.address)
        rms = read_beside(f"{path}[{name}_RMS]", band.name, image)
        psf = read_image(f"{path}[{name}_PSF]", Path(), band.name, MAX_PSF**2)
        products.append(
            make_product(band, image, _zeropoint(image, band.name), _variance(rms, band.name), None, psf, None)
        )
    return _each_band_once(products, path)


def _read_tile(files: Sequence[Path], wanted: Wanted | None) -> tuple[Product, ...]:
    kinds: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        match = _NAME.search(path.name)
        if match is None:
            raise InputError(
                f"{path}: neither a cutout with <filter>_FLUX images nor named as a MER tile is, EUC_MER_…_TILE…: "
                "keep the archive's name"
            )
        product, name, plane = match["product"], (match["band"] or "").replace("-", "_"), match["plane"]
        kind = _KINDS.get(f"{product}-{plane}" if plane else product)
        if kind is None:
            other = next((text for key, text in _NOT_IMAGES.items() if f"{product}-{name}".startswith(key)), None)
            told = other or f"the MER product {product}"
            expected = "BGSUB-MOSAIC, MOSAIC-…-RMS, MOSAIC-…-FLAG or CATALOG-PSF"
            raise InputError(f"{path}: this is {told}, expected {expected}")
        if name not in _NISP:
            kinds.setdefault(name, {}).setdefault(kind, []).append(path)
    products = [_read_mosaic(_band(name, Path(name)), found, wanted) for name, found in kinds.items()]
    return _each_band_once(products, files[0])


def _read_mosaic(band: Band, files: dict[str, list[Path]], wanted: Wanted | None) -> Product:
    label, archive = band.name, "EUC_MER_"
    path = only_one(files.get("image", []), label, f"mosaic ({archive}BGSUB-MOSAIC-…)")
    image = read_image(str(path), Path(), label, view=wanted)
    check_pixels(image.header, PIXEL, label, image.address)
    rms_path = only_one(files.get("rms", []), label, f"RMS mosaic ({archive}MOSAIC-…-RMS)")
    rms = read_beside(str(rms_path), label, image)
    masked = None
    if "flag" in files:
        flag_path = only_one(files["flag"], label, f"FLAG mosaic ({archive}MOSAIC-…-FLAG)")
        masked = bits(read_beside(str(flag_path), label, image).data, _FLAGS)
    notes: tuple[str, ...] = (
        () if masked is not None else ("no FLAG mosaic was given: no pixel is masked but those without an RMS",)
    )
    psf_path = only_one(files.get("psf", []), label, f"PSF file ({archive}CATALOG-PSF-…)")
    psf, distance = _nearest_psf(psf_path, label, image, wanted)
    notes += (f"PSF of the grid point {distance:.0f} arcsec from the middle",)
    return make_product(band, image, _zeropoint(image, label), _variance(rms, label), masked, psf, None, notes)


def _nearest_psf(path: Path, label: str, image: FitsImage, wanted: Wanted | None) -> tuple[FitsImage, float]:
    """The catalogue PSF nearest to what is wanted, or to the middle of the image, and how far it is, arcsec.

    HDU 1 is a mosaic of stamps of STMPSIZE pixels, HDU 2 a table of where on the sky each belongs (RA, Dec) and where
    its middle is in the mosaic (x_center, y_center, from 1).
    """
    with open_fits(path, label) as hdus:
        tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        columns = {name.lower(): name for name in tables[0].columns.names} if tables else {}
        lacking = [name for name in ("ra", "dec", "x_center", "y_center") if name not in columns]
        if lacking or "STMPSIZE" not in hdus[1].header:
            lacking += [] if len(hdus) > 1 and "STMPSIZE" in hdus[1].header else ["STMPSIZE"]
            raise InputError(f"{label}: not a MER catalogue-PSF file: no {', '.join(lacking)} ({path})")
        side = hdus[1].header["STMPSIZE"]
        ra, dec, x, y = (np.asarray(tables[0].data[columns[n]], float) for n in ("ra", "dec", "x_center", "y_center"))
    wcs = celestial_wcs(image.header, label, image.address)
    middle = wanted.centre if wanted else image_centre(wcs, image.data.shape, label, image.address)
    east = (ra - middle[0] + 180) % 360 - 180
    distance = 3600 * np.hypot(east * np.cos(np.radians(middle[1])), dec - middle[1])
    distance[~np.isfinite(x + y)] = np.inf
    nearest = int(np.nanargmin(np.where(np.isfinite(distance), distance, np.inf))) if len(distance) else 0
    if not len(distance) or not np.isfinite(distance[nearest]):
        raise InputError(f"{label}: no stamp with a position in the PSF file ({path})")
    # The middle of an odd stamp is a pixel; of an even one, the corner after it.
    top, left = (round(centre[nearest] - 1 - (side - 1) / 2) for centre in (y, x))

    def stamp(header, shape, label, place):
        if min(top, left) < 0 or top + side > shape[0] or left + side > shape[1]:
            raise InputError(f"{label}: stamp {nearest + 1} of {side} pixels is beyond the mosaic of stamps ({place})")
        return slice(top, top + side), slice(left, left + side)

    return read_image(f"{path}[1]", Path(), label, MAX_PSF**2, stamp), float(distance[nearest])


def _band(name: str, path: Path) -> Band:
    if name not in _FILTERS:
        raise InputError(f"{path}: unknown filter {name!r}, expected one of {', '.join([*_FILTERS, *_NISP])}")
    return Band(*_FILTERS[name])


def _zeropoint(image: FitsImage, label: str) -> float:
    value = image.header.get("MAGZERO")
    unit = str(image.header.get("BUNIT", ""))
    if "jy" in unit.lower():
        raise InputError(f"{label}: BUNIT is {unit}, expected counts of a MER mosaic ({image.address})")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 50:
        raise InputError(f"{label}: MAGZERO is {value!r}, expected the AB zero point of a MER mosaic ({image.address})")
    return float(value)


def _variance(rms: FitsImage, label: str) -> np.ndarray:
    negative = int((rms.data < 0).sum())
    if negative:
        raise InputError(f"{label}: rms is negative in {negative} pixels, down to {rms.data.min():.3g} ({rms.address})")
    return rms.data**2


def _each_band_once(products: Sequence[Product], path: Path) -> tuple[Product, ...]:
    names = [product.exposure.band for product in products]
    if not names:
        raise InputError(f"{path}: no VIS or ground band, only NISP's: a scene holds VIS and u to y")
    for band in names:
        same = [other.filter for other in names if other.name == band.name]
        if len(same) > 1:
            raise InputError(f"{band.name}: given twice, through {' and '.join(same)}: leave one out ({path})")
    return tuple(products)
