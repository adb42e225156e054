"""Laws of the benchmark: which scenes are shared, what is kept, how methods are ranked, and what the report holds."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from jointdiff.benchmark import BenchmarkConfig, lots, pictured, subsets, tasks
from jointdiff.errors import InputError
from jointdiff.evaluate.benchmark.examine import ANNULI, spectra
from jointdiff.evaluate.benchmark.growth import _taken, grow
from jointdiff.evaluate.benchmark.record import Cost, Record, has_records, read_records, write_records
from jointdiff.evaluate.benchmark.report import markdown, page, summary, verdicts
from jointdiff.evaluate.benchmark.standing import standings
from jointdiff.evaluate.benchmark.table import (
    BEHIND,
    COMMON,
    Subset,
    cost_rows,
    growth_rows,
    mean_errors,
    rows,
    without_one,
)
from jointdiff.evaluate.scores import SCALED, Statistic
from jointdiff.evaluate.sources import Estimate, ScoredScene, find, measure_estimate
from jointdiff.evaluate.suite import ALL
from jointdiff.evaluate.validation import METHOD, method_of
from jointdiff.forward import ForwardModel
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.posterior_sampling import DPS
from jointdiff.reconstruct.scarlet import Torus
from jointdiff.reconstruct.starlet import Starlet
from jointdiff.settings import Config
from tests.denoisers import untrained
from tests.oracles import BANDS, TORUS, blank_survey, draw

NAMES = ("VIS", "g", "r")
SETTINGS = BenchmarkConfig(methods=("starlet", "dps"), slow=("dps",), slow_scenes=5, scenes=2)


def test_slow_methods_see_all_kinds_alike():
    """Any first n lots hold each kind, geometry and seeing as often as any other, within two."""
    ordered = lots(BenchmarkConfig())
    assert len(set(ordered)) == 4 * 2 * 3
    for n in range(1, 25):
        for values in zip(*((lot.kind, lot.geometry, lot.seeing) for lot in ordered[:n]), strict=True):
            count = Counter(values)
            assert max(count.values()) - min(count.values()) <= 2
    assert {lot.kind for lot in pictured(BenchmarkConfig(slow_scenes=4))} == set(BenchmarkConfig().kinds)


def test_every_method_is_scored_on_the_scenes_of_the_slow_ones(tmp_path):
    first, *others = tasks(Config(), SETTINGS, tmp_path, "key")
    assert {task.method for task in first} == {"wiener"}, "it tells the others where sources are"
    drawn = {}
    for task in others[0]:
        if hasattr(task, "lots"):
            named = [f"{lot.name}_{n:02d}" for lot in task.lots for n in range(task.scenes)]
            drawn.setdefault(task.method, set()).update(named)
    everything, common, *_ = subsets(SETTINGS)
    assert everything.name == ALL and "dps" not in everything.methods
    assert common.name == COMMON and set(common.methods) == {METHOD, "wiener", "starlet", "dps"}
    assert drawn["dps"] == set(common.scenes) < set(everything.scenes) == drawn["starlet"]


def test_annuli_hold_the_power_and_the_phase():
    """Parseval, but for the corners beyond the axes' Nyquist; twice the sky has twice the transfer, noise no phase."""
    rng = np.random.default_rng(0)
    sky = np.zeros((2, 32, 32))
    sky[:, 12:20, 12:20] = rng.random((2, 8, 8)) + 1
    own, truth, shared = spectra(2 * sky, sky)
    assert own.shape == (2, ANNULI)
    k = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    power = np.abs(np.fft.fft2(sky)) ** 2
    np.testing.assert_allclose(truth.sum(-1), 1)
    np.testing.assert_allclose(own / truth, 4)
    np.testing.assert_allclose(shared / truth, 2)
    inner = (power * (k < 0.25)).sum((-2, -1)) / (power * (k < 0.5)).sum((-2, -1))
    np.testing.assert_allclose(truth[:, : ANNULI // 2].sum(-1), inner)
    # Of independent noise the phase in M modes is 1/√M: with the 16 to 90 of an annulus at most 3/√16.
    noise = rng.standard_normal((1, 32, 32)), rng.standard_normal((1, 32, 32))
    own, truth, shared = spectra(*noise)
    assert (np.abs(shared / np.sqrt(own * truth))[:, 4:] < 0.75).all()


def _sky(rng: np.random.Generator) -> torch.Tensor:
    axis = np.arange(32) - 16.0
    blob = np.exp(-(axis[:, None] ** 2 + axis**2) / 18)
    light = sum(rng.uniform(200, 2000) * np.roll(blob, rng.integers(-16, 16, 2), (0, 1)) for _ in range(3))
    return torch.tensor(np.stack([light, 0.5 * light, 2 * light]), dtype=torch.float32)


def _records(noises: dict[str, float], scenes: int = 12) -> dict[str, dict[str, Record]]:
    """Methods whose posteriors are honest, of so much noise a pixel, on the same scenes."""
    rng = np.random.default_rng(0)
    records: dict[str, dict[str, Record]] = {method: {} for method in noises}
    for number in range(scenes):
        truth = _sky(rng)
        told = {}
        for method, noise in noises.items():
            draws = noise * torch.tensor(rng.standard_normal((9, *truth.shape)), dtype=torch.float32)
            told[method] = Estimate(truth + draws[:1] + draws[1:], truth + draws[0])
        places = find(told["wiener"], NAMES)
        scene = ScoredScene(str(number), truth, {})
        real = measure_estimate(Estimate(truth[None], truth), scene, NAMES, places)
        for method, estimate in told.items():
            measured = measure_estimate(estimate, scene, NAMES, places)
            found = spectra(estimate.mean.numpy(), truth.numpy())
            pictures = np.stack([estimate.mean, estimate.samples[0], truth]) if number == 0 else None
            cost = Cost(noises[method], 1.0, 8.0, 5.0)
            records[method][str(number)] = Record(
                str(number), places, real, measured, measured.r50.mean(0), found, cost, pictures
            )
    return records


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    """A quarter of the usual ones: enough to tell apart what differs fourfold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jointdiff.evaluate.benchmark.table.RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def table(few_resamples) -> list:
    records = _records({METHOD: 5.0, "wiener": 30.0, "dps": 80.0, "oracle": 1.0})
    scenes = list(records[METHOD])
    every = Subset(ALL, scenes, [METHOD, "wiener", "oracle"], bins=True)
    common = Subset(COMMON, scenes[:8], list(records), bins=True)
    return [row for subset in (every, common) for row in rows(records, subset, NAMES, 0)] + cost_rows(records, ALL)


def test_a_method_of_less_noise_is_ahead_and_the_oracle_is_no_rival(table):
    judged = {(s.score, s.place): s for s in standings(table)}
    for (score, place), standing in judged.items():
        assert {rival.method for rival in standing.rivals} <= {"wiener", "dps"}
        if score in ("image_error_typical", "crps_relative") and place.everywhere:
            assert standing.verdict == "ahead", (score, place)
    told = "\n".join(verdicts(table))
    assert "16 times less than one of DPS" in told  # costs are the noises: 80/5
    assert "At our time a sample or less, of smaller CRPS, mean of the bands: no method." in told


def test_a_method_of_more_noise_is_behind_and_is_said_to_be():
    records = _records({METHOD: 60.0, "wiener": 10.0})
    every = Subset(ALL, list(records[METHOD]), list(records), bins=True)
    found = rows(records, every, NAMES, 0) + cost_rows(records, ALL)
    worst = next(s for s in standings(found) if s.score == "crps_relative" and s.place.band == "g")
    assert worst.verdict == "behind"
    assert "wiener" in worst.sentence() and worst.sentence() in page(found, {}, [], {}).replace("&gt;", ">")
    told = "\n".join(verdicts(found))
    assert "or less, of smaller CRPS, mean of the bands: wiener." in told
    assert re.search(r"Of the (\d+) in CRPS our mean is the worse one in \1; in 0 it is not", told)
    # Of honest posteriors the mean is off by as much more as there is more noise: 60/10.
    every_band = [s for s in standings(found) if s.score == "crps_relative" and s.place.everywhere]
    pairs = [s.before[0].causes["mean_error_relative"] for s in every_band]
    sources = sum(s.before[0].sources for s in every_band)
    # A mean of n moduli of normal errors is known to 0.756/√n, their ratio to √2 times that.
    ratio = np.exp(np.mean([np.log(ours / theirs) for theirs, ours in pairs]))
    assert len(pairs) == 3 and ratio == pytest.approx(6, rel=3 * 0.756 * math.sqrt(2 / sources))
    assert worst.before[0].scenes == 12
    assert -math.inf < worst.before[0].without < 0, "no one scene makes it"


@pytest.mark.parametrize("count", [2, 4, 15])
def test_the_error_of_a_mean_does_not_depend_on_the_number_of_its_samples(count):
    """Truth and samples of one posterior; an exact mean, too, is as far off as a mean of many samples would be."""
    rng = np.random.default_rng(count)
    truth, samples = rng.normal(size=40_000), rng.normal(size=(count, 40_000))
    for point in (samples.mean(0), np.zeros_like(truth)):
        # The mean modulus of n normal errors: √(2/π), known to 0.6/√n.
        found = mean_errors(point, samples, truth).mean()
        assert found == pytest.approx(math.sqrt(2 / math.pi), abs=3 * 0.6 / math.sqrt(40_000))


def test_scaled_coverage_is_explained_by_scaled_pulls():
    """Samples of a third of the spread, scaled by 1.5: behind in coverage, by the pulls that are then left."""
    records = _records({METHOD: 20.0, "wiener": 20.0})
    for scene, record in records[METHOD].items():
        own = record.measured
        mean = own.samples.mean(0)
        narrow = replace(own, samples=mean + (own.samples - mean) / 3, stretch=np.full(own.point.shape, 1.5))
        records[METHOD][scene] = replace(record, measured=narrow)
    found = rows(records, Subset(ALL, list(records[METHOD]), list(records), bins=True), NAMES, 0)
    widths = {(row["band"], row["score"]): row["value"] for row in found
              if row["method"] == METHOD and row["score"].startswith("pull_width") and math.isinf(row["snr_low"])
              and math.isinf(row["snr_high"])}  # fmt: skip
    judged = {(s.score, s.place.band): s.rivals[0] for s in standings(found) if s.place.everywhere}
    for band in NAMES:
        raw, scaled = (judged["coverage_error" + end, band].causes["pull_width"][1] for end in ("", SCALED))
        assert (raw, scaled) == (widths[band, "pull_width"], widths[band, "pull_width" + SCALED])
        assert raw == pytest.approx(1.5 * scaled)


def test_a_difference_that_one_scene_makes_vanishes_without_it():
    owners = np.repeat(np.arange(6), 3)
    errors = np.where(owners == 4, -30.0, 1.0)
    less = Statistic(lambda e: float(e.mean()), (errors,), np.ones(18, dtype=bool), [np.arange(18)])
    assert less.value < 0 and without_one(less, owners) == 1
    assert without_one(replace(less, arrays=(-np.ones(18),)), owners) == -1


def test_all_steps_are_foretold_from_the_time_of_few():
    """Exactly, where steps cost alike, whatever comes before the first; a method of few steps is timed as it is."""
    used = object.__new__(DPS)
    used.evaluations = 1000
    told = _taken(used, lambda: 3 + 0.5 * used.evaluations)
    assert told == {"seconds": pytest.approx(503), "steps": 1000, "timed": 8} and used.evaluations == 1000
    times = iter([3.0, 2.0])
    assert math.isnan(_taken(used, lambda: next(times))["seconds"]), "more steps in less time tell nothing of a step"
    used.evaluations = 6
    assert _taken(used, lambda: 3 + 0.5 * used.evaluations) == {"seconds": 6, "steps": 0, "timed": 0}
    sparse = object.__new__(Starlet)
    sparse.iterations, sparse.rounds = 400, 2
    told_sparse = _taken(sparse, lambda: 1 + 0.01 * sparse.iterations * sparse.rounds)
    assert told_sparse == {"seconds": pytest.approx(9), "steps": 800, "timed": 80}
    one, other = growth_rows([{"method": "dps", "kind": "size", "at": 64.0} | t for t in (told, told | {"timed": 0})])
    assert (one["score"], one["n"]) == ("seconds_at_size_64_extrapolated", 8)
    assert (other["score"], other["n"]) == ("seconds_at_size_64", 0)


def test_no_row_of_growth_is_lost_to_the_warming_up(monkeypatch):
    """Nor of a method that takes no scene of fewer bands."""
    monkeypatch.setattr("jointdiff.evaluate.benchmark.growth.QUICK", 0.0)
    _, observations = draw(blank_survey(1), (1.0,), 0)
    scene = [o.to(torch.float32) for o in observations]
    denoiser = untrained([(band.name, band.filter) for band in BANDS])
    sides = {16: (TORUS, scene[:2]), 32: (TORUS, scene)}
    expected = {"wiener": [16, 32, 1, 2, 3, 1, 4, 8], "richardson-lucy": [32, 3, 1, 4, 8]}
    for method, at in expected.items():
        found = grow(method, denoiser, sides, 32, 4)
        assert [row["at"] for row in found] == at and all(row["seconds"] > 0 for row in found)


def test_differences_are_antisymmetric_and_vanish_between_equals():
    records = _records({METHOD: 20.0, "wiener": 30.0})
    equal = {METHOD: records["wiener"], "wiener": records["wiener"]}
    every = Subset(ALL, list(records[METHOD]), list(records), bins=True)

    def differences(of: dict) -> dict:
        kept = [row for row in rows(of, every, NAMES, 0) if row["score"].endswith(BEHIND)]
        return {(row["band"], row["snr_low"], row["score"]): row for row in kept}

    for row in differences(equal).values():
        assert (row["value"], row["low"], row["high"]) == (0, 0, 0)
    swapped = {METHOD: records["wiener"], "wiener": {k: records[METHOD][k] for k in records["wiener"]}}
    key = ("VIS", -math.inf, "image_error_typical" + BEHIND)
    one, other = differences(records)[key], differences(swapped)[key]
    assert one["value"] == pytest.approx(-other["value"])
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]), rel=0.05)


def test_the_report_is_one_file_without_script_or_source_of_elsewhere(table):
    from matplotlib.figure import Figure

    growth = [{"method": "dps", "kind": "size", "at": 64.0, "seconds": 37.0, "steps": 1000.0, "timed": 8.0}]
    text = page(table, {"<figure>": ("told & shown", Figure())}, growth, {"key": "<seed>"})
    assert "<script" not in text and "http" not in text
    assert text.count("src=") == text.count('src="data:image/png;base64,') == 1
    assert "&lt;seed&gt;" in text and "told &amp; shown" in text
    assert "<td>8 of 1000</td><td>37</td>" in text
    heads, lines = summary(table, ALL)
    assert [line[0] for line in lines] == [METHOD, "wiener", "oracle"]
    *short, gap, told = markdown(table, "make benchmark").splitlines()
    assert not gap and told.endswith("12 scenes, where not said otherwise: `make benchmark`")
    assert [row.split(" | ")[0] for row in short[2:]] == ["| jointdiff", "| wiener", "| oracle", *(
        f"| {name}, 8 scenes" for name in (METHOD, "dps"))]  # fmt: skip
    assert len({row.count("|") for row in short}) == 1 and len(heads) == short[0].count("|"), "all but η"


def test_records_come_back_and_another_key_is_none(tmp_path):
    record = _records({"wiener": 30.0}, scenes=1)["wiener"]["0"]
    write_records(tmp_path / "a", "key", [record, replace(record, pictures=None)])
    again, other = read_records(tmp_path / "a", "key")
    for name in ("point", "samples", "shape", "chi2"):
        np.testing.assert_array_equal(getattr(again.measured, name), getattr(record.measured, name))
    np.testing.assert_array_equal(again.places.segments.labels, record.places.segments.labels)
    np.testing.assert_array_equal(again.pictures, record.pictures)
    assert (again.cost, again.scene, other.pictures) == (record.cost, "0", None)
    assert read_records(tmp_path / "a", "other") is None and not has_records(tmp_path / "a", "other")
    (tmp_path / "b").write_text("{}")
    with pytest.raises(InputError, match="b: not the records of a benchmark"):
        read_records(tmp_path / "b", "key")


@pytest.mark.parametrize("method", sorted(set(BenchmarkConfig().methods) - {"oracle", "scarlet2"}))
def test_a_method_says_the_same_twice(method):
    """Bit for bit, whatever else drew random numbers in between."""
    _, observations = draw(blank_survey(1), (1.0,), 0)
    scene = [o.to(torch.float32) for o in observations]
    used = method_of(method, untrained([(band.name, band.filter) for band in BANDS], seed=1))
    for steps in ("evaluations", "iterations", "ground"):
        if hasattr(used, steps):
            setattr(used, steps, 3)
    told = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        told.append(used.sample(scene, TORUS, 2, NoiseStream(0, "twice")))
    assert torch.equal(told[0].samples, told[1].samples) and torch.equal(told[0].mean, told[1].mean)
    assert bool(told[0].samples.isfinite().all())


def test_scarlet_sees_the_torus_through_the_exact_transpose():
    """⟨A u, y⟩ = ⟨u, Aᵀ y⟩ for u on the wider frame; a source in the margin is the same source on the torus."""
    observations = [o.to(torch.float32) for o in blank_survey(1)]
    torus = Torus(ForwardModel(TORUS, BANDS, 0.2, observations), observations)
    rng = np.random.default_rng(0)
    u, y = rng.standard_normal((3, *torus.frame)), rng.standard_normal((1, 1, torus.pixels))
    assert (torus.forward(u) * y).sum() == pytest.approx((u * torus.backward(y)).sum(), rel=1e-4)
    inside, beyond = np.zeros((3, *torus.frame)), np.zeros((3, *torus.frame))
    inside[:, 16 + 30, 16 + 5], beyond[:, 16 - 2, 16 + 5] = 1.0, 1.0
    np.testing.assert_allclose(torus.forward(inside), torus.forward(beyond), atol=1e-6)
