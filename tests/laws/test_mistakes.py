"""Laws of what nobody knows of: the sky is off by it, nothing that is served is, and no other random number changes."""

from dataclasses import replace

import pytest
import torch

from jointdiff.errors import InputError
from jointdiff.forward import ForwardModel
from jointdiff.seeds import seed_of
from jointdiff.settings import SceneConfig
from jointdiff.simulate.compose import Crowding
from jointdiff.simulate.mock import complete
from jointdiff.simulate.observe import Conditions, Errors
from tests.mocks import BANDS, PSF_FWHM, STEADY, TARGET_FWHM, gaussian_library, gaussian_stamp, library_of, simulator

USUAL = {"jitter": 0.02, "zero_point_error": 0.01, "psf_error": 0.015, "sky_error": 0.1}


def errors_of(conditions: Conditions, batch: int, seed: int) -> list[Errors]:
    """Those that the simulator draws for each band."""
    generator = torch.Generator().manual_seed(seed_of("mistakes", seed))
    return [Errors.draw(conditions, band.name == "VIS", batch, generator) for band in BANDS]


def test_errors_have_the_stated_deviations():
    conditions = replace(STEADY, **USUAL)
    errors = Errors.draw(conditions, False, 4000, torch.Generator().manual_seed(0))
    for found, name in ((errors.shift, "jitter"), (errors.flux - 1, "zero_point_error")):
        assert float(found.std()) == pytest.approx(USUAL[name], rel=4 / 8000**0.5)
    for found, name in ((errors.width - 1, "psf_error"), (errors.sky, "sky_error")):
        assert float(found.std()) == pytest.approx(USUAL[name], rel=4 / 8000**0.5)
    assert not Errors.draw(conditions, True, 10, torch.Generator().manual_seed(0)).shift.any()


@pytest.mark.parametrize("geometry", ["lsst", "hsc", "mer"])
def test_errors_change_nothing_that_is_served(geometry):
    """Truth, PSFs, positions and noise are the same numbers with and without them; images are not."""
    without = simulator((geometry,), Conditions()).expose(3, 7)
    mistaken = simulator((geometry,), replace(Conditions(), **USUAL)).expose(3, 7)
    assert torch.equal(without.truth, mistaken.truth)
    for a, b in zip(without.observations, mistaken.observations, strict=True):
        assert torch.equal(a.frame.psf, b.frame.psf)
        assert torch.equal(a.frame.shift, b.frame.shift)
        assert torch.equal(a.ivar > 0, b.ivar > 0)
        assert not torch.equal(a.image, b.image)


@pytest.mark.parametrize("name", ["jitter", "zero_point_error", "sky_error"])
def test_images_are_those_of_the_mistaken_instrument(name):
    """A of the truth with the error put in, to 2e-4 of the peak (5e-4 in VIS); without, off by a hundred times that."""
    conditions = replace(STEADY, **{name: 5 * USUAL[name]})
    source = simulator(("lsst",), conditions, gaussian_library(1e9))
    mock, errors = source.expose(3, 1), errors_of(conditions, 3, 1)
    right = [
        replace(o, frame=replace(o.frame, shift=o.frame.shift + e.shift))
        for o, e in zip(mock.observations, errors, strict=True)
    ]
    plain, moved = (
        ForwardModel(source.grid, BANDS, TARGET_FWHM, seen)(mock.truth) for seen in (mock.observations, right)
    )
    for o, e, a, b in zip(mock.observations, errors, plain, moved, strict=True):
        level = e.sky * o.ivar.amax((1, 2), keepdim=True).rsqrt() if name == "sky_error" else 0.0
        peak = b.amax()
        assert (o.image - (e.flux * b + level)).abs().max() < (1e-3 if o.band.name == "VIS" else 2e-4) * peak
        if name == "zero_point_error" or (name == "jitter" and o.band.name != "VIS"):
            assert (o.image - a).abs().max() > 0.01 * peak


@pytest.mark.parametrize("geometry", ["lsst", "mer"])
def test_the_true_psf_is_wider_than_the_served_one(geometry):
    """By √(noise-equivalent area) of a star's image, to the share of the pixel, whose width is known."""
    conditions = replace(STEADY, psf_error=0.05)
    star = library_of([gaussian_stamp([1e12] * 6, PSF_FWHM, 32)])
    alone = Crowding(mean_sources=1.0, empty=0.0, flux_scatter=0.0)
    source = simulator((geometry,), conditions, star, crowding=alone)
    right = simulator((geometry,), STEADY, star, crowding=alone).expose(6, 3)
    for o, plain, e in zip(
        source.expose(6, 3).observations, right.observations, errors_of(conditions, 6, 3), strict=True
    ):
        area, before = (((i.sum((1, 2))).square() / i.square().sum((1, 2))).sqrt() for i in (o.image, plain.image))
        if o.band.name == "VIS":
            continue  # a star's width there goes with its place in the pixel
        torch.testing.assert_close((area / before - 1), (e.width - 1).flatten(), rtol=0.15, atol=2e-3)


def test_the_sky_that_is_left_is_one_level():
    """On blank sky, over a scene's own noise, where the noise has been averaged out."""
    conditions = replace(STEADY, sky_error=0.5)
    mistaken = simulator(("hsc",), conditions, gaussian_library(1e-9)).expose(4, 2)
    plain = simulator(("hsc",), STEADY, gaussian_library(1e-9)).expose(4, 2)
    for a, b, e in zip(mistaken.observations, plain.observations, errors_of(conditions, 4, 2), strict=True):
        level = (a.image - b.image) * a.ivar.amax((1, 2), keepdim=True).sqrt()
        torch.testing.assert_close(level, e.sky.expand_as(level), rtol=1e-3, atol=1e-4)


def test_complete_scenes_keep_them():
    """They are no accident of a scene, as a missing band is: a score without them would be of another instrument."""
    kept = complete(replace(Conditions(), **USUAL))
    assert {name: getattr(kept, name) for name in USUAL} == USUAL


@pytest.mark.parametrize(("name", "value"), [("jitter", -0.01), ("psf_error", 0.5), ("sky_error", float("nan"))])
def test_impossible_errors_are_refused(name, value):
    with pytest.raises(InputError, match=f"scene.{name}"):
        SceneConfig(**{name: value})
