"""What jointdiff writes: reconstructions, true scenes and catalogs as FITS (METHOD section 9, FORMAT = 1).

Every file carries FORMAT and its provenance: how, and from which weights and seed, it was made.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table, vstack
from astropy.wcs import WCS

from jointdiff.errors import InputError
from jointdiff.io.atomic import atomic_path
from jointdiff.io.fits import MAX_CUBE, check_length, load_pixels, open_fits, write_fits
from jointdiff.io.wcs import celestial_wcs
from jointdiff.scene import Band

FORMAT = 1

PROVENANCE = {
    "version": ("VERSION", "jointdiff version"),
    "checkpoint": ("CKPTSHA", ""),
    "seed": ("SEED", "seed of the samples"),
    "method": ("METHOD", "reconstruction method"),
    "mode": ("MODE", "amortized or factorized"),
    "evaluations": ("NEVAL", "denoiser evaluations a sample"),
    "network_errors": ("NETERR", "of the network, by band"),
    "guard": ("GUARD", "samples gave way where they contradict data"),
}
"""The keys of a provenance dict, with header keyword and comment. ``checkpoint`` is its sha256, whose 64 characters
leave no room for a comment. A key may be absent or None."""

UCD = "ucd"
"""The key of a catalog column's meta that holds its UCD."""

_UNIT = "nJy/pixel"


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A sharp field in C bands.

    mean, std: (C, H, W); samples: (S, C, H, W); all float32 nJy per pixel. target_fwhm: arcsec.
    """

    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray
    bands: tuple[Band, ...]
    wcs: WCS
    target_fwhm: float
    provenance: dict


@dataclass(frozen=True, eq=False)
class Truth:
    """The noiseless scene (C, H, W), float32 nJy per pixel, behind a simulated field; target_fwhm in arcsec."""

    flux: np.ndarray
    bands: tuple[Band, ...]
    wcs: WCS
    target_fwhm: float


def write_reconstruction(
    path: str | Path,
    mean,
    std,
    samples,
    bands: Sequence[Band],
    wcs: WCS,
    target_fwhm: float,
    provenance: Mapping[str, object],
    cards: Mapping[str, tuple[float, str]] | None = None,
) -> None:
    """Write HDUs MEAN, STD (C, H, W) and SAMPLES (S, C, H, W), float32 nJy per pixel, just as passed.

    mean, std, samples: arrays or CPU tensors. wcs: celestial, of the scene's pixels. provenance: keys of PROVENANCE.
    cards: further keywords of the primary header, with values and comments.
    """
    cubes = {name: _cube(array) for name, array in (("MEAN", mean), ("STD", std), ("SAMPLES", samples))}
    assert cubes["MEAN"].shape == cubes["STD"].shape == cubes["SAMPLES"].shape[1:], "mean, std and samples differ"
    planes = {name: iter(cube.reshape(-1, *cube.shape[-2:])) for name, cube in cubes.items()}
    stream_reconstruction(path, planes, cubes["SAMPLES"].shape, bands, wcs, target_fwhm, provenance, cards)


def stream_reconstruction(
    path: str | Path,
    planes: Mapping[str, Iterator[np.ndarray]],
    shape: Sequence[int],
    bands: Sequence[Band],
    wcs: WCS,
    target_fwhm: float,
    provenance: Mapping[str, object],
    cards: Mapping[str, tuple[float, str]] | None = None,
) -> None:
    """write_reconstruction of the planes (H, W) of each HDU one after the other, of which memory holds one at a time.

    shape: (S, C, H, W) of SAMPLES.
    """
    primary = _primary(bands, target_fwhm, provenance)
    primary.header.update(cards or {})
    with atomic_path(path) as temporary:
        primary.writeto(temporary)
        for name, cube in planes.items():
            size = shape if name == "SAMPLES" else shape[1:]
            empty = np.broadcast_to(np.float32(0), size)  # for its header alone
            header = _cube_hdu(name, empty, bands, wcs, target_fwhm).header
            with closing(fits.StreamingHDU(str(temporary), header)) as hdu:
                for plane in cube:
                    hdu.write(np.asarray(plane, dtype=np.float32))


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read what write_reconstruction wrote. Raises InputError for a file that is not one, whole, of FORMAT 1."""
    path = Path(path)
    with open_fits(path, "reconstruction") as hdus:
        header = _check_format(hdus[0].header, "reconstruction", path)
        mean, wcs = _read_cube(hdus, "MEAN", 3, "reconstruction", path)
        std, _ = _read_cube(hdus, "STD", 3, "reconstruction", path)
        samples, _ = _read_cube(hdus, "SAMPLES", 4, "reconstruction", path)
    bands, fwhm = _read_bands(header, len(mean), "reconstruction", path)
    return Reconstruction(mean, std, samples, bands, wcs, fwhm, _read_provenance(header))


