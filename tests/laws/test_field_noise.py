"""Noise that a variance map does not state: the scatter of colour terms, and correlation between pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from jointdiff.correlation import correlation_function, power_spectrum
from jointdiff.decimate import OVERSAMPLED, at_its_resolution, psf_fwhm
from jointdiff.forward import with_colour_floor
from jointdiff.io.scene_files import read_field
from jointdiff.reconstruct.base import single_scenes
from jointdiff.reconstruct.field import pad_field
from jointdiff.reconstruct.noise import CORRELATED, REACH, noise_correlation, sky_noise
from jointdiff.scene import Band, Frame, Grid, Observation
from jointdiff.sed import colour_terms
from jointdiff.simulate.mock import complete
from jointdiff.simulate.observe import GEOMETRIES, Conditions
from jointdiff.units import SIGMA_PER_FWHM
from tests.denoisers import DEMO_BANDS, untrained
from tests.mocks import gaussian_library, simulator
from tests.observing import gaussian_psf

BANDS = tuple(Band(*band) for band in DEMO_BANDS)
MEGACAM = Band("r", "cfht-r")


def _observation(image: np.ndarray, band: Band = BANDS[2], sigma: float = 1.0, width: float = 2.0) -> Observation:
    """Under a Gaussian PSF of standard deviation ``width`` pixels of 0.1 arcsec."""
    pixels = torch.tensor(image, dtype=torch.float32)[None]
    frame = Frame(Grid.centred(image.shape, 0.1), gaussian_psf(1, 15, width, torch.float32))
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
def test_sources_do_not_pass_for_correlation(geometry, monkeypatch):
    """Crowded skies of bright sources, white noise: the image of a source is as smooth as correlated noise."""
    monkeypatch.setitem(GEOMETRIES, geometry, replace(GEOMETRIES[geometry], correlation=None))
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
    smooth = _observation(_noise(60, 0.8, 5), Band("i", "hsc-i"), width=2.5)
    smooth.ivar[0, 10:20] = 0
    smooth.image[0, 10:20] = torch.nan
    with pytest.warns(UserWarning) as told:
        padded = pad_field([*white, smooth], core, untrained(), {"i": "field/i.fits"})
    (line,) = (str(warning.message) for warning in told)
    remedy = "spectrum and level, 0.96 of the stated variance, are taken from the sky"
    assert line == f"i: noise is correlated (lag-1 0.58): {remedy} (field/i.fits)"
    assert padded.correlated == ("i",)
    assert [o.correlation is None for o in padded.observations] == [True, True, False]


@pytest.mark.parametrize(("size", "width"), [(16, 2.5), (60, 2.0)], ids=["too little sky", "not oversampled"])
def test_what_neither_sky_nor_resampling_explains_leaves_noise_white(size, width):
    """Where pixels are no finer than the PSF needs, what neighbours share may be faint sources' light."""
    observation = _observation(_noise(size, 0.8, 5), width=width)
    with pytest.warns(UserWarning, match=r"^r: noise is correlated \(lag-1 .*\): stated errors assume white noise"):
        padded = pad_field([observation], Grid.centred((size, size), 0.1), untrained())
    assert padded.correlated == ("r",)
    assert padded.observations[0].correlation is None


@pytest.mark.filterwarnings("error")
def test_noise_that_is_told_is_not_measured():
    core = Grid.centred((60, 60), 0.1)
    smooth = _observation(_noise(60, 0.8, 5))
    told = replace(smooth, correlation=power_spectrum(_lags(0.5), (60, 60)))
    padded = pad_field([told], core, untrained())
    assert padded.correlated == ()
    assert torch.equal(padded.observations[0].correlation, told.correlation)
    assert torch.equal(padded.observations[0].ivar, told.ivar)
    cut = pad_field([told], Grid.centred((40, 50), 0.1), untrained())
    torch.testing.assert_close(cut.observations[0].correlation, power_spectrum(_lags(0.5), (40, 50)))


def _lags(width: float, reach: int = 6) -> torch.Tensor:
    """The correlation function (1, n, n) that smoothing by scipy's Gaussian leaves."""
    impulse = np.zeros((65, 65))
    impulse[32, 32] = 1
    power = np.abs(np.fft.fft2(gaussian_filter(impulse, width, mode="wrap"))) ** 2
    middle = np.fft.fftshift(np.fft.ifft2(power).real)[32 - reach : 33 + reach, 32 - reach : 33 + reach]
    return torch.tensor(middle / middle.max(), dtype=torch.float32)[None]


@pytest.mark.parametrize("width", [0.5, 0.7])
@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_the_sky_tells_spectrum_and_level(width, sigma):
    """Of pure noise on 100² pixels: lags to 0.04, the level to a tenth, the power of large scales to a quarter.

    Clipping takes more from shared noise than from white, for the means around are clipped, too.
    """
    found = [sky_noise(_observation(_noise(100, width, seed), sigma=sigma)) for seed in range(4)]
    function, level = np.mean([n.function for n in found], 0), np.mean([n.level for n in found])
    expected = _lags(width, REACH)[0].numpy()
    np.testing.assert_allclose(function, expected, rtol=0, atol=0.04)
    assert level * sigma**2 == pytest.approx(1, abs=0.1)
    assert level * sigma**2 * function.sum() / expected.sum() == pytest.approx(1, abs=0.25)


