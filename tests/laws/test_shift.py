"""Laws of the shift suite: each condition changes what it says, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.evaluate import shift
from jointdiff.forward import ForwardModel
from jointdiff.scene import Frame, Observation
from jointdiff.sed import changed_fluxes, lines, starburst_attenuation
from jointdiff.simulate import off_locus
from tests.mocks import BANDS, TARGET_FWHM, gaussian_library, simulator
from tests.observing import gaussian_psf

SOURCE = simulator(("lsst",), size=48)


def test_the_undisturbed_scenes_are_those_of_every_suite():
    (mock,) = shift.mocks([(SOURCE, 2, 5)], shift.SHIFTS[shift.UNDISTURBED])
    drawn = SOURCE.draw(2, 5)
    assert torch.equal(mock.truth, drawn.truth)
    assert all(torch.equal(a.ivar, b.ivar) for a, b in zip(mock.observations, drawn.observations, strict=True))


def test_only_the_sky_and_the_depth_change_the_truth_or_the_data():
    drawn = SOURCE.expose(1, 5)
    for name, one in shift.SHIFTS.items():
        if one.drawn is not shift.SHIFTS[shift.UNDISTURBED].drawn:
            continue
        (mock,) = shift.mocks([(SOURCE, 1, 5)], one)
        assert torch.equal(mock.truth, drawn.truth), name
        assert all(torch.equal(a.image, b.image) for a, b in zip(mock.observations, drawn.observations, strict=True))


def test_a_psf_told_narrower_is_the_psf_that_is_narrower():
    grid = SOURCE.grid
    image = torch.zeros(1, *grid.shape, dtype=torch.float64)
    wide, narrow = (
        Observation(BANDS[1], Frame(grid, gaussian_psf(1, 41, width)), image, image + 1) for width in (3.0, 2.85)
    )
    (told,) = shift.narrower([wide], 0, 0.95)
    scene = torch.zeros(1, len(BANDS), *grid.shape, dtype=torch.float64)
    scene[:, 1, 20, 24] = 1.0
    made, expected = (ForwardModel(grid, BANDS, TARGET_FWHM, [o])(scene)[0] for o in (told, narrow))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_ground_bands_are_told_off_and_vis_is_not():
    observations = SOURCE.expose(3, 5).observations
    told = shift.misplaced(observations, 1, 0.1)
    steps = {}
    for before, after in zip(observations, told, strict=True):
        step = after.frame.shift - before.frame.shift
        steps[before.band.name] = step
        expected = 0.0 if before.band.name == "VIS" else 0.1
        np.testing.assert_allclose(step.norm(dim=1), expected, atol=1e-6)
    assert not torch.allclose(steps["g"], steps["r"])


def test_noise_told_too_small_and_bands_left_out():
    observations = SOURCE.expose(1, 5).observations
    told = shift.SHIFTS["noise_under"].told(observations, 0)
    for before, after in zip(observations, told, strict=True):
        torch.testing.assert_close(after.ivar, 1.44 * before.ivar)
    alone = shift.SHIFTS["no_ground"].told(observations, 0)
    assert [bool(o.present) for o in alone] == [True] + [False] * 5


def test_a_magnitude_of_depth_is_a_factor_of_the_noise():
    """On an empty sky, where nothing else is random: the same noise, 10^0.4 times as large."""
    nothing = torch.zeros(1, 11, *SOURCE.sky.shape)
    geometry = shift_geometry()
    usual = SOURCE.expose_skies(nothing, geometry, 3)
    shallow = shift.SHIFTS["shallow"].drawn(SOURCE).expose_skies(nothing, geometry, 3)
    for a, b in zip(usual.observations, shallow.observations, strict=True):
        torch.testing.assert_close(b.image, 10**0.4 * a.image, rtol=1e-4, atol=1e-6)


def shift_geometry():
    from jointdiff.simulate.observe import GEOMETRIES

    return GEOMETRIES["lsst"]


def test_scores_over_the_undisturbed_ones():
    numbers = {key: 0.2 for key in shift.OVER}
    rows = [{"condition": name, "method": "a", "band": "g"} | numbers for name in (shift.UNDISTURBED, "dust")]
    rows[1] |= {"flux_scatter": 0.3}
    base, dust = shift.relative(rows)
    assert [base[key] for key in shift.OVER.values()] == [1, 1, 1]
    assert dust["flux_scatter_over"] == pytest.approx(1.5)


FILTERS = ("VIS", "hsc-g", "hsc-r", "hsc-i", "hsc-z", "hsc-y")


def test_fluxes_of_a_changed_spectrum():
    np.testing.assert_allclose(changed_fluxes(np.ones_like, FILTERS), 1)
    sloped = changed_fluxes(lambda w: w / 5000, FILTERS[1:])
    assert (np.diff(sloped) > 0).all()
    assert sloped[0] == pytest.approx(0.96, abs=0.03)  # g is centred on 4800 Å


def test_attenuation_is_that_of_its_paper():
    """k(V) is R_V = 4.05, and the two formulas meet where one takes over."""
    assert starburst_attenuation(np.array([5500.0]))[0] == pytest.approx(4.05, abs=0.02)
    blue, red = starburst_attenuation(np.array([6299.0, 6301.0]))
    assert blue == pytest.approx(red, abs=0.03)


def test_lines_have_their_equivalent_width():
    wavelength = np.linspace(3000, 12000, 90_001)
    found = np.trapezoid(lines(wavelength, 0.5, ((5007.0, 700.0), (3727.0, 100.0)), 0.002) - 1, wavelength)
    assert found == pytest.approx(1.5 * 800, rel=1e-3)


def _colours(library, other) -> np.ndarray:
    """Each band's flux over what it was, (N, C)."""
    pairs = [(other.flux[n].double() / library.flux[n].double()).numpy() for n in library.flux]
    return np.concatenate(pairs)


