"""Laws of mock observations and of the fields made of them, and GalSim as a reference for their PSFs."""

from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch

from jointdiff.correlation import correlation_function
from jointdiff.decimate import at_its_resolution
from jointdiff.forward import ForwardModel, wavenumber, with_floors
from jointdiff.io.products import read_truth
from jointdiff.io.scene_files import read_field
from jointdiff.reconstruct.field import pad_field
from jointdiff.scene import Grid
from jointdiff.seeds import seed_of
from jointdiff.simulate.compose import Crowding
from jointdiff.simulate.fields import write_mock_field
from jointdiff.simulate.observe import (
    GEOMETRIES,
    Conditions,
    kolmogorov_transfer,
    sheared_wavenumber,
    significant_flux,
    vis_transfer,
)
from jointdiff.survey import load_survey
from tests.denoisers import untrained
from tests.mocks import BANDS, PSF_FWHM, STEADY, TARGET_FWHM, gaussian_library, gaussian_stamp, library_of
from tests.mocks import simulator as simulator_of


def model_of(simulator, observations):
    return ForwardModel(simulator.grid, BANDS, TARGET_FWHM, observations)


def worst(simulator, mock, observations=None) -> dict[str, float]:
    """Largest difference between the images and A · truth over the image's peak, by band."""
    model = model_of(simulator, observations or mock.observations)
    pairs = zip(BANDS, mock.observations, model(mock.truth), strict=True)
    return {band.name: float((o.image - seen).abs().max() / seen.max()) for band, o, seen in pairs}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_noiseless_images_are_the_forward_model_of_the_truth(geometry):
    """Seeing, shapes, wings and dithers vary; sources so bright that their Poisson noise is 1e-5 of the peak."""
    conditions = replace(Conditions(), margin=0.0, drop_band=0.0, drop_ground=0.0, drop_vis=0.0, drop_all=0.0)
    simulator = simulator_of((geometry,), conditions, gaussian_library(1e9))
    mock = simulator.expose(4, 1)
    errors = worst(simulator, mock)
    print(geometry, errors)
    assert errors.pop("VIS") < 1e-3  # its stamp is a row smaller than the torus
    assert max(errors.values()) < 2e-4
    # A dither of the wrong sign, or of none, would be seen.
    for factor in (-1.0, 0.0):
        wrong = [replace(o, frame=replace(o.frame, shift=factor * o.frame.shift)) for o in mock.observations]
        errors = worst(simulator, mock, wrong)
        assert min(errors[band] for band in "grizy") > 0.02


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_stars_alias_in_vis_alone(geometry):
    """Within the bounds of tests/reference/test_forward_galsim.py."""
    star = library_of([gaussian_stamp([1e12] * 6, PSF_FWHM, 32)])
    simulator = simulator_of((geometry,), STEADY, star)
    errors = worst(simulator, simulator.expose(6, 2))
    print(geometry, errors)
    assert 1e-2 < errors.pop("VIS") < 3.5e-2
    assert max(errors.values()) < 2e-4


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_noise_has_the_stated_variance(geometry):
    """χ²/N about A · truth is 1 in every band, where sources shine and where they do not; four sampling errors."""
    simulator = simulator_of((geometry,), replace(STEADY, depth=0.1, seeing=0.06), gaussian_library(3.0))
    mock = simulator.expose(12, 3)
    for o, seen in zip(mock.observations, model_of(simulator, mock.observations)(mock.truth), strict=True):
        pull = (o.image - seen) * o.ivar.sqrt()
        bright = o.ivar < 0.9 * o.ivar.amax((1, 2), keepdim=True)
        # Of N pixels whose noise is shared, N / Σ_l c² are as good as independent for squares, N / Σ_l c for a mean.
        shared = 1.0 if o.correlation is None else float(o.correlation.max()) ** 0.5
        for part in (pull, pull[bright], pull[~bright]):
            assert abs(float(part.square().mean()) - 1) < 4 * shared * (2 / part.numel()) ** 0.5, o.band.name
            if o.band.name != "VIS":  # where sharp sources alias
                assert abs(float(part.mean())) < 4 * shared / part.numel() ** 0.5, o.band.name
        assert bright.sum() > 50, o.band.name
        lag, expected = (pull[..., 1:] * pull[..., :-1]).mean(), 0.0
        if o.correlation is not None:
            expected = float(correlation_function(o.correlation, o.frame.grid.shape, 1)[:, 1, 2].mean())
            assert expected > 0.6
        assert abs(float(lag) - expected) < 4 * shared / pull.numel() ** 0.5


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_depth_of_empty_sky_is_the_surveys(geometry):
    """Per arcsec², whatever the pixels: resampling to smaller ones adds no depth."""
    simulator = simulator_of((geometry,), STEADY, crowding=Crowding(empty=1.0))
    for o in simulator.expose(1, 0).observations:
        survey = load_survey("euclid" if o.band.name == "VIS" else GEOMETRIES[geometry].survey)
        expected = survey.depths[o.band.name].sky_sigma ** -2 / survey.pixel_scale**-2
        assert float(o.depth.max()) * o.frame.grid.scale**2 == pytest.approx(expected, rel=1e-5)
        assert torch.equal(o.ivar, o.ivar[:, :1, :1].expand_as(o.ivar))


