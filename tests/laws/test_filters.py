"""What a survey sees through filters that are not the scene's, and how far colour terms explain it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.decimate import at_its_resolution
from jointdiff.forward import ForwardModel, response, with_floors
from jointdiff.simulate.galaxies import SourceSettings, draw_source
from jointdiff.simulate.observe import GEOMETRIES, Conditions
from jointdiff.survey import FILTERS, load_survey
from tests.denoisers import untrained
from tests.mocks import BANDS, LSST, STEADY, TARGET_FWHM, gaussian_stamp, library_of, simulator

FILTER_NAMES = [band.filter for band in (*BANDS, *LSST)]
COUNT = 150


@pytest.fixture(scope="module")
def stamps() -> list[np.ndarray]:
    """Galaxies and stars as a library draws them, in BANDS and LSST."""
    settings = SourceSettings(stamp_sizes=(64,))
    return [draw_source(np.random.default_rng((5, n)), FILTER_NAMES, settings).stamp for n in range(COUNT)]


@pytest.fixture(scope="module")
def odd_colours():
    """Sources whose LSST fluxes no colour term could tell from the others."""
    rng = np.random.default_rng(2)
    return library_of([gaussian_stamp(rng.uniform(1e4, 3e4, len(FILTER_NAMES)), 0.6, 48) for _ in range(4)])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_band_of_a_survey_has_a_filter_of_its_own(geometry):
    for name in load_survey(GEOMETRIES[geometry].survey).depths:
        seen = GEOMETRIES[geometry].seen(replace(BANDS[1], name=name))
        assert seen.name == name
        assert seen.filter in FILTERS


@pytest.mark.parametrize(("geometry", "seen"), [("lsst", (BANDS[0], *LSST)), ("hsc", BANDS), ("mer", BANDS)])
def test_observations_carry_the_surveys_filters(odd_colours, geometry, seen):
    """And where those are the scene's, A is one-hot and no variance is added but for aliasing under sources in VIS."""
    source = simulator((geometry,), STEADY, odd_colours)
    drawn = source.draw(2, 0).observations
    served = [at_its_resolution(o, 0.1) for o in source.expose(2, 0).observations]
    assert tuple(o.band for o in drawn) == seen
    for index, (one, other) in enumerate(zip(drawn, served, strict=True)):
        coefficients, scatter = response(one.band, BANDS)
        if one.band == BANDS[index]:
            assert coefficients == np.eye(6)[index].tolist()
            assert scatter == 0
            assert torch.equal(one.ivar, other.ivar) or index == 0
            assert (one.ivar <= other.ivar).all()
        else:
            assert scatter > 0
            assert (one.ivar < other.ivar).any()
        assert torch.equal(one.image, other.image)


def test_what_is_seen_does_not_depend_on_the_scenes_filters(odd_colours):
    """The image is through the survey's filter, not a mixture of the scene's: bit for bit, whatever the scene's are."""
    own = (BANDS[0], *LSST)
    indirect = simulator(("lsst",), Conditions(), odd_colours).expose(3, 4)
    direct = simulator(("lsst",), Conditions(), odd_colours, bands=own).expose(3, 4)
    for one, other in zip(indirect.observations, direct.observations, strict=True):
        assert one.band == other.band
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.ivar, other.ivar)
    assert torch.equal(indirect.truth[:, 0], direct.truth[:, 0])
    assert not torch.isclose(indirect.truth[:, 1:].sum(), direct.truth[:, 1:].sum(), rtol=1e-3)


def test_the_truth_does_not_depend_on_the_geometry(odd_colours):
    """Nor do the places and turns of its sources on how many filters are composed."""
    truths = [simulator((geometry,), STEADY, odd_colours).expose(3, 4).truth for geometry in GEOMETRIES]
    for truth in truths[1:]:
        torch.testing.assert_close(truth, truths[0], rtol=1e-5, atol=1e-5 * float(truths[0].max()))


@pytest.mark.parametrize("band", LSST, ids=lambda band: band.filter)
def test_colour_terms_scatter_as_stated(stamps, band):
    """Over the library's sources, each weighted alike: r² of residual over floor is one, to three sampling errors.

    The floor is of templates at z < 2, the sources go to 4, mix templates and are stars too. Nor is it far too wide.
    """
    coefficients, scatter = response(band, BANDS)
    index = FILTER_NAMES.index(band.filter)
    residuals = np.array([np.einsum("c,cij", coefficients, s[: len(BANDS)]) - s[index] for s in stamps])
    light = np.array([s[index] for s in stamps])
    squares = (residuals**2).sum((1, 2)) / (scatter**2 * (light**2).sum((1, 2)))
    print(band.filter, f"scatter {scatter:.4f}, rms over it {squares.mean() ** 0.5:.2f}")
    assert 0.25 < squares.mean() < 1 + 3 * squares.std() / COUNT**0.5
    assert scatter < 0.02, "METHOD section 4"


def test_images_agree_with_the_scene_within_the_floor(stamps):
    """A · truth against LSST images so deep that colour terms, not noise, set the residual.

    Over 32 scenes: of a few, one source of an odd colour may set it.
    """
    source = simulator(("lsst",), STEADY, library_of([100 * s for s in stamps]))
    served = source.expose(32, 0)
    model = ForwardModel(source.grid, BANDS, TARGET_FWHM, served.observations)
    for o, seen in zip(served.observations[1:], model(served.truth)[1:], strict=True):
        floored = with_floors(o, BANDS)
        square, ruled = (o.image - seen).square(), floored.ivar < 0.5 * o.ivar
        assert ruled.sum() > 1000
        assert float((square * floored.ivar)[ruled].mean()) < 1
        assert float((square * o.ivar)[ruled].mean()) > 2, "without the floor the images contradict the truth"


def test_a_band_that_only_its_neighbours_tell_of_does_not_count_as_observed(odd_colours):
    """LSST i holds some of the scene's z: i tells of z where z is missing, but the network learns that z is."""
    source = simulator(("lsst",), STEADY, odd_colours)
    drawn = source.draw(2, 0).observations
    drawn[4] = replace(drawn[4], ivar=drawn[4].ivar * torch.tensor([0.0, 1.0]).view(2, 1, 1))
    denoiser = untrained()
    conditioning = denoiser.condition(drawn, source.grid)
    depth = conditioning.posterior.data_precision[:, 0, 0, 4, 4]
    assert 0 < depth[0] < 0.1 * depth[1]
    logarithms, observed = conditioning.scalars.chunk(2, dim=1)
    assert observed.tolist() == [[1, 1, 1, 1, 0, 1], [1] * 6]
    assert (logarithms != 0).all()
