"""The forward model against GalSim's drawImage: an independent renderer of the same physics."""

import galsim
import numpy as np
import pytest
import torch

from jointdiff.forward import ForwardModel, with_aliasing_floor
from jointdiff.scene import Band, Frame, Grid, Observation

TARGET = galsim.Gaussian(fwhm=0.2)
GROUND = {
    "kolmogorov": galsim.Kolmogorov(fwhm=0.7).shear(g1=0.05, g2=-0.03),
    "moffat": galsim.Moffat(beta=2.5, fwhm=0.7),
}
# Diffraction of a 1.2 m obscured mirror and a jitter that gives the width of the Q1 MER PSF and its peak, 17 % of the
# flux in one pixel.
VIS = galsim.Convolve(galsim.Airy(lam=750, diam=1.2, obscuration=0.33), galsim.Gaussian(fwhm=0.13))
SOURCES = {
    "exponential": galsim.Exponential(half_light_radius=0.5).shear(g1=0.2, g2=0.1),
    "compact": galsim.Exponential(half_light_radius=0.2),
    "bulge": galsim.DeVaucouleurs(half_light_radius=0.4),
    "star": galsim.Gaussian(fwhm=1e-3),
}
BAND = Band("VIS", "VIS")
SIZE = 96
SCENE = Grid.centred((SIZE, SIZE), 0.1)


def _error(*arguments, **options) -> float:
    """Largest difference from GalSim over the image's peak."""
    image, expected = _images(*arguments, **options)
    return float(np.abs(image - expected).max() / expected.max())


def _vis(source, phase) -> tuple[np.ndarray, np.ndarray]:
    """A VIS image by the forward model, and by GalSim."""
    return _images(source, VIS, SCENE, 63, phase)


def _images(source, psf, grid: Grid, stamp: int, offset=(0.0, 0.0), dither=(0.0, 0.0)):
    """The image by the forward model, and by GalSim.

    offset: position (y, x) of the source, arcsec. dither: shift of the frame, arcsec.
    """
    source = source.shift(offset[1], offset[0])
    scene = galsim.Convolve(source, TARGET).drawImage(nx=SIZE, ny=SIZE, scale=0.1, method="no_pixel").array
    (yy, yx), (xy, xx) = grid.matrix
    wcs = galsim.JacobianWCS(xx, xy, yx, yy)
    expected = (
        galsim.Convolve(source.shift(-dither[1], -dither[0]), psf)
        .drawImage(nx=grid.shape[1], ny=grid.shape[0], wcs=wcs)
        .array
    )
    stamp_pixels = psf.drawImage(nx=stamp, ny=stamp, wcs=wcs).array.astype(float)
    frame = Frame(grid, torch.tensor(stamp_pixels)[None], shift=torch.tensor([dither], dtype=torch.float64))
    blank = torch.zeros(1, *grid.shape, dtype=torch.float64)
    model = ForwardModel(SCENE, (BAND,), 0.2, [Observation(BAND, frame, blank, blank)])
    image = model(torch.tensor(scene, dtype=torch.float64)[None, None])[0][0].numpy()
    return image, expected.astype(float)


# Pixels on a side, their scale and the PSF stamp: 8 to 10 arcsec, as truncated wings alone give an error of 1e-3.
GROUND_PIXELS = [(47, 0.168, 51), (40, 0.2, 51), (64, 0.1, 95)]


@pytest.mark.parametrize(("size", "scale", "stamp"), GROUND_PIXELS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("psf", GROUND)
def test_ground_bands(psf, source, size, scale, stamp):
    """Stars included, even and odd images and stamps, with a sub-pixel shift of the frame."""
    for image, side in ((size, stamp), (size + 1, stamp - 1)):
        grid = Grid.centred((image, image), scale)
        assert _error(SOURCES[source], GROUND[psf], grid, side, dither=(0.037, -0.051)) < 5e-4


@pytest.mark.parametrize(("size", "scale", "stamp"), GROUND_PIXELS)
@pytest.mark.parametrize(("psf", "source"), [("kolmogorov", "star"), ("moffat", "exponential")])
def test_turned_ground_bands(psf, source, size, scale, stamp):
    grid = Grid.centred((size // 2, size // 2), scale, angle=0.4)
    assert _error(SOURCES[source], GROUND[psf], grid, stamp, dither=(0.037, -0.051)) < 5e-4


@pytest.mark.parametrize(("angle", "dither"), [(0.0, (0.0, 0.0)), (0.0, (0.03, -0.045)), (0.4, (0.03, -0.045))])
@pytest.mark.parametrize(("stamp", "bound"), [(63, 5e-4), (64, 1.5e-3)])
def test_vis_extended_sources(stamp, bound, angle, dither):
    """VIS is undersampled, but an exponential of half-light radius 0.5 arcsec fits a 0.1 arcsec scene.

    On the scene's pixels, and as an exposure that is shifted or turned against them; then an even stamp, which has no
    pixel on the PSF's peak, is aliased more.
    """
    grid = Grid.centred((48, 48), 0.1, angle)
    assert _error(SOURCES["exponential"], VIS, grid, stamp, dither=dither) < bound


PHASES = ((0.0, 0.0), (0.03, 0.04), (0.05, 0.05), (0.05, 0.0))


@pytest.mark.parametrize(
    ("source", "bound"), [("exponential", 1e-3), ("compact", 3e-3), ("bulge", 1.2e-2), ("star", 3.5e-2)]
)
def test_vis_aliasing(source, bound):
    """What a 0.1 arcsec scene cannot hold, at the worst sub-pixel phase."""
    errors = [_error(SOURCES[source], VIS, SCENE, 63, phase) for phase in PHASES]
    print(f"{source}: " + " ".join(f"{e:.1e}" for e in errors))
    assert max(errors) < bound


@pytest.mark.parametrize(
    ("source", "bound"), [("exponential", 2.5e-3), ("compact", 7e-3), ("bulge", 2e-2), ("star", 4e-2)]
)
@pytest.mark.parametrize("phase", PHASES)
def test_the_variance_floor_covers_vis_aliasing(source, bound, phase):
    """Within 3 x 3 pixels of the peak, and no more than it must: ``bound`` of the peak, twice the error or less."""
    found, expected = _vis(SOURCES[source], phase)
    image = torch.tensor(expected)[None]
    deep = Observation(BAND, None, image, torch.full_like(image, (1e6 / expected.max()) ** 2))
    floor = with_aliasing_floor(deep).ivar[0].rsqrt().numpy() / expected.max()
    error = np.abs(found - expected) / expected.max()
    peak = np.unravel_index(expected.argmax(), expected.shape)
    core = tuple(slice(p - 1, p + 2) for p in peak)
    assert (error[core] < floor[core]).all()
    assert floor.max() < bound
