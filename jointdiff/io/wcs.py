"""From FITS world coordinates to the affine Grid, and back.

The sky axes of a Grid are the standard coordinates (y = north, x = east), arcsec, of the gnomonic projection about
one tangent point (Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3). Positions are ICRS.
"""

import math
import warnings

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, NoConvergence, WcsError

from jointdiff.errors import InputError
from jointdiff.io.fits import one_line
from jointdiff.scene import Grid, pair_of_pairs
from jointdiff.units import ARCSEC_PER_DEGREE

MAX_DISTORTION = 0.005
"""Largest distance (arcsec) of a pixel from the affine grid that stands for its WCS."""


def celestial_wcs(header: fits.Header, label: str, place: str) -> WCS:
    """The celestial WCS of an image's last two axes (of a cube, each plane's).

    Raises InputError where there is none, it is singular, or its CD and PC matrices disagree.
    """
    header = _one_matrix(header, label, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # dates without a time, which no position needs
        try:
            wcs = WCS(header, naxis=2)
        except (WcsError, ValueError, MemoryError, KeyError) as error:
            raise InputError(f"{label}: the header's WCS is not valid: {one_line(error)} ({place})") from error
    if not wcs.has_celestial:
        raise InputError(f"{label}: no celestial WCS in the header ({place})")
    return wcs


def _one_matrix(header: fits.Header, label: str, place: str) -> fits.Header:
    """The header with the CD matrix alone where it has PC as well, as Euclid MER cutouts do and FITS forbids."""
    axes = [(i, j) for i in (1, 2) for j in (1, 2)]
    if not any(f"CD{i}_{j}" in header for i, j in axes):
        return header
    header = header.copy()
    cd = np.array([header.get(f"CD{i}_{j}", 0.0) for i, j in axes])
    pc = np.array([header.get(f"CDELT{i}", 1.0) * header.get(f"PC{i}_{j}", float(i == j)) for i, j in axes])
    if any(f"PC{i}_{j}" in header for i, j in axes) and not np.allclose(cd, pc, rtol=1e-6, atol=1e-6 * abs(cd).max()):
        raise InputError(f"{label}: the header's CD and PC matrices disagree: remove one ({place})")
    for key in [f"PC{i}_{j}" for i, j in axes] + ["CDELT1", "CDELT2"]:
        header.remove(key, ignore_missing=True)
    return header


def sky_position(wcs: WCS, pixels, label: str, place: str) -> np.ndarray:
    """ICRS (ra, dec) in degrees, (…, 2), of pixels (…, 2) given as (y, x)."""
    y, x = np.moveaxis(np.asarray(pixels, dtype=float), -1, 0)
    try:
        sky = wcs.pixel_to_world(x, y).icrs
    except (WcsError, NoConvergence, ValueError) as error:
        raise InputError(f"{label}: the header's WCS is not valid: {one_line(error)} ({place})") from error
    position = np.stack([sky.ra.deg, sky.dec.deg], -1)
    if not np.isfinite(position).all():
        raise InputError(f"{label}: pixels fall outside the WCS's projection ({place})")
    return position


def direction_angle(wcs: WCS, pixels, phi, label: str, place: str) -> np.ndarray:
    """Position angle (…), degrees from north to east, 0 to 180, of the axis at phi (…) at pixels (…, 2), (y, x).

    phi: radians, from +x (columns) to +y (rows). NaN where phi is.
    """
    pixels, phi = np.asarray(pixels, dtype=float), np.asarray(phi, dtype=float)
    step = np.nan_to_num(np.stack([np.sin(phi), np.cos(phi)], -1))
    ends = [np.moveaxis(sky_position(wcs, pixels + way * step, label, place), -1, 0) for way in (-1, 1)]
    start, end = (SkyCoord(*end, unit="deg") for end in ends)
    return np.where(np.isfinite(phi), start.position_angle(end).deg % 180, np.nan)


def tangent_plane(position, centre) -> np.ndarray:
    """Standard coordinates (…, 2) = (y north, x east), arcsec, of (ra, dec) (…, 2) about ``centre``, in degrees.

    NaN for a position 90 degrees or more from the centre, which the plane does not hold.
    """
    ra, dec = np.moveaxis(np.radians(np.asarray(position, dtype=float)), -1, 0)
    ra0, dec0 = np.radians(centre)
    cosine = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(ra - ra0)
    cosine = np.where(cosine > 0, cosine, np.nan)
    east = np.cos(dec) * np.sin(ra - ra0) / cosine
    north = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(ra - ra0)) / cosine
    return np.degrees(np.stack([north, east], -1)) * ARCSEC_PER_DEGREE