def write_truth(
    folder: str | Path, flux, bands: Sequence[Band], wcs: WCS, target_fwhm: float, provenance: Mapping | None = None
) -> Path:
    """Write the true scene (C, H, W), nJy per pixel, beside scene.yaml as truth.fits (HDU TRUTH); returns its path."""
    path = Path(folder) / "truth.fits"
    cube = _cube_hdu("TRUTH", _cube(flux), bands, wcs, target_fwhm)
    write_fits(path, [_primary(bands, target_fwhm, provenance or {}), cube])
    return path


def read_truth(folder: str | Path) -> Truth:
    """Read the truth.fits of a scene folder. Raises InputError for one that is missing, not whole or not FORMAT 1."""
    path = Path(folder) / "truth.fits"
    with open_fits(path, "truth") as hdus:
        header = _check_format(hdus[0].header, "truth", path)
        flux, wcs = _read_cube(hdus, "TRUTH", 3, "truth", path)
    bands, fwhm = _read_bands(header, len(flux), "truth", path)
    return Truth(flux, bands, wcs, fwhm)


def write_catalog(path: str | Path, table: Table, provenance: Mapping[str, object]) -> None:
    """Write a catalog as HDU CATALOG: columns in the table's order; units in TUNIT, descriptions, UCDs in TCOMM, TUCD.

    These are the keywords that TOPCAT reads. The table's meta becomes header keywords (APERRAD …), so its keys have at
    most 8 characters.
    """
    hdu = fits.table_to_hdu(table)
    hdu.name = "CATALOG"
    for number, name in enumerate(table.colnames, 1):
        for keyword, text in (("TCOMM", table[name].description), ("TUCD", table[name].meta.get(UCD))):
            if text:
                hdu.header[f"{keyword}{number}"] = text
    _set_provenance(hdu.header, provenance)
    write_fits(path, [fits.PrimaryHDU(), hdu])


def read_catalog(path: str | Path) -> Table:
    """Read a catalog, native byte order: units and descriptions on the columns, other header keywords in meta.

    Raises InputError for a file that is not one, whole, of FORMAT 1.
    """
    path = Path(path)
    with open_fits(path, "catalog") as hdus:
        if "CATALOG" not in hdus:
            raise InputError(f"catalog: no HDU CATALOG ({path})")
        hdu = hdus["CATALOG"]
        check_length(hdu, "catalog", str(path))
        header = _check_format(hdu.header, "catalog", path)
        stored = Table.read(hdu, character_as_bytes=False, mask_invalid=False)  # NaN is a value here, not a mask
    table = Table(
        {name: np.asarray(stored[name]).astype(stored[name].dtype.newbyteorder("=")) for name in stored.colnames}
    )
    for number, name in enumerate(table.colnames, 1):
        table[name].unit = stored[name].unit
        table[name].description = header.get(f"TCOMM{number}")
        table[name].meta.update({UCD: header[key]} if (key := f"TUCD{number}") in header else {})
    kept = {key: value for key, value in stored.meta.items() if not key.startswith(("TCOMM", "TUCD", "EXTNAME"))}
    table.meta.update(kept)
    return table


