"""Grids against astropy's and GalSim's world coordinates: scale, rotation, parity, position."""

import astropy.units as u
import galsim
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from jointdiff.io.scene_files import read_field
from jointdiff.io.wcs import (
    celestial_wcs,
    direction_angle,
    fit_grid,
    image_centre,
    overlaps,
    sky_position,
    tangent_plane,
    tangent_wcs,
)
from jointdiff.scene import Grid

CENTRE = (266.3, 65.94)
MAS = 1e-3
PIXELS = np.array([[0, 0], [0, 99], [99, 0], [99, 99], [12.25, 70.5], [49.5, 49.5]])  # (y, x)


def _grid(angle: float, flip: bool, scale: float = 0.1, shape=(100, 100)) -> Grid:
    """Turned by ``angle``; east is left (as on the sky) or, flipped, right; its middle off the tangent point."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.diag([1, 1 if flip else -1])
    (yy, yx), (xy, xx) = matrix.tolist()
    y, x = (-matrix @ [30.0, 80.0]).tolist()
    return Grid(shape, ((yy, yx), (xy, xx)), (y, x))


def _sky(grid: Grid, pixels=PIXELS) -> np.ndarray:
    return pixels @ np.asarray(grid.matrix).T + grid.origin


def _galsim_sky(wcs: WCS, pixels=PIXELS) -> np.ndarray:
    """(ra, dec), degrees, from GalSim's own TAN projection of the header."""
    galsim_wcs = galsim.FitsWCS(header=galsim.FitsHeader(wcs.to_header()))
    positions = [galsim_wcs.toWorld(galsim.PositionD(x + 1, y + 1)) for y, x in pixels]
    return np.array([[p.ra.deg, p.dec.deg] for p in positions])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5])
def test_tangent_wcs_puts_pixels_where_galsim_does(angle, flip):
    grid = _grid(angle, flip)
    centre = galsim.CelestialCoord(CENTRE[0] * galsim.degrees, CENTRE[1] * galsim.degrees)
    for (ra, dec), (north, east) in zip(_galsim_sky(tangent_wcs(grid, CENTRE)), _sky(grid), strict=True):
        west, up = centre.project(galsim.CelestialCoord(ra * galsim.degrees, dec * galsim.degrees))
        assert up.deg * 3600 == pytest.approx(north, abs=1e-6)
        assert west.deg * 3600 == pytest.approx(-east, abs=1e-6)  # GalSim's u points west


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5])
def test_grid_to_wcs_and_back(angle, flip):
    grid = _grid(angle, flip, shape=(60, 80))
    header = tangent_wcs(grid, CENTRE).to_header()
    back = fit_grid(celestial_wcs(header, "g", "file"), grid.shape, CENTRE, "g", "file")
    np.testing.assert_allclose(back.matrix, grid.matrix, rtol=0, atol=1e-10)
    np.testing.assert_allclose(back.origin, grid.origin, rtol=0, atol=1e-8)


def test_north_and_east():
    """One pixel up is north and one left is east on a sky image; astropy's offsets have the same signs."""
    grid = _grid(0.0, flip=False)
    wcs = tangent_wcs(grid, CENTRE)
    middle, up, left = (wcs.pixel_to_world(x, y) for x, y in ((50, 50), (50, 51), (49, 50)))
    assert middle.spherical_offsets_to(up)[1].arcsec == pytest.approx(0.1, abs=1e-5)
    assert middle.spherical_offsets_to(left)[0].arcsec == pytest.approx(0.1, abs=1e-5)
    assert np.sign(np.linalg.det(grid.matrix)) == -1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5])
def test_position_angles_are_astropys(angle, flip):
    """Towards a star at a known position angle, whatever the turn and the parity of the pixels."""
    wcs, at = tangent_wcs(_grid(angle, flip), CENTRE), np.array([[49.0, 20.0]])
    for expected in (0.0, 30.0, 100.0, 179.0):
        star = wcs.pixel_to_world(at[0, 1], at[0, 0]).directional_offset_by(expected * u.deg, 0.1 * u.arcsec)
        x, y = wcs.world_to_pixel(star)
        phi = np.arctan2(y - at[:, 0], x - at[:, 1])
        for axis in (phi, phi + np.pi):  # an axis has no direction
            found = direction_angle(wcs, at, axis, "g", "file")[0]
            assert np.sin(np.radians(found - expected)) == pytest.approx(0, abs=1e-5) and 0 <= found < 180
    assert np.isnan(direction_angle(wcs, at, np.array([np.nan]), "g", "file")).all()


def test_tangent_plane_is_the_gnomonic_projection():
    """Against GalSim's, to a nanoarcsecond near the centre, and undefined from 90 degrees on."""
    centre = galsim.CelestialCoord(CENTRE[0] * galsim.degrees, CENTRE[1] * galsim.degrees)
    for ra, dec in ((266.31, 65.93), (250.0, 70.0), (266.3, 89.999), (200.0, 30.0)):
        west, north = centre.project(galsim.CelestialCoord(ra * galsim.degrees, dec * galsim.degrees))
        expected = np.array([north.deg, -west.deg]) * 3600
        np.testing.assert_allclose(tangent_plane([ra, dec], CENTRE), expected, rtol=1e-12, atol=1e-9)
    assert np.isnan(tangent_plane([CENTRE[0] + 180, -CENTRE[1]], CENTRE)).all()


