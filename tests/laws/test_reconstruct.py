"""Laws of reconstruction: exact samples, own random numbers, padding that keeps flux, sky and error bars."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.decimate import psf_fwhm
from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel, with_aliasing_floor
from jointdiff.gaussian import GaussianPosterior, apply, evidence_amplitude, field, spectrum
from jointdiff.reconstruct import diffusion, wiener
from jointdiff.reconstruct.api import reconstruct
from jointdiff.reconstruct.base import NoiseStream, single_scenes
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.field import MARGIN, pad_field
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Frame, Grid, Observation
from jointdiff.units import SIGMA_PER_FWHM
from tests.denoisers import untrained
from tests.laws.test_gaussian import AMPLITUDE, GRID, _dense, posterior_of, prior
from tests.observing import BANDS, gaussian_psf, geometries, observe

PAIRS = [(band.name, band.filter) for band in BANDS]
TORUS = Grid.centred((16, 16), 0.1)
METHODS = {"wiener": Wiener, "diffusion": Diffusion}


def _batch(batch: int = 3, grid: Grid = TORUS, seed: int = 0, **options) -> list[Observation]:
    """Observations in float32 of VIS on the scene's pixels and two bands on coarser ones."""
    generator = torch.Generator().manual_seed(seed)
    places = zip(BANDS, ("same", "lsst", "lsst"), strict=True)
    seen = [observe(b, geometries(grid)[n], generator, batch=batch, **options) for b, n in places]
    return [replace(o.to(torch.float32), image=10 * o.image.float()) for o in seen]


def _blank(band, grid: Grid, fwhm: float, sigma: float) -> Observation:
    """An empty observation with a Gaussian PSF (arcsec) and even noise, nJy."""
    size = 2 * int(2 * fwhm / grid.scale) + 1
    psf = gaussian_psf(1, size, SIGMA_PER_FWHM * fwhm / grid.scale, torch.float32)
    image = torch.zeros(1, *grid.shape)
    return Observation(band, Frame(grid, psf), image, torch.full_like(image, sigma**-2))


def _survey(core: Grid, vis_sigma: float = 1.0) -> list[Observation]:
    """VIS on the core's pixels and two ground bands of 0.2 arcsec pixels on the same sky."""
    ground = Grid.centred((core.shape[0] // 2, core.shape[1] // 2), 0.2)
    settings = zip(BANDS, (core, ground, ground), (0.2, 0.8, 0.6), (vis_sigma, 2.0, 2.0), strict=True)
    return [_blank(*setting) for setting in settings]


def test_perturbed_samples_have_the_dense_posterior_mean_and_covariance():
    """The map from white noise to a sample, applied to a basis, gives P⁻¹ and μ, with masks and uneven noise."""
    observations = next(single_scenes(posterior_of()[2]))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(o.ivar.shape, dtype=torch.float64, generator=generator) for o in observations]
    observations = [replace(o, ivar=o.ivar * w.round(decimals=1)) for o, w in zip(observations, weights, strict=True)]
    model = ForwardModel(GRID, BANDS, 0.2, observations)
    posterior = GaussianPosterior(
        model, observations, prior().on(GRID), amplitude=AMPLITUDE[:1], tolerance=1e-8, max_steps=400
    )
    shapes = [posterior.mean.shape[1:], *(o.image.shape[1:] for o in observations)]
    sizes = [shape.numel() for shape in shapes]
    basis = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, dim=1)
    scene, *data = (b.reshape(len(b), *shape) for b, shape in zip(basis, shapes, strict=True))
    columns = (posterior.perturbed(scene, data) - posterior.mean).flatten(1)
    matrix, weight, covariance, y = _dense(model, observations, 0)
    exact = torch.linalg.inv(matrix.T @ (weight[:, None] * matrix) + torch.linalg.inv(covariance))
    torch.testing.assert_close(columns.T @ columns, exact, rtol=1e-5, atol=1e-6)
    still = posterior.perturbed(torch.zeros_like(scene[:1]), [torch.zeros_like(d[:1]) for d in data])
    torch.testing.assert_close(still[0].flatten(), exact @ (matrix.T @ (weight * y)), rtol=1e-5, atol=1e-6)
    assert posterior.error(posterior.mean) < 1e-7
    assert posterior.error(0 * posterior.mean) > 0.1


