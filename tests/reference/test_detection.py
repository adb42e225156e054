"""Detection, sizes and shapes against sources drawn by GalSim."""

import numpy as np
import pytest
import torch

from jointdiff.errors import InputError
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.detection import DetectionSettings, detect, detection_image
from jointdiff.measure.shapes import ellipticity, half_light_radius

galsim = pytest.importorskip("galsim")

SCALE = 0.1
NAMES = ("VIS", "g")
WIDE = DetectionSettings(grow=12)


def draw(profiles, positions, size: int = 96) -> np.ndarray:
    """Profiles at (y, x) pixels, sampled at pixel centres, nJy per pixel."""
    image = galsim.ImageD(size, size, scale=SCALE)
    for profile, (y, x) in zip(profiles, positions, strict=True):
        profile.drawImage(image, center=galsim.PositionD(x + 1, y + 1), method="no_pixel", add_to_image=True)
    return image.array


def gaussian_posterior(truth: np.ndarray, rng, samples: int = 32, sigma: float = 1.7, power: float = 200):
    """Exact posterior samples and mean (S, 2, H, W), (2, H, W) for white noise and a red Gaussian prior."""
    size = truth.shape[0]
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"))
    prior = power * np.exp(-4 * (np.pi * 0.85 * k) ** 2) / (1 + (k / 0.03) ** 2) ** 1.5 + 1e-6
    covariance = 1 / (1 / prior + 1 / sigma**2)
    data = truth + rng.normal(0, sigma, truth.shape)
    mean = np.fft.ifft2(covariance / sigma**2 * np.fft.fft2(data)).real
    noise = np.fft.fft2(rng.normal(size=(samples, size, size)))
    draws = mean + np.fft.ifft2(np.sqrt(covariance) * noise).real
    both = np.stack([draws, 0.5 * draws], axis=1), np.stack([mean, 0.5 * mean])
    return tuple(torch.as_tensor(a) for a in both)


def test_finds_every_injected_galaxy_where_it_is():
    rng = np.random.default_rng(0)
    positions = [(y + rng.uniform(-2, 2), x + rng.uniform(-2, 2)) for y in (18, 48, 78) for x in (18, 48, 78)]
    fluxes = 10 ** (0.4 * (31.4 - np.linspace(22, 25, 9)))
    psf = galsim.Gaussian(fwhm=0.2)
    profiles = [galsim.Convolve(galsim.Exponential(half_light_radius=0.3, flux=f), psf) for f in fluxes]
    samples, mean = gaussian_posterior(draw(profiles, positions), rng)
    found = find_sources(samples, mean, NAMES)
    distance = [np.hypot(found.y - y, found.x - x).min() for y, x in positions]
    assert len(found) == 9 and max(distance) < 1


def test_no_source_on_blank_sky():
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert len(find_sources(*gaussian_posterior(np.zeros((96, 96)), rng), NAMES)) == 0


def test_separates_a_close_pair():
    psf = galsim.Gaussian(fwhm=0.2)
    pair = [galsim.Convolve(galsim.Exponential(half_light_radius=0.15, flux=f), psf) for f in (3000, 2000)]
    positions = [(48, 44.2), (48, 51.3)]
    samples, mean = gaussian_posterior(draw(pair, positions), np.random.default_rng(2), power=3000)
    found = find_sources(samples, mean, NAMES)
    assert len(found) == 2 and found.blended.all()
    np.testing.assert_allclose(np.sort(found.x), [44.2, 51.3], atol=0.5)


def test_zero_weight_pixels_never_detect():
    image = draw([galsim.Gaussian(fwhm=0.5, flux=1000)] * 2, [(30, 30), (60, 60)])
    weight = np.ones((96, 96))
    weight[:45] = 0
    found = detect(image, 0.1, weight=weight)
    assert len(found) == 1 and found.y[0] == pytest.approx(60, abs=0.1) and not found.labels[:45].any()


def test_non_finite_pixel_is_refused_in_one_line():
    image = np.zeros((20, 20))
    image[3, 4] = np.nan
    with pytest.raises(InputError, match="1 pixels"):
        detect(image, 1.0)


def test_detection_noise_is_the_scatter_of_the_filtered_samples():
    """White samples: sd √Σw² over the filter's noise reduction, 1 / (2 √π sigma) for a Gaussian of many pixels."""
    rng = np.random.default_rng(3)
    samples = rng.normal(0, 1, (64, 2, 96, 96))
    _, noise = detection_image(samples, samples.mean(0), NAMES, target_fwhm=0.5)
    sigma = 0.5 / 2.3548 / SCALE
    assert np.median(noise) == pytest.approx(np.sqrt(2) / (2 * np.sqrt(np.pi) * sigma), rel=0.03)


@pytest.mark.parametrize("r50", [0.2, 0.3, 0.6])
@pytest.mark.parametrize("kind", ["Gaussian", "Exponential"])
def test_half_light_radius_is_galsims(kind, r50):
    profile = getattr(galsim, kind)(half_light_radius=r50, flux=1000)
    image = draw([profile], [(48.3, 47.6)])
    measured = SCALE * half_light_radius(image[None], detect(image, 0.02, WIDE))[0, 0]
    spread = 0.06 * SCALE**2 / r50  # each sample is spread over its pixel
    assert measured - spread == pytest.approx(r50, rel=0.012)


@pytest.mark.parametrize(("g1", "g2"), [(0.2, 0.0), (0.0, 0.2), (-0.1, 0.15), (0.3, -0.3)])
def test_ellipticity_of_a_gaussian_is_its_shear(g1, g2):
    image = draw([galsim.Gaussian(half_light_radius=0.4, flux=1000).shear(g1=g1, g2=g2)], [(48.3, 47.6)])
    segments = detect(image, 0.02, WIDE)
    for r50 in (3.0, 4.0, 5.0):  # whatever the width of the weight
        np.testing.assert_allclose(ellipticity(image[None], segments, np.array([r50]))[0, 0], [g1, g2], atol=2e-3)


def test_ellipticity_follows_hsm_on_a_disk():
    """Same signs and angle as GalSim's adaptive moments; a circular weight makes disks rounder, by up to 20 percent."""
    profile = galsim.Exponential(half_light_radius=0.4, flux=1000).shear(g1=0.15, g2=-0.1)
    image = draw([galsim.Convolve(profile, galsim.Gaussian(fwhm=0.2))], [(48.3, 47.6)])
    segments = detect(image, 0.02, WIDE)
    e1, e2 = ellipticity(image[None], segments, half_light_radius(image[None], segments)[0])[0, 0]
    hsm = galsim.hsm.FindAdaptiveMom(galsim.Image(image, scale=SCALE)).observed_shape
    assert 0.8 < np.hypot(e1, e2) / hsm.g < 1
    assert np.arctan2(e2, e1) == pytest.approx(np.arctan2(hsm.g2, hsm.g1), abs=0.01)


def test_undefined_shapes_are_nan_not_numbers():
    image = draw([galsim.Gaussian(half_light_radius=0.4, flux=1000)], [(48, 48)])
    segments = detect(image, 0.02, WIDE)
    assert np.isnan(half_light_radius(-image[None], segments)).all()
    assert np.isnan(ellipticity(-image[None], segments, np.array([4.0]))).all()
