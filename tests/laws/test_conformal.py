"""Laws of the fitted factors: 1 for true errors, what is missing for others, coverage as stated on sources not seen."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t

from jointdiff.evaluate import calibration
from jointdiff.evaluate.bars import Bar, format_bars, judge
from jointdiff.evaluate.conformal import BAND_STRENGTH, Scored, conformal_quantile, fit_check, fit_scales
from jointdiff.evaluate.report import format_table
from jointdiff.evaluate.scores import score, score_by
from jointdiff.evaluate.sources import Estimate, ScoredScene, Sources, measure_scenes
from jointdiff.measure.conformal import ErrorScales, quantities
from jointdiff.measure.modes import disagreement

LEVEL = calibration.COVERAGE_LEVEL
EDGES = (10.0, 100.0)
NAMES = ("VIS", "g")


def quantile_error(samples: int, count: float) -> float:
    """Relative error of the LEVEL quantile of ``count`` moduli of Student's t: √(p (1 - p)/n)/(2 q f(q))."""
    q = t.ppf((1 + LEVEL) / 2, samples - 1)
    return math.sqrt(LEVEL * (1 - LEVEL) / count) / (2 * q * t.pdf(q, samples - 1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def sources(rng, count: int, samples: int, missing=(1.0, 1.0, 1.0), group: str = "flux") -> Scored:
    """Fluxes of all three bins, whose samples spread too little by the factor ``missing`` of their bin."""
    snr = 10 ** rng.uniform(0, 3, count)
    factor = np.asarray(missing)[np.digitize(snr, EDGES)]
    draws = rng.normal(size=(samples, count)) / factor
    return Scored(group, draws.mean(0), draws.std(0, ddof=1), rng.normal(size=count), snr)


@pytest.mark.parametrize("samples", [3, 15, 31])
def test_true_errors_need_no_factor(rng, samples):
    scales = fit_scales({"flux_g": sources(rng, 9000, samples)}, samples, 100, EDGES)
    np.testing.assert_allclose(scales.scales["flux_g"], 1, atol=4 * quantile_error(samples, 3000))
    assert sum(scales.sources["flux_g"]) == 9000


def test_missing_factors_are_found_bin_by_bin_and_hold_for_others(rng):
    missing, count = (1.0, 1.5, 2.5), 9000
    scales = fit_scales({"flux_g": sources(rng, count, 15, missing)}, 15, 100, EDGES)
    np.testing.assert_allclose(scales.scales["flux_g"], missing, rtol=4 * quantile_error(15, count / 3))
    fresh = sources(rng, count, 31, missing)  # more samples than were fitted on
    held = fresh.stretches(31, LEVEL) <= scales.of("flux_g", fresh.snr)
    for inside in np.digitize(fresh.snr, EDGES) == np.arange(3)[:, None]:
        error = math.sqrt(2 * LEVEL * (1 - LEVEL) / inside.sum())  # of the fit, and of the fresh sources
        assert held[inside].mean() == pytest.approx(LEVEL, abs=4 * error)


def test_the_quantile_holds_its_share_however_few_the_sources(rng):
    """Of uniform values the share below a bound is the bound: its mean is the level; the usual quantile misses it."""
    values = rng.random((4000, 12))
    bounds = np.array([conformal_quantile(row, LEVEL) for row in values])
    error = bounds.std() / math.sqrt(len(bounds))
    assert bounds.mean() == pytest.approx(LEVEL, abs=4 * error)
    assert np.quantile(values, LEVEL, axis=1).mean() < LEVEL - 4 * error


def test_few_sources_lean_on_the_other_bands_and_none_on_nothing(rng):
    tested = {f"flux_{name}": sources(rng, 3000, 15, (1.4, 1.4, 1.4)) for name in "gr"}
    wild = sources(rng, 6, 15, (9.0, 9.0, 9.0))
    wild.snr[:] = 50
    alone = Scored("r50", *(np.empty(0) for _ in range(4)))
    scales = fit_scales(tested | {"flux_i": wild, "r50": alone}, 15, 100, EDGES).scales
    assert scales["r50"] == (1.0, 1.0, 1.0)
    assert scales["flux_i"][0] == pytest.approx(1.4, rel=0.1)
    own = conformal_quantile(wild.stretches(15, LEVEL), LEVEL)
    expected = 1.4 * (own / 1.4) ** (6 / (6 + BAND_STRENGTH))
    assert own > 3 and scales["flux_i"][1] == pytest.approx(expected, rel=0.1)


def test_undefined_errors_do_not_count(rng):
    column = sources(rng, 3000, 15)
    column.error[:1000], column.truth[1000:1500] = 0, np.nan
    scales = fit_scales({"r50": column}, 15, 100, EDGES)
    assert sum(scales.sources["r50"]) == 1500 and np.allclose(scales.scales["r50"], 1, atol=0.2)


def test_alarms_are_as_rare_as_asked(rng):
    """Of any distribution: here one with heavy tails, and scenes whose sources are alike."""
    rate, scenes = 0.02, [rng.standard_t(3) ** 2 + rng.random(5) for _ in range(600)]
    check = fit_check(scenes, rate)
    assert (check.scenes, check.sources) == (600, 3000)
    fresh = np.concatenate([rng.standard_t(3) ** 2 + rng.random(5) for _ in range(20_000)])
    error = math.sqrt(rate * (1 - rate) / 600)  # scenes are the independent draws
    assert (fresh > check.threshold).mean() == pytest.approx(rate, abs=4 * error)
    assert check.measured_rate == pytest.approx(rate, abs=4 * error)


def test_a_rate_wants_as_many_sources(rng):
    with pytest.raises(ValueError, match=r"^49 sources, expected at least 50 for a false-alarm rate of 0.02"):
        fit_check([rng.random(49)], 0.02)
    assert fit_check([rng.random(25), rng.random(25)], 0.02).sources == 50


def test_disagreement_is_of_the_worst_band_seen(rng):
    """In units of both deviations; a noise that both modes have drawn does not count."""
    one = rng.normal(size=(40, 4, 3))
    assert (disagreement(one, one[:8]) == 0).all()
    other = one.copy()
    other[:, 1, 2] += 3 * one[:, 1, 2].std(ddof=1)
    np.testing.assert_allclose(disagreement(one, other), [0, 3 / math.sqrt(2), 0, 0], atol=1e-9)
    assert (disagreement(one, other, [0, 1]) == 0).all()
    assert (disagreement(0 * one, 0 * other) == 0).all()


def constant(factor: float) -> ErrorScales:
    every = [q.column for q in quantities(NAMES)]
    return ErrorScales((10.0,), {c: (factor,) * 2 for c in every}, {c: (9, 9) for c in every}, LEVEL, 9, 15)


@pytest.fixture(scope="module")
def measured() -> Sources:
    """Blobs with a perfect posterior, and one whose samples lie half as far from the same mean, to be scaled by 2."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[:40, :40]
    scenes = []
    for number in range(40):
        peaks = rng.uniform(30, 90, 2)
        light = sum(
            p * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
            for p, (cy, cx) in zip(peaks, ((12, 12), (27, 28)), strict=True)
        )
        truth = np.stack([light, 0.5 * light])
        mean = truth + rng.normal(size=truth.shape)
        draws = mean + rng.normal(size=(31, *truth.shape))
        mean = draws.mean(0)
        near = mean + 0.5 * (draws - mean)
        estimates = {
            m: Estimate(torch.as_tensor(s), torch.as_tensor(mean)) for m, s in (("near", near), ("wiener", draws))
        }
        scenes.append(ScoredScene(f"s{number}", torch.as_tensor(truth), estimates))
    return measure_scenes(scenes, NAMES, scales={"near": constant(2.0)})


def test_scaled_errors_score_as_the_samples_they_stand_for(measured):
    """Twice half the spread is that of the other method: its raw pulls, and its coverage but for random ties."""
    scores = score(measured, np.random.default_rng(0))
    for band in NAMES:
        near, whole = scores["near"][band], scores["wiener"][band]
        assert near["pull_width_scaled"] == pytest.approx(whole["pull_width"])
        assert near["pull_width"] == pytest.approx(2 * whole["pull_width"])
        assert near["coverage_scaled"] == pytest.approx(whole["coverage"], abs=0.03) and near["coverage"] < 0.55
        assert near["pull_width_scaled_low"] <= near["pull_width_scaled"] <= near["pull_width_scaled_high"]
        assert not any("scaled" in key for key in whole)
    binned = score_by(measured, measured.snr, (5.0, np.inf), np.random.default_rng(0))
    assert binned["near"]["g"]["pull_width_scaled"] == pytest.approx(scores["wiener"]["g"]["pull_width"], rel=0.2)
    rows = [line.split() for line in format_table(scores, NAMES).splitlines()]
    assert [row[0] for row in rows[2:4]] == ["VIS", "scaled"]
    assert rows[3][1] == f"{scores['near']['VIS']['pull_width_scaled']:.2f}"


def test_scaled_shapes_use_the_factors_of_their_own(measured):
    near, whole = (score(measured, np.random.default_rng(0))[m] for m in ("near", "wiener"))
    for name in ("r50", "e1", "e2"):  # hardly linear in the pixels
        assert near[name]["pull_width_scaled"] == pytest.approx(whole[name]["pull_width"], rel=0.1)
        assert near[name]["pull_width"] == pytest.approx(2 * whole[name]["pull_width"], rel=0.15)


def test_raw_scores_do_not_depend_on_a_calibration(measured):
    estimates = {name: estimate for name, estimate in measured.estimates.items() if name == "wiener"}
    alone = Sources(measured.scenes, NAMES, measured.truth, estimates, "wiener", measured.edge, measured.found)
    one, other = (score(s, np.random.default_rng(0))["wiener"]["VIS"] for s in (alone, measured))
    assert {key: other[key] for key in one if "coverage" not in key} == {
        k: v for k, v in one.items() if "coverage" not in k
    }


def test_a_bar_is_met_where_the_interval_overlaps_it():
    bar = Bar(0.95, 1.05)
    assert bar.met(1.04, 1.2) and bar.met(0.5, 2.0) and not bar.met(1.06, 1.2) and not bar.met(0.8, 0.94)
    assert bar.met(math.nan, math.nan) is None


def test_bars_judge_raw_and_scaled_errors(measured):
    table = judge(measured, "near", np.random.default_rng(0))
    assert len(table) == 2 * 5 and set(table["band"]) == set(NAMES)
    for band in NAMES:
        every, *bins = table[table["band"] == band]
        assert every["sources"] == sum(row["sources"] for row in bins) == 80
        assert (
            every["pull_width_met"] == 0 and every["pull_width_scaled_met"] == 1 and every["coverage_scaled_met"] == 1
        )
        assert every["pull_width"] == pytest.approx(2 * every["pull_width_scaled"])
        assert every["bias_met"] == every["chi2_met"] == -1, "no bar for faint sources, no data"
        assert abs(every["bias"]) < 100
    raw = judge(measured, "wiener", np.random.default_rng(0))
    assert (raw["pull_width_scaled_met"] == -1).all() and np.isnan(raw["coverage_scaled"]).all()
    text = format_bars(table)
    assert "! marks" in text and "scaled width" in text and "scaled width" not in format_bars(raw).split("Bars")[0]
    row = next(line for line in text.splitlines() if line.startswith("VIS"))
    assert row.split()[:3] == ["VIS", "all", "80"] and f"{table['pull_width'][0]:.2f}" in row
    assert max(map(len, text.splitlines())) <= 150


def test_a_bias_in_magnitudes_is_positive_for_faint_fluxes(measured):
    from dataclasses import replace

    faint = replace(measured.estimates["near"], point=0.99 * measured.truth.point)
    sources = Sources(
        measured.scenes,
        NAMES,
        measured.truth,
        measured.estimates | {"near": faint},
        "wiener",
        measured.edge,
        measured.found,
    )
    table = judge(sources, "near", np.random.default_rng(0))
    np.testing.assert_allclose(table["bias"][np.isfinite(table["bias"])], -2500 * np.log10(0.99), rtol=1e-6)