def test_zero_network_diffusion_samples_are_wieners():
    """On a torus with even noise the two methods draw from one Gaussian: same mean, same covariance."""
    observations, denoiser, count = _batch(1, rough=0.0), untrained(PAIRS), 600
    draws = [
        m(denoiser).sample(observations, TORUS, count, NoiseStream(i, "a")) for i, m in enumerate((Wiener, Diffusion))
    ]
    wiener, diffusion = (d.samples for d in draws)
    error = wiener.std(0) * (2 / count) ** 0.5
    pull = (diffusion.mean(0) - wiener.mean(0)) / error
    assert abs(float(pull.square().mean()) - 1) < 0.2  # 768 pixels, correlated
    torch.testing.assert_close(draws[0].mean, wiener.mean(0), rtol=0, atol=5 * float(error.max()))
    for lag in range(3):  # variance, then covariance with the neighbour and the next one, band by band
        products = [
            ((s - s.mean(0)) * (s - s.mean(0)).roll(lag, -1)).mean((0, -2, -1)) / s.var((0, -2, -1)) ** 0.5
            for s in (wiener, diffusion)
        ]
        torch.testing.assert_close(*products, rtol=0.05, atol=0.05 * float(products[0].abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_a_scene_is_the_same_in_any_order_and_chunk(method, monkeypatch):
    """Random numbers belong to (seed, name, sample): float32 rounding is all that may change."""
    reconstructor = METHODS[method](untrained(PAIRS, seed=3))
    scenes = list(single_scenes(_batch()))
    alone = reconstructor.sample(scenes[2], TORUS, 5, NoiseStream(7, "c"))
    assert alone.samples.shape == (5, 3, 16, 16)
    scale = float(alone.samples.std())
    after = [reconstructor.sample(s, TORUS, 5, NoiseStream(7, n)) for s, n in zip(scenes, "abc", strict=True)]
    torch.testing.assert_close(after[2].samples, alone.samples, rtol=0, atol=1e-4 * scale)
    monkeypatch.setattr(wiener, "CHUNK", 2)
    monkeypatch.setitem(diffusion.BATCH, "amortized", 2)
    chunked = reconstructor.sample(scenes[2], TORUS, 3, NoiseStream(7, "c"))
    torch.testing.assert_close(chunked.samples, alone.samples[:3], rtol=0, atol=1e-4 * scale)
    other = reconstructor.sample(scenes[2], TORUS, 3, NoiseStream(8, "c"))
    assert (other.samples - chunked.samples).std() > 0.01 * scale


def test_noise_differs_between_seeds_names_and_samples():
    like = torch.zeros(0)
    streams = [NoiseStream(seed, name) for seed in (0, 1, 11) for name in ("a", "b", "1/a")]
    draws = torch.cat([s.normal(range(20), [(50,)], like)[0] for s in streams])
    assert len(draws.unique(dim=0)) == len(draws)
    late = streams[0].normal(range(7, 9), [(50,)], like)[0]
    assert torch.equal(late, draws[7:9])


def test_noise_belongs_to_pixels_of_the_sky():
    """Cuts of one grid share it, across the borders of the squares that it is drawn by; other things have their own."""
    stream, like, whole = NoiseStream(3, "a"), torch.zeros(0), Grid.centred((150, 90), 0.1, angle=0.3)
    drawn = stream.white(range(2), whole, like, channels=3)
    assert drawn.shape == (2, 3, 150, 90)
    assert drawn.var() == pytest.approx(1, abs=5 * (2 / drawn.numel()) ** 0.5)
    cut = stream.white(range(1, 2), whole.padded((-61, -50), (-7, -3)), like, channels=3)
    assert torch.equal(cut, drawn[1:, :, 61:100, 7:87])
    wider = stream.white(range(2), whole.padded((70, 1), (0, 200)), like, channels=3)
    assert torch.equal(wider[..., 70:220, :90], drawn)
    assert len(wider.unique()) > 0.99 * wider.numel()  # float32 has few enough values for some to meet
    first, again, other = stream.data(range(1), [_blank(BANDS[n], whole, 0.3, 1.0) for n in (0, 0, 1)], like)
    assert not any(torch.equal(a, b) for a, b in ((first, again), (first, other), (again, other)))


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_observations_changes_nothing(method):
    core = Grid.centred((20, 20), 0.1)
    observations = next(single_scenes(_batch(1, core)))
    denoiser = untrained(PAIRS, seed=3)
    first, second = (
        reconstruct(seen, denoiser, 2, method=method, grid=core) for seen in (observations, observations[::-1])
    )
    assert torch.equal(first.samples, second.samples)


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_padding_keeps_the_sky(angle):
    """The core's pixels stay where they were; the margin is wide enough, and suits the network."""
    core = Grid.centred((37, 50), 0.1, angle)
    observations = [_blank(BANDS[0], core, 0.2, 1.0), _blank(BANDS[1], Grid.centred((18, 25), 0.2), 0.9, 1.0)]
    denoiser = untrained(PAIRS)
    padded = pad_field(observations, core, denoiser)
    (top, left), (height, width) = padded.corner, padded.grid.shape
    sky = np.asarray(padded.grid.matrix) @ padded.corner + padded.grid.origin
    np.testing.assert_allclose(sky, core.origin, atol=1e-9)
    margin = MARGIN * psf_fwhm(observations[1].frame) / 0.1
    assert min(top, left, height - 37 - top, width - 50 - left) >= np.floor(margin)
    assert height % denoiser.network.stride == width % denoiser.network.stride == 0
    ramp = torch.arange(height * width).view(height, width)
    assert padded.crop(ramp).shape == core.shape
    assert padded.crop(ramp)[0, 0] == ramp[padded.corner]
    np.testing.assert_array_equal(padded.crop(torch.tensor(padded.weight)), 1)
    assert padded.weight.sum() == 37 * 50


def test_pixels_centred_outside_the_core_do_not_count():
    core = Grid.centred((20, 20), 0.1)
    wide = _blank(BANDS[1], Grid.centred((40, 30), 0.2, angle=0.3), 0.6, 1.0)
    outside = _blank(BANDS[2], Grid((5, 5), ((0.1, 0.0), (0.0, 0.1)), (3.0, 3.0)), 0.6, 1.0)
    padded = pad_field([_blank(BANDS[0], core, 0.2, 1.0), wide, outside], core, untrained(PAIRS))
    assert [o.band.name for o in padded.observations] == ["VIS", "g"]
    cut = padded.observations[1]
    assert cut.image.shape[-1] < 20
    pixels = np.argwhere(cut.ivar[0].numpy() > 0)
    sky = pixels @ np.asarray(cut.frame.grid.matrix).T + cut.frame.grid.origin
    assert np.abs(sky).max() <= 1.0 + 1e-9
    assert len(pixels) == pytest.approx(100, abs=6)  # 2 x 2 arcsec in pixels of 0.04


def test_masked_nan_never_enters():
    core = Grid.centred((20, 20), 0.1)
    observations = next(single_scenes(_batch(1, core)))
    observations[1].ivar[:, 4:6] = 0
    clean = [replace(o, image=torch.where(o.ivar > 0, o.image, 0.0)) for o in observations]
    dirty = [replace(o, image=torch.where(o.ivar > 0, o.image, torch.nan)) for o in observations]
    denoiser = untrained(PAIRS)
    first, second = (reconstruct(seen, denoiser, 2, grid=core) for seen in (clean, dirty))
    assert torch.isfinite(first.samples).all()
    assert torch.equal(first.samples, second.samples)
    dirty[0].image[0, 3, 3] = torch.nan
    with pytest.raises(InputError, match=r"^VIS: 1 pixels have no finite flux"):
        reconstruct(dirty, denoiser, 2, grid=core)


def test_vis_alone_gets_the_aliasing_floor_once():
    core = Grid.centred((20, 20), 0.1)
    observations = [replace(o, image=1000 * o.image) for o in next(single_scenes(_batch(1, core)))]
    vis, ground, _ = pad_field(observations, core, untrained(PAIRS)).observations
    torch.testing.assert_close(vis.ivar, with_aliasing_floor(observations[0]).ivar)
    assert (vis.ivar < 0.5 * observations[0].ivar).any()
    assert set(ground.ivar.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("fwhm", [0.3, 0.9])
def test_fwhm_of_a_gaussian_stamp(fwhm):
    frame = _blank(BANDS[1], Grid.centred((9, 9), 0.1), fwhm, 1.0).frame
    assert psf_fwhm(frame) == pytest.approx(fwhm, rel=0.01)
    fine = replace(frame, psf_scale=0.5)  # the same stamp in pixels half as large
    assert psf_fwhm(fine) == pytest.approx(fwhm / 2, rel=0.01)


def _skies(denoiser, count: int, amplitude: float, seed: int) -> tuple[Grid, torch.Tensor]:
    """Skies drawn from the prior on a torus far larger than the core, which no margin can know."""
    grid = Grid.centred((128, 128), 0.1)
    white = torch.randn(count, len(denoiser.bands), 128, 128, generator=torch.Generator().manual_seed(seed))
    root = torch.linalg.cholesky(denoiser.prior.on(grid))
    return grid, amplitude * field(apply(root, spectrum(white)), grid)


def test_errors_at_the_edge_of_the_core_are_as_stated():
    """Pixel pulls of the Wiener posterior within 5 pixels of the edge, and further in, are of unit width."""
    denoiser, core = untrained(PAIRS), Grid.centred((48, 48), 0.1)
    big, skies = _skies(denoiser, 6, amplitude=2.0, seed=4)
    empty = _survey(core)
    images = ForwardModel(big, denoiser.bands, denoiser.target_fwhm, empty)(skies)
    generator = torch.Generator().manual_seed(5)
    pulls = []
    for scene in range(6):
        noisy = [
            replace(o, image=a[scene : scene + 1] + o.ivar.rsqrt() * torch.randn(o.image.shape, generator=generator))
            for o, a in zip(empty, images, strict=True)
        ]
        sky = reconstruct(noisy, denoiser, 24, method="wiener", grid=core, name=str(scene))
        truth = skies[scene, :, 40:88, 40:88]
        pulls.append((sky.mean - truth) / sky.std)
    squared = torch.stack(pulls).square().mean((0, 1)) * (23 - 2) / 23  # the variance is estimated from 24 samples
    inner = torch.zeros(48, 48, dtype=torch.bool)
    inner[5:-5, 5:-5] = True
    assert squared[~inner].mean().sqrt() == pytest.approx(1, abs=0.06)
    assert squared[inner].mean().sqrt() == pytest.approx(1, abs=0.06)


def test_the_amplitude_of_a_padded_core_is_that_of_the_sky():
    """A margin without data must not look like a sky of more contrast, however much of the torus it takes."""
    denoiser, core = untrained(PAIRS), Grid.centred((48, 48), 0.1)
    big, skies = _skies(denoiser, 6, amplitude=2.0, seed=7)
    observations = _survey(core)
    images = ForwardModel(big, denoiser.bands, denoiser.target_fwhm, observations)(skies)
    generator = torch.Generator().manual_seed(8)
    found = []
    for scene in range(6):
        noisy = [
            replace(o, image=a[scene : scene + 1] + o.ivar.rsqrt() * torch.randn(o.image.shape, generator=generator))
            for o, a in zip(observations, images, strict=True)
        ]
        padded = pad_field(noisy, core, denoiser)
        model, gamma = denoiser.forward_model(padded.observations, padded.grid), denoiser.prior.on(padded.grid)
        found.append(float(evidence_amplitude(model, padded.observations, gamma)))
    assert np.prod(core.shape) < 0.4 * np.prod(padded.grid.shape)
    assert np.mean(found) / 2 == pytest.approx(1, abs=0.08)


def test_the_edge_of_the_core_costs_a_source_no_flux():
    """Fluxes in 1 arcsec of a bright source in the middle, and of one an aperture's radius from the edge.

    The mean is linear in the data, so noiseless data give its expectation over the noise. The source has the colour
    that the prior expects; the prior's pull towards zero is 1 % in the shallow bands, the same everywhere.
    """
    denoiser, core, big = untrained(PAIRS), Grid.centred((48, 48), 0.1), Grid.centred((128, 128), 0.1)
    y, x = np.ogrid[:128, :128]
    ratios = []
    for row, column in ((64, 64), (50, 60)):
        r2 = torch.tensor((y - row) ** 2 + (x - column) ** 2, dtype=torch.float32)
        source = torch.exp(-r2 / (2 * (4 * SIGMA_PER_FWHM) ** 2))  # twice the target's width: not aliased
        truth = (2000 * source / source.sum()).expand(1, 3, -1, -1)
        observations = _survey(core)
        images = ForwardModel(big, denoiser.bands, denoiser.target_fwhm, observations)(truth)
        noiseless = [replace(o, image=image) for o, image in zip(observations, images, strict=True)]
        sky = reconstruct(noiseless, denoiser, 2, method="wiener", grid=core)
        aperture = (r2 <= 10**2)[40:88, 40:88]
        found, expected = (s[:, aperture].sum(1) for s in (sky.mean, truth[0, :, 40:88, 40:88]))
        ratios.append(found / expected)
    torch.testing.assert_close(ratios[0], ratios[1], rtol=0, atol=2e-3)
    assert (ratios[0] - 1).abs().max() < 0.015