def test_sources_are_not_taken_for_noise():
    """Skies as MER serves them: level and large-scale power are the noise's, whatever shines beside it."""
    mock = simulator(("mer",), complete(Conditions()), gaussian_library(0.1), size=96).expose(4, 2)
    levels, powers = [], []
    for o in mock.observations[1:]:
        known = correlation_function(o.correlation, o.frame.grid.shape, REACH)
        for scene, observation in enumerate(single for (single,) in single_scenes([replace(o, correlation=None)])):
            noise = sky_noise(observation)
            levels.append(noise.level)
            powers.append(noise.level * noise.function.sum() / float(known[scene].sum()))
    print(np.round(levels, 2), np.round(powers, 2))
    assert np.median(levels) == pytest.approx(1, abs=0.1)
    assert np.median(powers) == pytest.approx(1, abs=0.25)


@pytest.mark.filterwarnings("error")
def test_a_field_of_white_noise_is_not():
    core = Grid.centred((60, 60), 0.1)
    observations = [_observation(_noise(60, 0, i), band) for i, band in enumerate(BANDS)]
    assert pad_field(observations, core, untrained()).correlated == ()


def test_resampled_images_are_decimated():
    """A star on 0.1 arcsec pixels under 0.8 arcsec seeing: flux to 1e-3 and place to 5 mas; VIS stays as it is."""
    core, place = Grid.centred((60, 60), 0.1), np.array([0.23, -0.41])
    sigma = 0.8 * SIGMA_PER_FWHM
    sky = np.stack(np.meshgrid(*2 * [0.1 * (np.arange(60) - 29.5)], indexing="ij"), -1) - place
    star = 1e4 * 0.01 / (2 * np.pi * sigma**2) * np.exp(-(sky**2).sum(-1) / (2 * sigma**2))
    frame = Frame(core, gaussian_psf(1, 41, 10 * sigma, torch.float32))
    image = torch.tensor(star, dtype=torch.float32)[None]
    ground = Observation(BANDS[2], frame, image, torch.full_like(image, 1e4))
    vis = _observation(_noise(60, 0, 0), BANDS[0])
    kept, new = pad_field([vis, ground], core, untrained()).observations
    assert kept.frame.grid == core
    assert new.frame.grid.shape == (30, 30) and new.frame.grid.scale == pytest.approx(0.2)
    pixels = np.stack(np.meshgrid(np.arange(30), np.arange(30), indexing="ij"), -1)
    at = pixels @ np.asarray(new.frame.grid.matrix).T + new.frame.grid.origin
    light = new.image[0].double().numpy()
    inside = np.hypot(*(at - place).transpose(2, 0, 1)) < 2.5
    assert light[inside].sum() == pytest.approx(1e4, rel=1e-3)
    found = (at * light[..., None])[inside].sum(0) / light[inside].sum()
    np.testing.assert_allclose(found, place, rtol=0, atol=0.005)
    assert psf_fwhm(new.frame) == pytest.approx(0.8, rel=0.02)
    torch.testing.assert_close(new.ivar, torch.full_like(new.ivar, 2500.0))


@pytest.mark.parametrize(("fwhm", "scale", "kept"), [(4.9, 0.1, True), (5.1, 0.1, False), (9.0, 0.168, True)])
def test_only_oversampled_images_of_the_scenes_pixels_are_decimated(fwhm, scale, kept):
    frame = Frame(Grid.centred((40, 40), scale), gaussian_psf(1, 41, SIGMA_PER_FWHM * fwhm, torch.float32))
    observation = Observation(BANDS[2], frame, torch.zeros(1, 40, 40), torch.ones(1, 40, 40))
    assert (psf_fwhm(frame) / scale >= OVERSAMPLED) == (fwhm > 5)
    assert (at_its_resolution(observation, 0.1) is observation) == kept


@pytest.mark.parametrize("band", ["HSC_G", "MEGACAM_R", "HSC_Z"])
def test_decimation_takes_correlation_away(band, real_data):
    """Real MER images: of 0.60 to 0.68 between neighbours 0.23 to 0.42 is left; scatter is what the spectrum says."""
    field = read_field(real_data / "euclid_q1" / "scene.yaml")
    label = {"HSC_G": "g", "MEGACAM_R": "r", "HSC_Z": "z"}[band]
    (raw,) = (o for o in field.observations if o.band.name == label)
    told = sky_noise(raw).of(raw)
    new = at_its_resolution(told, 0.1)
    before, after = noise_correlation(raw), noise_correlation(replace(new, correlation=None))
    assert before > 0.55 and after < before - 0.2
    own = correlation_function(new.correlation, new.frame.grid.shape, 1)[0, 1, 2]
    assert float(own) == pytest.approx(after, abs=0.1)
    assert sky_noise(replace(new, correlation=None)).level == pytest.approx(1, abs=0.15)  # some 2,000 pixels