@pytest.mark.parametrize(
    ("chance", "missing"),
    [("drop_band", "grizy"), ("drop_ground", "grizy"), ("drop_vis", ("VIS",)), ("drop_all", ("VIS", *"grizy"))],
)
def test_dropped_bands_say_nothing(chance, missing):
    simulator = simulator_of(("lsst",), replace(STEADY, **{chance: 1.0}))
    for o in simulator.draw(2, 0).observations:
        gone = o.band.name in missing
        assert o.present.tolist() == [not gone] * 2
        assert bool((o.ivar > 0).all()) != gone
        if gone:
            assert not o.image.any()


def test_bands_are_dropped_as_often_as_asked_for():
    simulator = simulator_of(("lsst",), replace(STEADY, drop_band=0.3, drop_all=0.1), size=16)
    present = torch.stack([o.present for o in simulator.draw(1500, 0).observations]).double()
    expected = [0.9, *[0.7 * 0.9] * 5]
    for share, chance in zip(present.mean(1).tolist(), expected, strict=True):
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 1500) ** 0.5
    # Ground bands go one by one, the whole sky at once.
    assert abs(float((present.sum(0) == 0).double().mean()) - 0.1) < 4 * (0.09 / 1500) ** 0.5


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_margin_is_unseen(geometry):
    """Pixels whose centre, dither included, is within 0.8 arcsec of the torus's edge."""
    simulator = simulator_of((geometry,), replace(STEADY, margin=1.0, margin_width=(0.8, 0.8)))
    for o in simulator.draw(3, 4).observations:
        grid = o.frame.grid
        for scene in range(3):
            axes = [
                grid.origin[i] + grid.scale * np.arange(grid.shape[i]) + float(o.frame.shift[scene, i]) for i in (0, 1)
            ]
            inside = [np.abs(axis) <= 2.4 for axis in axes]
            assert np.array_equal((o.ivar[scene] > 0).numpy(), np.outer(*inside))
            assert 0 < inside[0].sum() < grid.shape[0]


def test_margins_have_the_stated_share_and_width():
    simulator = simulator_of(("lsst",), replace(STEADY, margin=0.3, margin_width=(0.4, 0.6)), size=32)
    seen = (simulator.draw(600, 4).observations[0].ivar > 0).double().mean((1, 2))
    assert abs(float((seen < 1).double().mean()) - 0.3) < 4 * (0.21 / 600) ** 0.5
    sides = 3.2 * seen[seen < 1].sqrt()
    assert 1.9 <= float(sides.min()) < 2.1
    assert 2.3 < float(sides.max()) <= 2.5  # 3.2 − 2 · 0.4, to a pixel of 0.1