def test_dust_reddens_and_lines_light_their_bands_but_vis_keeps_its_light():
    library = gaussian_library()
    names = [band.filter for band in library.bands]
    dusty, lit = (_colours(library, change(library)) for change in (off_locus.dusty, off_locus.line_emitting))
    for found in (dusty, lit):
        np.testing.assert_allclose(found[:, 0], 1, rtol=1e-5)
    assert (np.diff(dusty[:, 1:6]) > 0.05).all()  # g r i z y
    held = {name: lit[0, names.index(name)] for name in names}
    assert held["hsc-i"] > 1.3 * held["hsc-z"]
    assert held["hsc-y"] > 1.2 * held["hsc-z"]
    assert held["hsc-g"] == pytest.approx(held["hsc-z"], rel=0.01)  # no line in either
    stamp = {
        n: stamps.double().sum((2, 3)) * library.scales[n][:, None]
        for n, stamps in off_locus.dusty(library).stamps.items()
    }
    for n, flux in off_locus.dusty(library).flux.items():
        torch.testing.assert_close(stamp[n].float(), flux, rtol=1e-4, atol=0)


def test_quasars_are_stars_of_one_spectrum():
    library = gaussian_library()
    n = next(iter(library.is_star))
    library.is_star[n][:2] = True
    found = off_locus.quasars(library)
    assert len(found) == 2
    assert set(found.stamps) == {n}
    vis = [band.filter for band in library.bands].index("VIS")
    torch.testing.assert_close(found.flux[n][:, vis], library.flux[n][:2, vis])
    change = changed_fluxes(lambda w: off_locus._quasar(w, 0.5), ("VIS", *(band.filter for band in library.bands)))
    np.testing.assert_allclose((found.flux[n][0] / found.flux[n][0, vis]).numpy(), change[1:] / change[0], rtol=1e-5)
    mock = SOURCE.but(found).draw(1, 2)
    assert mock.truth.isfinite().all()


def test_a_library_without_stars_has_no_quasars():
    with pytest.raises(AssertionError, match="stars"):
        off_locus.quasars(gaussian_library())


def test_a_simulator_but_for_its_conditions_is_otherwise_the_same():
    other = SOURCE.but(conditions=replace(SOURCE.conditions, seeing=0.2))
    assert other.library is SOURCE.library
    assert torch.equal(other.expose(1, 9).truth, SOURCE.expose(1, 9).truth)
    assert not torch.equal(other.expose(1, 9).observations[0].image, SOURCE.expose(1, 9).observations[0].image)
