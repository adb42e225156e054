"""Noise that a variance map does not state: the scatter of colour terms, and correlation between pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from jointdiff.forward import with_colour_floor
from jointdiff.reconstruct.field import pad_field
from jointdiff.reconstruct.noise import CORRELATED, noise_correlation
from jointdiff.scene import Band, Frame, Grid, Observation
from jointdiff.sed import colour_terms
from jointdiff.simulate.mock import complete
from jointdiff.simulate.observe import Conditions
from tests.denoisers import DEMO_BANDS, untrained
from tests.mocks import gaussian_library, simulator
from tests.observing import gaussian_psf

BANDS = tuple(Band(*band) for band in DEMO_BANDS)
MEGACAM = Band("r", "cfht-r")


def _observation(image: np.ndarray, band: Band = BANDS[2], sigma: float = 1.0) -> Observation:
    pixels = torch.tensor(image, dtype=torch.float32)[None]
    frame = Frame(Grid.centred(image.shape, 0.1), gaussian_psf(1, 15, 2.0, torch.float32))
    return Observation(band, frame, pixels, torch.full_like(pixels, sigma**-2))


def _noise(size: int, width: float, seed: int) -> np.ndarray:
    """Noise of unit deviation; smoothed by a Gaussian of standard deviation ``width`` pixels if that is not 0."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    smooth = gaussian_filter(noise, width, mode="wrap") if width else noise
    return smooth / smooth.std()


def _lag_one(width: float) -> float:
    """The exact correlation between neighbours of sampled white noise after scipy's sampled Gaussian kernel."""
    impulse = np.zeros(65)
    impulse[32] = 1
    kernel = gaussian_filter(impulse, width, mode="wrap")
    return float(kernel[1:] @ kernel[:-1] / (kernel @ kernel))


@pytest.mark.parametrize("band", [BANDS[2], Band("r", "")])
def test_the_scenes_own_filter_has_no_floor(band):
    observation = _observation(_noise(20, 0, 0), band)
    assert with_colour_floor(observation, BANDS) is observation


def test_colour_scatter_enters_the_variance():
    """(scatter × flux)² where the sky is even, at its edges and beside masked pixels too; those stay masked."""
    scatter = colour_terms("cfht-r", tuple(b.filter for b in BANDS), 2)[1]
    assert scatter > 0.01
    observation = _observation(np.full((12, 12), 300.0), MEGACAM, sigma=2.0)
    observation.ivar[0, 4, 5:9] = 0
    observation.image[0, 4, 5:9] = 1e9
    variance = 1 / with_colour_floor(observation, BANDS).ivar[0]
    good = observation.ivar[0] > 0
    expected = torch.full((int(good.sum()),), 4 + (300 * scatter) ** 2)
    torch.testing.assert_close(variance[good], expected, rtol=1e-5, atol=0)
    assert torch.isinf(variance[~good]).all()


def test_colour_scatter_leaves_the_sky_alone():
    """On sky the mean of nine pixels is a third of the noise, its hundredth part of no account."""
    observation = _observation(_noise(40, 0, 1), MEGACAM)
    torch.testing.assert_close(with_colour_floor(observation, BANDS).ivar, observation.ivar, rtol=2e-3, atol=0)


def test_a_field_gets_the_colour_floor_once():
    core = Grid.centred((40, 40), 0.1)
    image = 500 * np.exp(-((np.arange(40) - 20) ** 2 + (np.arange(40)[:, None] - 20) ** 2) / 50) + _noise(40, 0, 0)
    vis, red = _observation(image, BANDS[0]), _observation(image, MEGACAM)
    padded = pad_field([vis, red], core, untrained())
    torch.testing.assert_close(padded.observations[1].ivar, with_colour_floor(red, BANDS).ivar)
    assert padded.observations[1].ivar.min() < 0.1
    plain = pad_field([vis, replace(red, band=BANDS[2])], core, untrained())
    assert torch.equal(plain.observations[1].ivar, red.ivar)


@pytest.mark.parametrize("size", [32, 100])
@pytest.mark.parametrize("width", [0.0, 0.4, 0.7])
def test_the_correlation_of_pure_noise(size, width):
    """Whatever the stated errors; clipping and the local level cost up to a tenth."""
    expected = _lag_one(width) if width else 0.0
    for sigma in (1.0, 2.0):
        found = np.mean([noise_correlation(_observation(_noise(size, width, s), sigma=sigma)) for s in range(6)])
        assert found == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("geometry", ["lsst", "hsc", "mer"])
def test_sources_do_not_pass_for_correlation(geometry):
    """Crowded skies of bright sources, white noise: the image of a source is as smooth as correlated noise."""
    mock = simulator((geometry,), complete(Conditions()), gaussian_library(), size=96).expose(6, 2)
    for observation in mock.observations:
        for scene in range(6):
            image, ivar = observation.image[scene : scene + 1], observation.ivar[scene : scene + 1]
            assert not noise_correlation(replace(observation, image=image, ivar=ivar)) > CORRELATED


def test_too_little_sky_is_not_judged():
    observation = _observation(1e4 * _noise(40, 3.0, 0))
    assert np.isnan(noise_correlation(observation))
    assert np.isnan(noise_correlation(replace(observation, ivar=torch.zeros_like(observation.ivar))))


def test_a_field_of_correlated_noise_is_told():
    core = Grid.centred((60, 60), 0.1)
    white = [_observation(_noise(60, 0, i), band) for i, band in enumerate(BANDS[:2])]
    smooth = _observation(_noise(60, 0.8, 5), Band("i", "hsc-i"))
    smooth.ivar[0, 10:20] = 0
    smooth.image[0, 10:20] = torch.nan
    with pytest.warns(UserWarning) as told:
        padded = pad_field([*white, smooth], core, untrained(), {"i": "field/i.fits"})
    (line,) = (str(warning.message) for warning in told)
    assert line == "i: noise is correlated (lag-1 0.58): stated errors assume white noise (field/i.fits)"
    assert padded.correlated == ("i",)


@pytest.mark.filterwarnings("error")
def test_a_field_of_white_noise_is_not():
    core = Grid.centred((60, 60), 0.1)
    observations = [_observation(_noise(60, 0, i), band) for i, band in enumerate(BANDS)]
    assert pad_field(observations, core, untrained()).correlated == ()