def test_kolmogorov_and_shear_are_galsims():
    grid = Grid.centred((64, 64), 0.05)
    shear = torch.tensor([[0.0, 0.0], [0.05, -0.03]], dtype=torch.float64)
    k = sheared_wavenumber(grid, shear)
    np.testing.assert_allclose(k[0].numpy(), wavenumber(grid), rtol=1e-12)
    found = kolmogorov_transfer(k, torch.full((2, 1, 1), 0.7, dtype=torch.float64)).numpy()
    ky, kx = np.fft.fftfreq(64, 0.05), np.fft.rfftfreq(64, 0.05)
    for image, (g1, g2) in zip(found, shear.tolist(), strict=True):
        psf = galsim.Kolmogorov(fwhm=0.7).shear(g1=g1, g2=g2)
        expected = [[psf.kValue(2 * np.pi * x, 2 * np.pi * y).real for x in kx] for y in ky]
        np.testing.assert_allclose(image, expected, atol=1e-3)  # GalSim has 0.9759 where Fried has 0.976


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ground_psfs_are_galsims(geometry):
    """Pixel included, on the observed pixels; 1e-3 of the peak, for a torus of 25.6 arcsec folds the far wings back."""
    simulator = simulator_of((geometry,), size=256)
    survey = load_survey(GEOMETRIES[geometry].survey)
    for o in simulator.expose(1, 0).observations[1:]:
        stamp, scale = o.frame.psf[0].double().numpy(), o.frame.grid.scale
        n = len(stamp)
        psf = galsim.Kolmogorov(fwhm=survey.depths[o.band.name].fwhm)
        expected = psf.drawImage(nx=n, ny=n, scale=scale, dtype=float).array
        assert n == min(o.frame.grid.shape), "no row of the torus is lost"
        assert np.abs(stamp - expected / expected.sum()).max() < 1e-3 * expected.max(), o.band.name


def test_vis_psf_is_the_q1_one():
    """FWHM 0.19 arcsec and 17 % of the flux in the central pixel, pixel included (see VIS_JITTER_FWHM)."""
    simulator = simulator_of(("lsst",))
    assert float(simulator.expose(1, 0).observations[0].frame.psf.amax()) == pytest.approx(0.17, abs=0.01)
    fine = Grid.centred((256, 256), 0.01)
    pixel = np.sinc(np.fft.fftfreq(256, 0.01)[:, None] * 0.1) * np.sinc(np.fft.rfftfreq(256, 0.01) * 0.1)
    transfer = vis_transfer(torch.tensor(wavenumber(fine)), torch.tensor(0.13)).numpy() * pixel
    row = np.fft.irfft2(transfer)[0, :40]
    half = np.interp(-row[0] / 2, -row, 0.01 * np.arange(40))
    assert 2 * half == pytest.approx(0.19, abs=0.005)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mocks_follow_the_seed(geometry):
    simulator = simulator_of((geometry,), Conditions())
    first, again, other = simulator.draw(3, 7), simulator.draw(3, 7), simulator.draw(3, 8)
    assert torch.equal(first.truth, again.truth)
    assert not torch.equal(first.truth, other.truth)
    for a, b, c in zip(first.observations, again.observations, other.observations, strict=True):
        for x, y in ((a.image, b.image), (a.ivar, b.ivar), (a.frame.psf, b.frame.psf), (a.frame.shift, b.frame.shift)):
            assert torch.equal(x, y)
        assert not torch.equal(a.image, c.image)
        assert not torch.equal(a.frame.psf, c.frame.psf)


def test_batches_go_round_the_geometries():
    simulator = simulator_of(tuple(GEOMETRIES), size=16)
    scales = [simulator.draw(1, seed).observations[1].frame.grid.scale for seed in range(60)]
    assert {round(s, 3) for s in scales} == {0.168, 0.2}  # MER-resampled images are decimated


EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module", params=GEOMETRIES)
def served(request, tmp_path_factory):
    """A mock on a torus of 64 with a margin of 16, and its folder."""
    conditions = replace(STEADY, seeing=0.06, ellipticity=0.03, margin=1.0, margin_width=(1.6, 1.6))
    simulator = simulator_of((request.param,), conditions, gaussian_library(3.0))
    mock = simulator.expose(1, 11)
    folder = tmp_path_factory.mktemp(request.param)
    write_mock_field(folder, "mock", mock, BANDS, simulator.grid, TARGET_FWHM, 16)
    return mock, read_field(folder / "scene.yaml"), folder