@pytest.mark.parametrize("projection", ["TAN", "SIN", "ZEA", "STG"])
def test_other_projections_and_frames_agree_to_a_mas(projection):
    """The affine stands for the WCS: 100 pixels of 0.1 arcsec, 2 arcmin from the projection's centre."""
    header = fits.Header(
        {
            "CTYPE1": f"GLON-{projection}",
            "CTYPE2": f"GLAT-{projection}",
            "CRVAL1": 95.8,
            "CRVAL2": 29.5,
            "CRPIX1": -1000.0,
            "CRPIX2": 700.0,
            "CD1_1": -0.1 / 3600,
            "CD1_2": 0.0,
            "CD2_1": 0.0,
            "CD2_2": 0.1 / 3600,
        }
    )
    wcs = celestial_wcs(header, "g", "file")
    centre = image_centre(wcs, (100, 100), "g", "file")
    grid = fit_grid(wcs, (100, 100), centre, "g", "file")
    truth = SkyCoord(*WCS(header).all_pix2world(PIXELS[:, 1], PIXELS[:, 0], 0), unit="deg", frame="galactic").icrs
    model = tangent_wcs(grid, centre).pixel_to_world(PIXELS[:, 1], PIXELS[:, 0])
    assert model.separation(truth).max() < 1 * u.mas
    assert not np.allclose(grid.matrix, np.diag([0.1, -0.1]), atol=0.01)  # galactic north is not ours


def test_latitude_first():
    """Axes are told by CTYPE, not by their order."""
    header = tangent_wcs(_grid(0.3, False), CENTRE).to_header()
    swapped = fits.Header(
        {
            "CTYPE1": "DEC--TAN",
            "CTYPE2": "RA---TAN",
            "CRVAL1": header["CRVAL2"],
            "CRVAL2": header["CRVAL1"],
            "CRPIX1": header["CRPIX1"],
            "CRPIX2": header["CRPIX2"],
            "CD1_1": header["PC2_1"] * header["CDELT2"],
            "CD1_2": header["PC2_2"] * header["CDELT2"],
            "CD2_1": header["PC1_1"] * header["CDELT1"],
            "CD2_2": header["PC1_2"] * header["CDELT1"],
        }
    )
    same, straight = (sky_position(celestial_wcs(h, "g", "file"), PIXELS, "g", "file") for h in (swapped, header))
    np.testing.assert_allclose(same, straight, rtol=0, atol=1e-12)


def test_overlap_is_that_of_the_pixels():
    a = Grid.centred((10, 20), 0.1)
    right, up = (0.0, 2.0), (1.0, 0.0)  # one width to the right, one height up: edges touch
    for step in (right, up):
        for shorter, expected in ((1e-6, True), (-1e-6, False)):
            origin = tuple(np.asarray(a.origin) + np.asarray(step) * (1 - shorter))
            b = Grid(a.shape, a.matrix, origin)
            assert overlaps(a, b) is overlaps(b, a) is expected


@pytest.mark.filterwarnings("ignore:VIS. PSF sums")
def test_the_real_euclid_field(real_data):
    """Headers with both CD and PC: 0.1 arcsec, north up, east left; positions within 1 mas of astropy and GalSim."""
    field = read_field(real_data / "euclid_q1" / "scene.yaml")
    grid, file = field.grid, real_data / "euclid_q1" / "EUCLJ174517.fits"
    assert grid.scale == pytest.approx(0.1, rel=1e-5)
    assert grid.matrix[0][0] == pytest.approx(0.1, rel=1e-4) and grid.matrix[1][1] == pytest.approx(-0.1, rel=1e-4)
    # 306 arcsec from the tile's centre at declination 66, north leans by the convergence of the meridians.
    header = fits.getheader(file, "VIS_FLUX")
    centre = image_centre(field.wcs, grid.shape, "VIS", "file")
    lean = np.radians(header["CRVAL1"] - centre[0]) * np.sin(np.radians((centre[1] + header["CRVAL2"]) / 2))
    assert np.arctan2(-grid.matrix[1][0], grid.matrix[0][0]) == pytest.approx(lean, rel=1e-2)
    header = header.copy()
    for key in ("PC1_1", "PC2_2", "CDELT1", "CDELT2"):
        del header[key]  # CD alone, as the pipeline wrote it
    model = tangent_wcs(grid, centre).pixel_to_world(PIXELS[:, 1], PIXELS[:, 0])
    astropy_sky = WCS(header).pixel_to_world(PIXELS[:, 1], PIXELS[:, 0])
    galsim_sky = SkyCoord(*_galsim_sky(WCS(header)).T, unit="deg")
    for truth in (astropy_sky, galsim_sky, field.wcs.pixel_to_world(PIXELS[:, 1], PIXELS[:, 0])):
        assert model.separation(truth).max() < 1 * u.mas