def merge_catalogs(tables: Sequence[Table]) -> Table:
    """The rows of several catalogs of the same columns, in the order given; meta keeps what all agree on."""
    assert tables, "no catalog to merge"
    assert all(table.colnames == tables[0].colnames for table in tables), "catalogs of different columns"
    common = {k: v for k, v in tables[0].meta.items() if all(table.meta.get(k) == v for table in tables)}
    merged = vstack(list(tables), join_type="exact", metadata_conflicts="silent")
    merged.meta.clear()
    merged.meta.update(common)
    return merged


def _cube(array) -> np.ndarray:
    return np.asarray(array, dtype=np.float32)


def _primary(bands: Sequence[Band], target_fwhm: float, provenance: Mapping[str, object]) -> fits.PrimaryHDU:
    primary = fits.PrimaryHDU()
    _set_provenance(primary.header, provenance)
    _set_bands(primary.header, bands, target_fwhm)
    return primary


def _cube_hdu(name: str, cube: np.ndarray, bands: Sequence[Band], wcs: WCS, target_fwhm: float) -> fits.ImageHDU:
    """An HDU of C planes, whose further axes count bands, then samples, from 1."""
    assert cube.shape[-3] == len(bands), f"{cube.shape[-3]} planes but {len(bands)} bands"
    header = wcs.to_header(relax=True)
    header["WCSAXES"] = cube.ndim
    for axis, ctype in zip(range(3, cube.ndim + 1), ("BAND", "SAMPLE"), strict=False):
        for key, value in (("CTYPE", ctype), ("CRPIX", 1.0), ("CRVAL", 1.0), ("CDELT", 1.0)):
            header[f"{key}{axis}"] = value
    header["BUNIT"] = _UNIT
    hdu = fits.ImageHDU(cube, header, name=name)
    _set_bands(hdu.header, bands, target_fwhm)
    return hdu


def _set_bands(header: fits.Header, bands: Sequence[Band], target_fwhm: float) -> None:
    header["TARGFWHM"] = (target_fwhm, "[arcsec] FWHM of the Gaussian target PSF")
    for number, band in enumerate(bands, 1):
        header[f"BAND{number}"] = (band.name, f"band of plane {number}")
        header[f"FILTER{number}"] = (band.filter, f"filter curve of plane {number}")


def _set_provenance(header: fits.Header, provenance: Mapping[str, object]) -> None:
    unknown = set(provenance) - set(PROVENANCE)
    assert not unknown, f"unknown provenance {unknown}"
    header["FORMAT"] = (FORMAT, "jointdiff file format")
    for key, (keyword, comment) in PROVENANCE.items():
        if provenance.get(key) is not None:
            header[keyword] = (provenance[key], comment)


def _read_provenance(header: fits.Header) -> dict:
    return {key: header[keyword] for key, (keyword, _) in PROVENANCE.items() if keyword in header}


def _check_format(header: fits.Header, label: str, path: Path) -> fits.Header:
    if header.get("FORMAT") != FORMAT:
        raise InputError(f"{label}: FORMAT is {header.get('FORMAT')}, this version reads {FORMAT} ({path})")
    return header


def _read_cube(hdus: fits.HDUList, name: str, ndim: int, label: str, path: Path) -> tuple[np.ndarray, WCS]:
    """Native float32 pixels and the celestial WCS of an HDU."""
    if name not in hdus:
        raise InputError(f"{label}: no HDU {name} ({path})")
    data = load_pixels(hdus[name], label, f"{path}[{name}]", ndim, MAX_CUBE)
    return data.astype(np.float32), celestial_wcs(hdus[name].header, label, f"{path}[{name}]")


def _read_bands(header: fits.Header, count: int, label: str, path: Path) -> tuple[tuple[Band, ...], float]:
    """Bands and target FWHM (arcsec)."""
    missing = [key for key in ("TARGFWHM", *(f"BAND{n}" for n in range(1, count + 1))) if key not in header]
    if missing:
        raise InputError(f"{label}: no {missing[0]} in the header ({path})")
    bands = tuple(Band(header[f"BAND{n}"], header.get(f"FILTER{n}", "")) for n in range(1, count + 1))
    return bands, float(header["TARGFWHM"])
