"""Laws of objects outside the prior: as bright as asked, told of where not explained, silent where they are."""

import numpy as np
import pytest
import torch

from jointdiff.evaluate import outside
from jointdiff.forward import gaussian_transfer
from jointdiff.measure.peaks import ALARM
from jointdiff.measure.unexplained import significance
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


@pytest.mark.parametrize("geometry", ["lsst", "mer"])
def test_what_is_explained_raises_no_alarm(method, geometry):
    """Samples that are the truth: all is recovered, and the residuals are the noise, correlated or not."""
    for seed in range(3):
        truth, *seen = _seen(method, "checkerboard", seed, simulator((geometry,), size=64))
        draws = Draws(truth.expand(4, -1, -1, -1), truth)
        assert outside.recovery(draws, truth, *seen)["recovered"] == pytest.approx(1, abs=1e-4)
        assert significance(draws, *seen).sigma.max() < ALARM


@pytest.mark.parametrize("name", outside.OBJECTS)
def test_an_unexplained_object_of_20_sigma_is_found_where_it_is(method, name):
    """Samples that are empty. The search knows no arc, trail or checkerboard, yet of each it has more than half."""
    truth, *seen = _seen(method, name, 0)
    nothing = torch.zeros(4, *truth.shape)
    assert outside.recovery(Draws(nothing, nothing[0]), truth, *seen)["recovered"] == 0
    sigma = significance(Draws(nothing, nothing[0]), *seen).sigma
    assert sigma.max() > 10
    light = truth.abs().amax(0)
    y, x = np.unravel_index(sigma.argmax(), sigma.shape)
    away = (light > outside.FOOTPRINT * light.max()).nonzero() - torch.tensor([y, x])
    away = (away + 32) % 64 - 32
    assert away.double().norm(dim=1).min() * SOURCE.grid.scale < 1.0


def test_a_certain_but_wrong_brightness_is_wrong(method):
    truth, *seen = _seen(method, "arc", 0)
    spread = 1 + 0.01 * torch.linspace(-1, 1, 8).view(-1, 1, 1, 1)
    right, low = (outside.recovery(Draws(f * spread * truth, f * truth), truth, *seen) for f in (1.0, 0.8))
    assert abs(right["pull"]) < 1e-3
    assert low["pull"] < -outside.WRONG
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