def image_centre(wcs: WCS, shape: tuple[int, int], label: str, place: str) -> tuple[float, float]:
    """ICRS (ra, dec), degrees, of the middle of an image."""
    ra, dec = sky_position(wcs, [(shape[0] - 1) / 2, (shape[1] - 1) / 2], label, place)
    return float(ra), float(dec)


def fit_grid(wcs: WCS, shape: tuple[int, int], centre: tuple[float, float], label: str, place: str) -> Grid:
    """The affine grid, in the tangent plane about ``centre`` (ra, dec in degrees), nearest to an image's WCS.

    Least squares over the corners, edge midpoints and middle. Raises InputError where any of them lies more than
    MAX_DISTORTION from the affine, or the pixels have no area.
    """
    middle = (np.asarray(shape) - 1) / 2
    lattice = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(-1, 2) * np.maximum(middle, 0.5)
    sky = tangent_plane(sky_position(wcs, middle + lattice, label, place), centre)
    design = np.column_stack([lattice, np.ones(len(lattice))])
    affine = np.linalg.lstsq(design, sky, rcond=None)[0] if np.isfinite(sky).all() else np.full((3, 2), np.nan)
    residual = np.abs(np.hypot(*(sky - design @ affine).T)).max()
    if not residual <= MAX_DISTORTION:
        raise InputError(
            f"{label}: its WCS is {1000 * residual:.1f} mas from an affine grid, at most "
            f"{1000 * MAX_DISTORTION:.0f} allowed: resample it or cut a smaller field ({place})"
        )
    # Float64 degrees are good to 1e-10 arcsec; without their noise, aligned grids are aligned exactly.
    matrix = np.round(affine[:2].T, 10) + 0.0
    if not abs(np.linalg.det(matrix)) > 0:
        raise InputError(f"{label}: the pixels of its WCS have no area ({place})")
    (yy, yx), (xy, xx) = matrix.tolist()
    y, x = np.round(affine[2] - matrix @ middle, 9).tolist()
    return Grid(shape, ((yy, yx), (xy, xx)), (y, x))


def finer(grid: Grid, scale: float) -> Grid:
    """The largest grid of square pixels of ``scale`` arcsec inside another, its axes and its middle the same."""
    rows, columns = (max(1, math.floor(n * grid.scale / scale + 1e-6)) for n in grid.shape)
    matrix = np.asarray(grid.matrix) * (scale / grid.scale)
    middle = np.asarray(grid.matrix) @ ((np.asarray(grid.shape) - 1) / 2) + grid.origin
    y, x = (middle - matrix @ [(rows - 1) / 2, (columns - 1) / 2]).tolist()
    return Grid((rows, columns), pair_of_pairs(matrix), (y, x))


def overlaps(a: Grid, b: Grid) -> bool:
    """Whether two grids share any sky: the separating-axis test for two parallelograms."""
    return _spans(a, b) and _spans(b, a)


def _spans(a: Grid, b: Grid) -> bool:
    """Whether ``b``'s extent along the axes of ``a``, in pixels of ``a``, meets that of ``a``."""
    corners = np.array([(i * b.shape[0] - 0.5, j * b.shape[1] - 0.5) for i in (0, 1) for j in (0, 1)])
    seen = a.locate(corners @ np.asarray(b.matrix).T + b.origin)
    return bool(np.all(seen.max(0) > -0.5) and np.all(seen.min(0) < np.asarray(a.shape) - 0.5))


def tangent_wcs(grid: Grid, centre: tuple[float, float]) -> WCS:
    """The TAN WCS of a grid whose sky origin lies at ``centre`` = (ra, dec), ICRS degrees."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = centre
    wcs.wcs.crpix = 1 + grid.locate([0.0, 0.0])[::-1]
    wcs.wcs.cd = np.asarray(grid.matrix)[::-1, ::-1] / ARCSEC_PER_DEGREE
    wcs.wcs.set()
    return wcs
