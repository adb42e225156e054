"""Laws of the morphology on samples: known profiles, every image by itself, and what is flagged is counted."""

import importlib.util

import numpy as np
import pytest

from jointdiff.errors import InputError
from jointdiff.evaluate import morphology_study
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.measure.aliases import add_aliases
from jointdiff.measure.catalog import MeasureSettings, measure
from jointdiff.measure.detection import Segments
from jointdiff.measure.morphology import INDICES, MIN_SNR, measure_morphology, require_statmorph
from jointdiff.scene import Band
from tests.contracts.test_catalog import NAMES, scene

galsim = pytest.importorskip("galsim")
pytest.importorskip("statmorph", reason="statmorph comes with the extras morphology and dev")

SIZE, SCALE, FWHM = 80, 0.1, 0.2
N, C, A, G, M20 = range(5)


def image(*profiles) -> np.ndarray:
    """Profiles at the target PSF, neither round nor centred on the pixels: statmorph trips over perfect circles."""
    galaxy = galsim.Sum(list(profiles)).shear(g1=0.1, g2=0.05).shift(0.013, -0.027)
    seen = galsim.Convolve(galaxy, galsim.Gaussian(fwhm=FWHM))
    return seen.drawImage(nx=SIZE, ny=SIZE, scale=SCALE, method="no_pixel", dtype=float).array


def around(light: np.ndarray) -> Segments:
    """One segment, of all that is brighter than a hundredth of the peak."""
    labels = (light > 0.01 * light.max()).astype(int)
    return Segments(labels, np.array([SIZE / 2]), np.array([SIZE / 2]))


def of(light: np.ndarray, segments: Segments | None = None):
    return measure_morphology(light[None], segments or around(light), np.ones(1, dtype=bool), FWHM, SCALE)


@pytest.mark.parametrize(("n", "error"), [(0.8, 0.03), (1.5, 0.05), (2.5, 0.2)])
def test_the_sersic_index_is_that_of_the_galaxy_before_the_psf(n, error):
    """GalSim's profile. statmorph takes its model at pixel centres, which misses the more the steeper the profile."""
    found = of(image(galsim.Sersic(n, half_light_radius=0.6, flux=1000)))
    assert found.values[0, 0, N] == pytest.approx(n, rel=error)


def test_steeper_is_more_concentrated_and_a_clump_less_symmetric():
    disk, bulge = (galsim.Sersic(n, half_light_radius=0.5, flux=1000) for n in (1, 3))
    clump = galsim.Gaussian(fwhm=0.2, flux=150).shift(0.8, 0.4)
    flat, steep, lopsided = (of(light).values[0, 0] for light in (image(disk), image(bulge), image(disk, clump)))
    assert steep[C] > flat[C] + 0.3 and steep[G] > flat[G] and steep[M20] < flat[M20]
    assert abs(flat[A]) < 0.02 and lopsided[A] > 0.1 and lopsided[M20] > flat[M20] + 0.1


def test_every_image_is_measured_by_itself_and_in_any_unit():
    galaxy = galsim.Sersic(1.2, half_light_radius=0.5, flux=1000).shear(g2=0.3)
    light = image(galaxy)
    noisy = light + np.random.default_rng(0).normal(0, 0.1, (3, *light.shape))
    segments, chosen = around(light), np.ones(1, dtype=bool)
    together = measure_morphology(noisy, segments, chosen, FWHM, SCALE).values
    single = np.concatenate([measure_morphology(a[None], segments, chosen, FWHM, SCALE).values for a in noisy])
    np.testing.assert_array_equal(together, single)
    brighter = measure_morphology(8 * noisy, segments, chosen, FWHM, SCALE).values
    np.testing.assert_allclose(brighter, together, rtol=1e-3)


