"""Simulated galaxies from SKIRT images (the TNG images of Bottrell et al. 2024, MNRAS 527, 6506, in idealised form).

A file holds surface brightness in AB mag/arcsec² through one filter, or one HDU a filter, of a galaxy seen by a camera;
the pixels are in pc or kpc. It is seen again from redshift z:

    flux(b, pixel) = Σ_c w_bc · I_c(pixel) · ((1 + z_0)/(1 + z))³ · K_bc · (pixel/D_A(z))²

I_c is the file's band c in maggies/arcsec² at its redshift z_0. Surface brightness per unit frequency falls as (1 +
z)⁻³ at a fixed emitted frequency (Tolman's (1 + z)⁻⁴, less the stretch of the frequency interval). w_bc interpolates
in log wavelength between the two bands that emit nearest to where b does, and K_bc is the ratio of the templates of
`jointdiff.sed` that best fit the whole galaxy, L_ν(b, z)/L_ν(c, z_0). So where the files have a band, its structure
is the simulation's; beyond them (y, or blueward of the bluest at high z) it is that of the nearest band, with the
colour of a template.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from jointdiff.errors import InputError
from jointdiff.io.fits import load_pixels, open_fits
from jointdiff.sed import emitted_fluxes
from jointdiff.simulate.galaxies import Component, SourceSettings, taper
from jointdiff.survey import filter_curve
from jointdiff.units import flux as flux_of_magnitude
from jointdiff.units import magnitude as magnitude_of_flux

MAX_SIDE = 8192
"""Most pixels on a side of one image: TNG's have 5000."""

_TRIES = 50
_OVERSAMPLING = 0.4  # largest image pixel, in stamp pixels, after binning
_WIDEST = 9 * 1.42  # kpc in an arcsecond, at most (8.7 at z = 1.6), and the diagonal of a stamp over its side
_GROUPS = "groups.csv"
_FILTERS = (
    (r"([ugriz])_SDSS", "sdss"),
    (r"SDSS[._]([ugriz])", "sdss"),
    (r"HSC[._-]([grizy])", "hsc"),
    (r"MegaCam[._]([ur])$", "cfht"),
    (r"LSST[._-]([ugrizy])", "lsst"),
)
_KNOWN = "SDSS, HSC, MegaCam's u and r, or LSST, such as g_SDSS.res"


@dataclass(frozen=True)
class Picture:
    """One galaxy through one camera. planes: filter (a key of FILTERS) → file and HDU. pixel: kpc."""

    group: str
    camera: str
    pixel: float
    redshift: float
    planes: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, eq=False)
class Light:
    """The images of a Picture: brightness (B, n, n), maggies per arcsec², its bands in the order of wavelength.

    Only the middle is kept, as much as a stamp can hold at any redshift; totals (B,) are the sums of all of it.
    emitted: log of the wavelengths at emission (B,). templates: (T,), amounts of the templates of `jointdiff.sed` that
    fit the totals.
    """

    brightness: np.ndarray
    totals: np.ndarray
    filters: tuple[str, ...]
    emitted: np.ndarray
    templates: np.ndarray


def galaxies_of(folder: Path) -> list[str]:
    """The galaxies that a folder's images show. Raises InputError as pictures_of does."""
    return [picture.group for picture in pictures_of(folder)]


@cache
def pictures_of(folder: Path) -> tuple[Picture, ...]:
    """Every galaxy and camera in a folder of FITS files, from their headers.

    A galaxy is a subhalo of a simulation (SIMTAG and SUBHALO) or a merger (SUBTAG), whatever its camera. A galaxy of
    one snapshot is the progenitor of another's: where there are several, groups.csv must say which belong together, a
    line ``file name,group`` each. Raises InputError for files that are not such images.
    """
    paths = sorted(folder.rglob("*.fits"))
    if not paths:
        raise InputError(f"library.images: no FITS file ({folder})")
    named = _read_groups(folder / _GROUPS)
    found: dict[tuple, list[tuple[str, str, int]]] = {}
    snapshots: dict[str, set] = {}
    for path in paths:
        for number, header, curve in _planes(path):
            run = str(header.get("SIMTAG", path.parent.name)).strip()
            body = str(header.get("SUBHALO", header.get("SUBTAG", path.stem))).strip()
            snapshot, camera = header.get("SNAPNUM", header.get("ISNAP", "")), str(header.get("CAMERA", "")).strip()
            if "SUBHALO" in header:
                snapshots.setdefault(run, set()).add(snapshot)
            group = named.get(path.name) or f"{run}/{body}"
            key = (group, snapshot, camera, _pixel(header, path), float(header.get("REDSHIFT", 0.0)))
            found.setdefault(key, []).append((curve, str(path), number))
    for run, seen in snapshots.items():
        if len(seen) > 1 and not named:
            listed = ", ".join(map(str, sorted(seen, key=str)))
            raise InputError(
                f"library.images: {run} at snapshots {listed}: without {_GROUPS}, of the lines 'file name,group', a "
                f"galaxy and its progenitor may fall into different splits ({folder})"
            )
    for (group, snapshot, camera, *_), planes in found.items():
        names = [curve for curve, *_ in planes]
        if len(set(names)) < len(names):
            raise InputError(
                f"library.images: {group}, snapshot {snapshot}, camera {camera} is there twice in a filter "
                f"({planes[0][1]})"
            )
    return tuple(
        Picture(group, f"{snapshot}/{camera}", pixel, redshift, tuple(sorted(planes)))
        for (group, snapshot, camera, pixel, redshift), planes in found.items()
    )


