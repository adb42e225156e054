"""Laws of bright stars: what they do to their neighbours, and what is left of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.field import PaddedField, pad_field
from jointdiff.reconstruct.stars import Star, subtract_stars
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid
from jointdiff.simulate.observe import GEOMETRIES
from jointdiff.units import flux as flux_of
from tests.denoisers import untrained
from tests.mocks import BANDS, PSF_FWHM, STEADY, gaussian_stamp, simulator

SEEN = (BANDS[0], BANDS[1], BANDS[3])
CORE = Grid.centred((80, 80), 0.1)
STAR = (100, 97)
NEIGHBOURS = ((34, 50), (60, 150), (160, 60), (150, 150))
"""Fine pixels (of half a scene pixel) of the torus, 16 of whose scene pixels are cut off on each side; the neighbours
lie 3.2 to 4 arcsec from the star."""


def field_of(magnitude: float, geometry: str = "hsc", fwhm: float = PSF_FWHM) -> tuple[torch.Tensor, PaddedField]:
    """True scene of the core and field of four galaxies of 2 µJy about a source, seen with PSFs 1.5 % off."""
    source = simulator((geometry,), replace(STEADY, psf_error=0.015), size=96, bands=SEEN)
    sky = torch.zeros(1, 3, 192, 192)
    for (y, x), flux, width in [(STAR, float(flux_of(magnitude)), fwhm), *((at, 2e3, 0.5) for at in NEIGHBOURS)]:
        sky[0, :, y - 16 : y + 16, x - 16 : x + 16] += torch.tensor(gaussian_stamp([flux] * 3, width, 32)).float()
    noise, mistakes = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    seen = source._telescope.observe(sky, GEOMETRIES[geometry], noise, mistakes)
    return source.scenes(sky)[0, :, 8:-8, 8:-8], pad_field(seen, CORE, denoiser())


def denoiser():
    return untrained([(band.name, band.filter) for band in SEEN])


def pulls(truth: torch.Tensor, field: PaddedField) -> torch.Tensor:
    """(4, C): errors of the neighbours' Wiener fluxes within 1 arcsec, in stated standard deviations."""
    draws = Wiener(denoiser()).sample(field.observations, field.grid, 24, NoiseStream(0, "star"))
    mean, samples = field.crop(draws.mean), field.crop(draws.samples)
    y, x = np.ogrid[:80, :80]
    found = []
    for row, column in NEIGHBOURS:
        aperture = torch.tensor((y - (row / 2 - 8)) ** 2 + (x - (column / 2 - 8)) ** 2 <= 10**2)
        error = samples[:, :, aperture].sum(-1).std(0)
        found.append((mean[:, aperture].sum(-1) - truth[:, aperture].sum(-1)) / error)
    return torch.stack(found)


@pytest.mark.parametrize(("magnitude", "geometry"), [(16.0, "hsc"), (17.0, "lsst")])
def test_neighbours_of_a_subtracted_star_are_unbiased(magnitude, geometry):
    """Their errors are those that they have without any star, of the same noise, to two stated deviations at most."""
    truth, field = field_of(magnitude, geometry)
    place = r"^field: a star of VIS 1[67]\.\d at x 40, y 42 outshines all else: subtracted"
    with pytest.warns(UserWarning, match=place):
        cleaned, (star,) = subtract_stars(field, "field")
    assert star.magnitude == pytest.approx(magnitude, abs=0.05)
    assert 2 * (star.y + 8) == pytest.approx(STAR[0] - 0.5, abs=0.1)  # the middle of an even stamp
    assert 1 < star.radius < 2.5
    alone = pulls(*field_of(30.0, geometry))
    change = pulls(truth, cleaned) - alone
    assert change.abs().max() < 2
    assert change.square().mean() < 1
    assert (pulls(truth, field) - alone)[:, 0].mean() < -5, "the star no longer does harm: what is this for?"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("magnitude", "fwhm"), [(19.0, PSF_FWHM), (16.5, 0.4)])
def test_other_sources_stay(magnitude, fwhm):
    """One as faint as training knows, and a bright one that is no point."""
    field = field_of(magnitude, fwhm=fwhm)[1]
    cleaned, stars = subtract_stars(field, "field")
    assert cleaned is field and not stars


@pytest.mark.filterwarnings("error")
def test_a_star_among_its_like_stays():
    """A rest of a thirtieth of its flux: it then sets no amplitude by itself."""
    field = field_of(16.5)[1]
    vis = field.observations[0]
    vis.image[0, 10:12, 10:12] += float(flux_of(16.5)) / 100
    assert not subtract_stars(field, "field")[1]


def test_a_star_is_left_where_vis_is_missing():
    field = field_of(16.5)[1]
    blind = replace(field, observations=field.observations[1:])
    assert subtract_stars(blind, "field") == (blind, ())


def test_what_is_near():
    star = Star(y=10.0, x=20.0, magnitude=16.0, radius=1.5)
    near = star.near(np.array([10.0, 10.0, 34.0]), np.array([20.0, 46.0, 20.0]), 0.1)
    assert near.tolist() == [True, False, True]
