"""Laws of apertures, segments and fits: linear in the pixels, the same for every image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.correlation import convolved, power_spectrum
from jointdiff.measure import data_checks
from jointdiff.measure.catalog import measure_images
from jointdiff.measure.data_checks import Data, check_against_data
from jointdiff.measure.detection import Segments, band_weights, grow
from jointdiff.measure.photometry import aperture_map, circle_overlap, fluxes, gaussian_map, segment_map

SHAPE = (40, 44)
NAMES = ("VIS", "g", "r")


@pytest.fixture
def segments() -> Segments:
    labels = np.zeros(SHAPE, dtype=int)
    labels[6:14, 6:15], labels[10:20, 15:24], labels[30:34, 30:38] = 1, 2, 3
    return Segments(labels, np.array([10.2, 19.1, 33.4]), np.array([9.7, 15.3, 31.8]))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_flux_is_linear(segments, images):
    for pixel_map in (aperture_map(segments.x, segments.y, 5.0, SHAPE), segment_map(segments.labels, 3)):
        parts = fluxes(images, pixel_map)
        assert parts.shape == (5, 3, 3)
        torch.testing.assert_close(fluxes(2 * images[0] - 3 * images[1], pixel_map), 2 * parts[0] - 3 * parts[1])
        torch.testing.assert_close(fluxes(images.mean(0), pixel_map), parts.mean(0))


def test_flux_of_a_batch_is_that_of_each_image(segments, images):
    pixel_map = aperture_map(segments.x, segments.y, 3.3, SHAPE)
    dense = pixel_map.to_dense().reshape(3, *SHAPE)
    torch.testing.assert_close(fluxes(images, pixel_map), torch.einsum("kyx,scyx->skc", dense, images))


@pytest.mark.parametrize("radius", [1.0, 5.0, 10.0])
def test_aperture_has_the_area_of_its_circle(radius):
    pixel_map = aperture_map(np.array([20.37]), np.array([19.81]), radius, SHAPE)
    area = float(fluxes(torch.ones(1, *SHAPE), pixel_map))
    assert area == pytest.approx(np.pi * radius**2, rel=3e-3 / radius)


@pytest.mark.parametrize("psf", [0.85, 2.0, 3.5])
def test_gaussian_aperture_flux_does_not_depend_on_the_psf(psf):
    """An elliptical Gaussian galaxy: F exp(-r²/2σ²) integrates to F σ²/√((σ²+a²)(σ²+b²)) (Kuijken et al. 2015, A16)."""
    y, x = np.mgrid[:120, :120]
    a, b, sigma = 4.0, 2.0, 5.0
    wide, high = a**2 + psf**2, b**2 + psf**2
    light = np.exp(-((x - 60.3) ** 2) / (2 * wide) - (y - 58.8) ** 2 / (2 * high)) / (2 * np.pi * np.sqrt(wide * high))
    one = Segments(np.zeros((120, 120), dtype=int), np.array([60.3]), np.array([58.8]))
    flux = float(fluxes(torch.as_tensor(light)[None], gaussian_map(one, sigma, psf)))
    assert flux == pytest.approx(sigma**2 / np.sqrt((sigma**2 + a**2) * (sigma**2 + b**2)), rel=1e-6)


def test_gaussian_aperture_leaves_out_neighbours(segments):
    weights = gaussian_map(segments, 6.0, 1.0).to_dense().reshape(3, *SHAPE).numpy()
    for k in range(3):
        assert not weights[k][(segments.labels > 0) & (segments.labels != k + 1)].any()
        assert weights[k][segments.labels == k + 1].min() > 0 and weights[k][segments.labels == 0].max() > 0
    nothing = Segments(np.zeros(SHAPE, dtype=int), np.empty(0), np.empty(0))
    assert fluxes(torch.ones(2, *SHAPE), gaussian_map(nothing, 6.0, 1.0)).shape == (0, 2)


def test_pixels_count_by_their_area_inside_the_circle():
    dy, dx = np.meshgrid(np.arange(-4, 5) - 0.2, np.arange(-4, 5) + 0.3, indexing="ij")
    fine = (np.arange(200) + 0.5) / 200 - 0.5
    inside = (dy[..., None, None] + fine[:, None]) ** 2 + (dx[..., None, None] + fine) ** 2 <= 2.7**2
    np.testing.assert_allclose(circle_overlap(dy, dx, 2.7), inside.mean((-2, -1)), atol=1e-2)


def test_aperture_beyond_the_edge_loses_only_what_is_outside():
    pixel_map = aperture_map(np.array([-0.5]), np.array([20.0]), 5.0, SHAPE)
    assert float(fluxes(torch.ones(1, *SHAPE), pixel_map)) == pytest.approx(np.pi * 25 / 2, rel=2e-3)


def test_grown_segments_stay_disjoint_and_keep_their_pixels(segments):
    labels = grow(segments.labels, 3)
    assert (labels[segments.labels > 0] == segments.labels[segments.labels > 0]).all()
    per_pixel = fluxes(torch.ones(1, *SHAPE), segment_map(labels, 3)).sum()
    assert float(per_pixel) == (labels > 0).sum() > (segments.labels > 0).sum()


def test_growth_goes_no_further_than_asked_and_avoids_masked_pixels():
    labels = np.zeros(SHAPE, dtype=int)
    labels[20, 20] = 1
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:, 22:] = True
    grown = grow(labels, 3, mask)
    assert grown[20, 17] == 1 and grown[20, 16] == 0 and grown[20, 21] == 1 and not grown[:, 22:].any()


def test_segments_meet_half_way():
    labels = np.zeros(SHAPE, dtype=int)
    labels[20, 16], labels[20, 21] = 1, 2
    grown = grow(labels, 5)
    assert list(grown[20, 15:23]) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_touching_segments_are_blended(segments):
    assert list(segments.blended) == [True, True, False]


def test_vis_weighs_at_least_as_much_as_all_other_bands():
    rich = band_weights(np.array([1.0, 1e-4, 1e-4]), NAMES)
    assert rich[0] == 1 and rich[1:].sum() == pytest.approx(1)
    poor = band_weights(np.array([1.0, 10.0, 40.0]), NAMES)
    np.testing.assert_allclose(poor, [1, 0.1, 0.025])


def test_each_image_is_measured_alone(segments, images):
    """The same weights on every image: measuring one or many, in any order, gives the same numbers."""
    images = images + 5
    r50 = np.array([0.3, 0.4, 0.2])
    together = measure_images(images, NAMES, segments, r50, 0.1, 0.5)
    for i in (3, 0):
        alone = measure_images(images[i : i + 1], NAMES, segments, r50, 0.1, 0.5)
        for name in ("segment", "aperture", "r50", "shape"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-10)


def test_sizes_and_shapes_ignore_the_flux_scale(segments, images):
    images = images.abs()
    r50 = np.array([0.3, 0.4, 0.2])
    one, ten = (measure_images(s * images, NAMES, segments, r50, 0.1, 0.5) for s in (1, 10))
    np.testing.assert_allclose(one.r50, ten.r50, rtol=1e-9)
    np.testing.assert_allclose(one.shape, ten.shape, rtol=1e-7, atol=1e-12)


def blur(scene: torch.Tensor) -> list[torch.Tensor]:
    """A linear map of (B, 3, H, W): VIS as it is, g and r each averaged over 2 x 2 pixels and doubled."""
    coarse = 2 * torch.nn.functional.avg_pool2d(scene[:, 1:], 2)
    return [scene[:, 0], coarse[:, 0], coarse[:, 1]]


@pytest.fixture
def blend(segments) -> torch.Tensor:
    """A noiseless scene (3, H, W) of three sources of one shape in every band."""
    light = torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    parts = torch.stack([light * torch.as_tensor(segments.labels == k) for k in (1, 2, 3)])
    templates = parts / parts.sum((1, 2), keepdim=True)
    return torch.einsum("kc,kyx->cyx", torch.tensor(TRUE_FLUX, dtype=torch.float64), templates)


TRUE_FLUX = [[100.0, 50.0, 80.0], [40.0, 200.0, 10.0], [70.0, -3.0, 20.0]]


def observe(scene: torch.Tensor, ivars=(1.0, 0.25, 4.0)) -> Data:
    images = [image[0] for image in blur(scene[None])]
    return Data(blur, images, [torch.full_like(a, w) for a, w in zip(images, ivars, strict=True)], (0, 1, 2))


def test_noiseless_blend_is_fitted_exactly(segments, blend):
    checks = check_against_data(blend, NAMES, segments, observe(blend))
    np.testing.assert_allclose(checks.flux, TRUE_FLUX, rtol=1e-9)
    np.testing.assert_allclose(checks.chi2, 0, atol=1e-20)
    np.testing.assert_allclose(checks.masked, 0)


def test_error_of_a_lone_source_is_the_matched_filters(segments, blend):
    """sigma = (tᵀ N⁻¹ t)^(-1/2); source 3 shares no pixel with the others."""
    checks = check_against_data(blend, NAMES, segments, observe(blend))
    template = blend[0] * torch.as_tensor(segments.labels == 3)
    seen = blur((template / template.sum()).expand(1, 3, -1, -1))
    expected = [float((w * t**2).sum()) ** -0.5 for w, t in zip((1.0, 0.25, 4.0), seen, strict=True)]
    np.testing.assert_allclose(checks.flux_err[2], expected, rtol=1e-9)


def test_fitted_fluxes_have_their_stated_errors(segments, blend):
    generator = torch.Generator().manual_seed(5)
    data = observe(blend)
    pulls = []
    for _ in range(200):
        noisy = [
            a + torch.randn(a.shape, generator=generator) * w**-0.5
            for a, w in zip(data.images, data.ivars, strict=True)
        ]
        checks = check_against_data(blend, NAMES, segments, Data(blur, noisy, data.ivars, data.bands))
        pulls.append((checks.flux - TRUE_FLUX) / checks.flux_err)
    assert np.std(pulls) == pytest.approx(1, abs=4 / np.sqrt(2 * 1800))
    assert np.abs(np.mean(pulls, axis=0)).max() < 4.5 / np.sqrt(200)


def test_fluxes_in_correlated_noise_have_their_stated_errors(segments, blend):
    """With a masked column through the sources, whose pixels stand out of noise that is smoother than they are."""
    generator, data = torch.Generator().manual_seed(5), observe(blend)
    for ivar in data.ivars:
        ivar[:, 10] = 0
    lag = torch.arange(-3, 4) ** 2
    powers = [power_spectrum(0.5 ** (lag[:, None] + lag)[None].double(), image.shape) for image in data.images]
    shared = Data(blur, data.images, data.ivars, data.bands, [power[0] for power in powers])
    pulls = []
    for _ in range(60):
        noisy = []
        for image, ivar, power in zip(data.images, data.ivars, powers, strict=True):
            white = torch.randn(1, *image.shape, generator=generator, dtype=torch.float64)
            noisy.append(image + convolved(white, power.sqrt())[0] * ivar.max() ** -0.5)
        checks = check_against_data(blend, NAMES, segments, replace(shared, images=noisy))
        pulls.append((checks.flux - TRUE_FLUX) / checks.flux_err)
    assert np.std(pulls) == pytest.approx(1, abs=4 / np.sqrt(2 * 540))
    white_errors = check_against_data(blend, NAMES, segments, data).flux_err
    assert (checks.flux_err < 0.9 * white_errors)[:, 0].all()


def test_chi2_is_one_for_pure_noise_and_sees_a_wrong_model(segments, blend):
    generator = torch.Generator().manual_seed(6)
    data = observe(blend, (1.0, 1.0, 1.0))
    noisy = [a + torch.randn(a.shape, generator=generator, dtype=a.dtype) for a in data.images]
    noisy = Data(blur, noisy, data.ivars, data.bands)
    assert np.mean(check_against_data(blend, NAMES, segments, noisy).chi2) == pytest.approx(1, abs=0.25)
    wrong = blend.clone()
    wrong[1] *= 0.5
    assert check_against_data(wrong, NAMES, segments, noisy).chi2[1, 1] > 2


def test_band_without_data_is_nan_and_masked(segments, blend):
    data = observe(blend)
    data.ivars[1][:] = 0
    data.images[1][:] = torch.nan
    checks = check_against_data(blend, NAMES, segments, data)
    assert np.isnan(checks.flux[:, 1]).all() and np.isnan(checks.chi2[:, 1]).all()
    np.testing.assert_allclose(checks.masked, [[0, 1, 0]] * 3)
    np.testing.assert_allclose(checks.flux[:, [0, 2]], np.array(TRUE_FLUX)[:, [0, 2]], rtol=1e-9)


def test_memory_goes_with_the_light_not_with_the_sky(blend, segments, monkeypatch):
    """Templates are whole images a few at a time only, and kept where they shine; the numbers are the same."""
    expected = check_against_data(blend, NAMES, segments, observe(blend))
    monkeypatch.setattr(data_checks, "_CHUNK", 2)
    seen, kept, project = [], [], data_checks._project

    def watched(scene: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(scene))
        return blur(scene)

    def projected(*args):
        kept.extend(project(*args))
        return kept

    monkeypatch.setattr(data_checks, "_project", projected)
    data = observe(blend)
    found = check_against_data(blend, NAMES, segments, Data(watched, data.images, data.ivars, data.bands))
    assert max(seen) == 2
    assert kept[0].nnz == np.count_nonzero(segments.labels)
    np.testing.assert_array_equal(found.flux, expected.flux)
    np.testing.assert_array_equal(found.chi2, expected.chi2)