def draw_skirt(
    folder: Path,
    redshifts: tuple[float, float],
    rng: np.random.Generator,
    filters: tuple[str, ...],
    settings: SourceSettings,
) -> tuple[list[Component], dict]:
    """A galaxy of the folder at a random redshift and angle: a component for each band of its files.

    Only redshifts at which its VIS magnitude is the library's are taken. Raises InputError where none is.
    """
    import galsim

    pictures = pictures_of(folder)
    tried = []
    for _ in range(_TRIES):
        picture = pictures[rng.integers(len(pictures))]
        redshift = float(rng.uniform(*redshifts))
        light = light_of(picture, settings.stamp_sizes[-1] * settings.pixel_scale * _WIDEST)
        side = picture.pixel / kpc_per_arcsec(redshift)
        fluxes = redshifted(light, picture.redshift, redshift, side, filters)
        magnitude = float(magnitude_of_flux(fluxes[:, 0].sum()))
        if settings.magnitudes[0] <= magnitude <= settings.magnitudes[1]:
            break
        tried.append(magnitude)
    else:
        raise InputError(
            f"library.images: galaxies of VIS {min(tried):.1f} to {max(tried):.1f} between redshifts {redshifts[0]:g} "
            f"and {redshifts[1]:g}, expected {settings.magnitudes[0]:g} to {settings.magnitudes[1]:g} ({folder})"
        )
    angle, step = float(rng.uniform(0, 2 * np.pi)), int(rng.choice((-1, 1)))
    images, side = _binned(light.brightness[..., ::step], side, _OVERSAMPLING * settings.pixel_scale)
    shares = light.brightness.sum((1, 2), dtype=float) / light.totals
    psf = galsim.Gaussian(fwhm=settings.psf_fwhm)
    components = []
    for image, share, flux in zip(images, shares, fluxes, strict=True):
        pixels = galsim.Image(np.ascontiguousarray(image, dtype=float), scale=side)
        profile = galsim.InterpolatedImage(pixels, x_interpolant="linear", flux=share).rotate(angle * galsim.radians)
        components.append(Component(galsim.Convolve(profile, psf), flux))
    properties = {"kind": "galaxy", "group": picture.group, "camera": picture.camera, "redshift": redshift}
    return components, properties | {"angle": angle, "mag_VIS": magnitude}


def kpc_per_arcsec(redshift: float) -> float:
    """Transverse proper kpc in an arcsecond (Planck 2018 cosmology)."""
    from astropy.cosmology import Planck18

    return float(Planck18.kpc_proper_per_arcmin(redshift).value) / 60


def redshifted(light: Light, old: float, new: float, side: float, filters: tuple[str, ...]) -> np.ndarray:
    """Fluxes (B, len(filters)), nJy, that each band of the files gives to each filter; ``side`` of a pixel, arcsec."""
    dimmed = light.totals * flux_of_magnitude(0.0) * ((1 + old) / (1 + new)) ** 3 * side**2
    fluxes = np.zeros((len(light.filters), len(filters)))
    files = np.array([light.templates @ emitted_fluxes(name, old) for name in light.filters])
    for column, name in enumerate(filters):
        at = np.log(_wavelength(name) / (1 + new))
        weights = [np.interp(at, light.emitted, row) for row in np.eye(len(light.filters))]
        fluxes[:, column] = weights * dimmed * (light.templates @ emitted_fluxes(name, new)) / files
    return fluxes


@lru_cache(maxsize=16)
def light_of(picture: Picture, extent: float) -> Light:
    """The images of a picture, the middle ``extent`` kpc of them, and the templates that fit it.

    Raises InputError for images of different shapes, with NaN, or without light.
    """
    planes = sorted(picture.planes, key=lambda plane: _wavelength(plane[0]))
    images, totals = [], []
    for _, file, number in planes:
        image = _brightness(Path(file), number)
        images.append(_middle(image, max(2, round(extent / picture.pixel))))
        totals.append(image.sum(dtype=float))
    if len({image.shape for image in images}) > 1:
        raise InputError(f"library.images: {picture.group}: images of different shapes ({planes[0][1]})")
    filters = tuple(curve for curve, *_ in planes)
    design = np.stack([emitted_fluxes(name, picture.redshift) for name in filters])
    amounts, _ = nnls(design / np.array(totals)[:, None], np.ones(len(filters)))
    emitted = np.log([_wavelength(name) / (1 + picture.redshift) for name in filters])
    return Light(np.stack(images), np.array(totals), filters, emitted, amounts)


