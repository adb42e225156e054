"""Laws of objects outside the prior: as bright as asked, told of where not explained, silent where they are."""

import numpy as np
import pytest
import torch

from jointdiff.evaluate import outside
from jointdiff.forward import gaussian_transfer
from jointdiff.reconstruct.base import Draws
from jointdiff.reconstruct.diffusion import Diffusion
from tests.denoisers import untrained
from tests.mocks import simulator

SOURCE = simulator(("lsst",), size=64)


@pytest.fixture(scope="module")
def method() -> Diffusion:
    return Diffusion(untrained(), 3)


@pytest.mark.parametrize("name", outside.OBJECTS)
def test_an_object_has_the_signature_that_it_is_asked_for(method, name):
    thing = outside.OBJECTS[name]
    mock, truth = outside.observed(method.denoiser, SOURCE, thing, 7.0, 1)
    seen = method.denoiser.forward_model(mock.observations, SOURCE.grid)(truth[None])
    power = [float((o.ivar * a**2).sum()) for o, a in zip(mock.observations, seen, strict=True)]
    assert sum(power) ** 0.5 == pytest.approx(7, rel=0.02)  # the floors of a few bright pixels
    torch.testing.assert_close(mock.truth[0], truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
    seen = truth.abs().amax((1, 2)) > 0
    assert seen.tolist() == [thing.band in (None, band.name) for band in SOURCE.bands]


def test_an_object_does_not_depend_on_where_the_torus_is_cut():
    grid, thing = SOURCE.sky, outside.OBJECTS["ring"]
    middle, corner = (thing.sky(grid, 0.1, SOURCE.bands[:1], np.array(at))[0] for at in ((64, 64), (0, 0)))
    torch.testing.assert_close(middle.roll((64, 64), (0, 1)), corner, rtol=0, atol=1e-5)
    assert float(middle.sum()) == pytest.approx(np.sqrt(2 * np.pi) * 0.1 * 2 * np.pi / grid.scale**2, rel=1e-3)
    assert gaussian_transfer(grid, 0.1)[0, 0] == 1


def _seen(method, name: str, seed: int, source=SOURCE):
    """An object of 20 sigma: its scene, and how it was observed."""
    mock, truth = outside.observed(method.denoiser, source, outside.OBJECTS[name], 20.0, seed)
    return truth, method.denoiser.forward_model(mock.observations, source.grid), mock.observations


def test_what_is_explained_raises_no_alarm(method):
    """Samples that are the truth: all is recovered, and the residuals are the noise, correlated or not."""
    excess = []
    for seed in range(6):
        source = (SOURCE, simulator(("mer",), size=64))[seed % 2]
        truth, *seen = _seen(method, "checkerboard", seed, source)
        row = outside.residuals(Draws(truth.expand(4, -1, -1, -1), truth), truth, *seen)
        assert row["recovered"] == pytest.approx(1, abs=1e-4)
        excess.append(row["residual"])
    assert abs(np.mean(excess)) < 4 / np.sqrt(6)
    assert max(excess) < 4


def test_an_unexplained_checkerboard_of_20_sigma_is_caught(method):
    """Samples that are empty: χ² exceeds the number of pixels N by what the object has there, some 20²."""
    for seed in range(3):
        truth, *seen = _seen(method, "checkerboard", seed)
        nothing = torch.zeros(4, *truth.shape)
        row = outside.residuals(Draws(nothing, nothing[0]), truth, *seen)
        assert row["recovered"] == 0
        assert row["caught_residual"] == 1
        assert row["residual"] > 2 * outside.ALARM


def test_a_certain_but_wrong_brightness_is_wrong(method):
    truth, *seen = _seen(method, "arc", 0)
    spread = 1 + 0.01 * torch.linspace(-1, 1, 8).view(-1, 1, 1, 1)
    right, low = (outside.residuals(Draws(f * spread * truth, f * truth), truth, *seen) for f in (1.0, 0.8))
    assert abs(right["pull"]) < 1e-3
    assert low["pull"] < -outside.ALARM
    assert low["recovered"] == pytest.approx(0.8, rel=1e-4)


@pytest.mark.parametrize("signature", [0.0, 20.0])
def test_one_sky_through_a_method(method, signature):
    row = outside.trial(method, SOURCE, outside.OBJECTS["trail"], signature, 2)
    assert set(row) == set(outside._COLUMNS) - {"object", "signature"}
    if signature:
        assert 0.1 < row["recovered"] < 1.2  # an untrained network leaves the Wiener filter, which can draw a line
        assert row["silent"] <= row["wrong"]
    else:
        assert np.isnan(row["recovered"])
        assert row["wrong"] == row["silent"] == 0