def test_what_cannot_be_measured_is_flagged_and_what_was_not_asked_for_is_not():
    light = image(galsim.Gaussian(fwhm=0.5, flux=1000))
    labels = around(light).labels
    labels[:6, :6] = 2
    segments = Segments(labels, np.array([40.0, 2.5]), np.array([40.0, 2.5]))
    light[:6, :6] = -1.0  # no flux to speak of
    every = measure_morphology(light[None], segments, np.array([True, True]), FWHM, SCALE)
    assert every.flagged[0, 1].all() and np.isnan(every.values[0, 1]).all() and np.isfinite(every.values[0, 0]).all()
    one = measure_morphology(light[None], segments, np.array([True, False]), FWHM, SCALE)
    assert not one.flagged[0, 1].any() and np.isnan(one.values[0, 1]).all() and one.measured.tolist() == [True, False]


def test_a_true_sky_without_noise_is_no_reason_to_flag():
    """The wings of a galaxy are above the noise of a sky that has none."""
    wide = image(galsim.Sersic(3, half_light_radius=0.8, flux=1000))
    assert not of(wide).flagged[0, 0, C:].any()


def test_the_columns_of_the_catalog():
    samples, _ = scene(((14, 14, 60.0), (34, 30, 4.0)), samples=6)
    table = measure(samples, NAMES, "field", 0.1, settings=MeasureSettings(morphology=4))
    table.sort("y")
    snr = table["aper_flux_VIS"] / table["aper_flux_err_raw_VIS"]
    assert len(table) == 2 and snr[0] > MIN_SNR > snr[1]
    assert (table.meta["MORPHNUM"], table.meta["MORPHSNR"]) == (4, MIN_SNR)
    for index in INDICES:
        value, error = table[f"{index}_VIS"], table[f"{index}_err_VIS"]
        assert np.isfinite(value[0]) and 0 < error[0] < 0.3 and np.isnan(value[1]) and np.isnan(error[1])
    for kind in ("sersic", "morphology"):
        assert table[f"{kind}_flagged_VIS"].tolist() == [0, -1]
    add_aliases(table, [Band("VIS", "VIS")], "mer")
    np.testing.assert_array_equal(table["MOMENT_20"], table["m20_VIS"])
    np.testing.assert_array_equal(table["GINI_ERR"], table["gini_err_VIS"])
    plain = measure(samples, NAMES, "field", 0.1)
    assert not [name for name in plain.colnames if "gini" in name]


def test_without_statmorph_one_line_says_what_to_install(monkeypatch):
    require_statmorph("morphology is 8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("jointdiff.measure.morphology.find_spec", importlib.util.find_spec)
    with pytest.raises(InputError, match=r"^morphology is 8: statmorph is not installed: pip install .*\[morphology\]"):
        require_statmorph("morphology is 8")


def test_a_perfect_posterior_is_covered_as_it_says_and_flags_are_counted():
    """Truth and samples of one law, of 2,000 sources, of which 1,500 are scored: 4 binomial deviations are 0.048."""
    rng, count = np.random.default_rng(1), 2000
    rows = []
    for _ in range(count):
        drawn = rng.normal(size=(morphology_study.SAMPLES + 1))
        drawn[1:3][rng.random(2) < 0.1] = np.nan  # flagged samples
        truth = drawn[0] if rng.random() > 0.25 else np.nan
        scored = morphology_study._score(drawn[1:], truth, rng)
        bad = {"flagged_truth": float(np.isnan(truth)), "flagged_samples": float(np.isnan(drawn[1:]).mean())}
        told = {f"{q} {key}": v for q in morphology_study.QUANTITIES for key, v in (scored | bad).items()}
        rows.append({"method": "a"} | told)
    row = morphology_study.summary(rows)[0]
    assert row["sources"] == count and row["scored"] + row["flagged_truth"] == count
    assert row["coverage"] == pytest.approx(COVERAGE_LEVEL, abs=0.048)
    assert row["low"] < row["coverage"] < row["high"]
    assert row["width"] == pytest.approx(1, abs=0.08) and row["flagged_samples"] == pytest.approx(0.025, abs=0.005)
    assert row["bias"] == pytest.approx(0, abs=0.12)
    none = morphology_study._score(np.array([1.0, np.nan, np.nan, 2.0]), 1.0, rng)
    assert all(np.isnan(value) for value in none.values())


@pytest.mark.filterwarnings("error")
def test_scenes_without_a_bright_source_make_an_empty_table():
    assert morphology_study.summary([]) == []
    assert morphology_study.figure([]).axes