def test_mock_fields_hold_the_core(served):
    mock, field, folder = served
    assert field.grid.shape == (32, 32)
    truth = read_truth(folder)
    np.testing.assert_array_equal(truth.flux, mock.truth[0, :, 16:-16, 16:-16].numpy())
    corners = [[0.0, 0.0], [31.0, 0.0], [10.0, 20.0]]
    here, there = (w.pixel_to_world_values(*np.transpose(corners)[::-1]) for w in (truth.wcs, field.wcs))
    np.testing.assert_allclose(here, there, atol=1e-9)  # degrees; 4 µas
    ra = field.wcs.pixel_to_world_values([0, 31], [0, 0])[0]
    assert ra[0] > ra[1], "east is to the left"
    for o, before in zip(field.observations, mock.observations, strict=True):
        seen = before.ivar[0] > 0
        assert o.band.name == before.band.name
        assert torch.equal(o.image.flatten(), before.image[0][seen])
        assert torch.equal(o.ivar.flatten(), before.ivar[0][seen])
        torch.testing.assert_close(o.frame.psf, before.frame.psf)


def test_mocks_are_weighted_as_real_fields_are(served):
    """What a method is given of a field that was written and read back is what Simulator.draw would have given it."""
    mock, field, _ = served
    padded = pad_field(field.observations, field.grid, untrained())
    for o, before in zip(padded.observations, mock.observations, strict=True):
        assert o.band == before.band
        taken = with_floors(at_its_resolution(before, 0.1), BANDS)
        # Correlated noise goes through a file of its lags: once in float32, and once around.
        bound = {} if before.correlation is None else {"rtol": 1e-4, "atol": 0}
        torch.testing.assert_close(o.ivar.flatten(), taken.ivar[0][taken.ivar[0] > 0], **bound or EXACT)


def chi2(mock, field, roll=(0, 0)) -> dict[str, tuple[float, int]]:
    """χ²/N and N of a field's pixels about A · truth, with the torus's truth laid round the core."""
    padded = pad_field(field.observations, field.grid, untrained())
    (y, x), (height, width) = padded.corner, padded.grid.shape
    # Scene pixel (16, 16) of the torus is core pixel (0, 0).
    rows, columns = (np.arange(n) - start + 16 for n, start in ((height, y), (width, x)))
    truth = mock.truth.roll(roll, (2, 3))[:, :, rows % 64][..., columns % 64]
    model = ForwardModel(padded.grid, BANDS, TARGET_FWHM, padded.observations)
    found = {}
    for o, seen in zip(padded.observations, model(truth), strict=True):
        inside = o.ivar > 0
        found[o.band.name] = (float(((o.image - seen).square() * o.ivar)[inside].mean()), int(inside.sum()))
    return found


def test_mock_fields_agree_with_their_truth(served):
    """A parity, a shift or a dither lost on the way through the sky would show in every band."""
    mock, field, _ = served
    for band, (value, count) in chi2(mock, field).items():
        assert abs(value - 1) < 5 * (2 / count) ** 0.5 + (0.1 if band == "VIS" else 0), band
    for roll in ((1, 0), (0, -1)):
        print(chi2(mock, field, roll))
        assert all(value > 1 + 10 * (2 / count) ** 0.5 for value, count in chi2(mock, field, roll).values())


def test_weights_tell_of_significant_light_alone():
    """Source Poisson noise is modelled where the data show a source; a faint one leaves no trace in the weights."""
    generator = torch.Generator().manual_seed(0)
    r = torch.arange(32) - 15.5
    profile = torch.exp(-(r[:, None] ** 2 + r**2) / 18)
    sky = torch.full((1, 1, 1), 2.0)
    noise = 2 * torch.randn(1, 32, 32, generator=generator)
    assert significant_flux(noise + profile, sky).max() == 0
    bright = significant_flux(noise + 400 * profile, sky)
    assert bright[0, 15, 15] == pytest.approx(400, rel=0.1)
    assert bright[0, 0, 0] == 0


def test_composing_and_observing_draw_from_streams_of_their_own():
    """One seed, two purposes: the same numbers would tie the noise to the sources."""
    seeds = [seed_of(purpose, 7) for purpose in ("compose", "observe", "noise")]
    draws = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert torch.corrcoef(torch.stack(draws)).fill_diagonal_(0).abs().max() < 0.15