def _brightness(path: Path, number: int) -> np.ndarray:
    """(n, n) float32, maggies per arcsec², falling to zero at the picture's edge, which no galaxy has."""
    with open_fits(path, "library.images") as hdus:
        image = np.array(load_pixels(hdus[number], "library.images", f"{path}[{number}]", 2, MAX_SIDE**2), float)
    if np.isnan(image).any() or not np.isfinite(image).any():
        raise InputError(f"library.images: {np.isnan(image).sum()} pixels are NaN, or all are dark ({path}[{number}])")
    if image.shape[0] != image.shape[1]:
        raise InputError(
            f"library.images: {image.shape[0]} × {image.shape[1]} pixels, expected a square ({path}[{number}])"
        )
    return (10 ** (-0.4 * image) * taper(len(image))).astype(np.float32)


def _middle(image: np.ndarray, side: int) -> np.ndarray:
    """The middle ``side`` pixels, or all where there are fewer; evenness is kept, so the middle stays the middle."""
    cut = max(0, (len(image) - side) // 2)
    return image[cut : len(image) - cut, cut : len(image) - cut]


def _binned(images: np.ndarray, side: float, largest: float) -> tuple[np.ndarray, float]:
    """Images (B, n, n) averaged over blocks of pixels of at most ``largest`` arcsec, zeros around; the blocks' side."""
    factor = max(1, int(largest / side))
    missing = -images.shape[-1] % (2 * factor)
    before, after = missing // 2, missing - missing // 2
    padded = np.pad(images, ((0, 0), (before, after), (before, after)))
    n = padded.shape[-1] // factor
    return padded.reshape(len(images), n, factor, n, factor).mean((2, 4)), side * factor


def _planes(path: Path) -> Iterator[tuple[int, dict, str]]:
    """Number, header (the primary's keys included) and filter of each image of a file.

    Other filters are left out: some of TNG's files go on to the infrared. Raises InputError where none is known.
    """
    names: list[str] = []
    with open_fits(path, "library.images") as hdus:
        primary = dict(hdus[0].header)
        for number, hdu in enumerate(hdus):
            if not getattr(hdu, "is_image", False) or len(hdu.shape) != 2:
                continue
            header = primary | dict(hdu.header)
            unit = str(header.get("BUNIT", "")).replace(" ", "").lower()
            if unit not in ("abmag/arcsec2", "mag/arcsec2", "abmag/arcsec^2", "mag/arcsec^2", "abmag/arcsec**2"):
                found = header.get("BUNIT", "absent")
                told = "; realistic images have noise and a PSF of their own" if "nanomag" in unit else ""
                raise InputError(
                    f"library.images: BUNIT is {found}, expected AB mag/arcsec2 of an idealised image{told} "
                    f"({path}[{number}])"
                )
            names.append(str(header.get("FILTER", hdu.name)))
            if (curve := _filter_of(names[-1])) is not None:
                yield number, header, curve
    if not any(map(_filter_of, names)):
        told = f"filter {names[0]!r}, expected one of {_KNOWN}" if names else "no image"
        raise InputError(f"library.images: {told} ({path})")


def _filter_of(text: str) -> str | None:
    """A key of FILTERS from g_SDSS.res, SUBARU_HSC.G, CFHT_MegaCam.u or LSST.g; None for any other."""
    for pattern, survey in _FILTERS:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            return f"{survey}-{match[1].lower()}"
    return None


def _pixel(header: dict, path: Path) -> float:
    """Side of a pixel, kpc: CDELT1 in pc or kpc, else FOVSIZE (kpc) over the pixels."""
    unit, step = str(header.get("CTYPE1", header.get("CUNIT1", ""))).strip().lower(), header.get("CDELT1")
    sizes = {"pc": 1e-3, "kpc": 1.0}
    if isinstance(step, int | float) and step > 0 and unit in sizes:
        return float(step) * sizes[unit]
    field = header.get("FOVSIZE")
    if isinstance(field, int | float) and field > 0:
        return float(field) / header["NAXIS1"]
    raise InputError(f"library.images: no pixel in pc or kpc: CTYPE1 is {unit or 'absent'}, CDELT1 {step!r} ({path})")


def _read_groups(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    bad = next((row for row in rows if len(row) != 2), None)
    if bad is not None:
        raise InputError(f"library.images: {','.join(bad)!r} is not 'file name,group' ({path})")
    return {name.strip(): group.strip() for name, group in rows}


@cache
def _wavelength(name: str) -> float:
    """Mean wavelength of a filter, Å."""
    curve = filter_curve(name)
    return float(
        np.trapezoid(curve.response * curve.wavelength, curve.wavelength)
        / np.trapezoid(curve.response, curve.wavelength)
    )
