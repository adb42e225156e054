"""Laws of the scores: known answers on Gaussians, perfect posteriors score perfectly, order does not matter."""

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from jointdiff.errors import InputError
from jointdiff.evaluate import accuracy, calibration
from jointdiff.evaluate.dashboard import scalars
from jointdiff.evaluate.report import format_table
from jointdiff.evaluate.scores import RATIOS, score, score_by
from jointdiff.evaluate.sources import Estimate, ScoredScene, measure_scenes
from jointdiff.measure.data_checks import Data

N = 20_000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def coverage(ranks, samples: int, rng) -> float:
    return calibration.covered(ranks, samples, rng).mean()


def crps_gaussian(deviations: np.ndarray) -> np.ndarray:
    """CRPS of a standard Gaussian forecast (Gneiting & Raftery 2007, JASA 102, 359, eq. 21, negated)."""
    density = np.exp(-(deviations**2) / 2) / np.sqrt(2 * np.pi)
    return deviations * (2 * ndtr(deviations) - 1) + 2 * density - 1 / np.sqrt(np.pi)


def perfect(rng, samples: int, n: int = N):
    """Truths (n,) drawn from the same Gaussians, of many widths and means, as their samples (S, n)."""
    mean, width = rng.normal(0, 5, n), 10 ** rng.uniform(-1, 1, n)
    return mean + width * rng.normal(size=(samples, n)), mean + width * rng.normal(size=n), mean, width


@pytest.mark.parametrize("samples", [2, 8, 31, 100])
def test_perfect_posterior_covers_and_pulls_as_it_says(rng, samples):
    draws, truth, *_ = perfect(rng, samples)
    ranks = calibration.ranks(draws, truth, rng)
    level = calibration.COVERAGE_LEVEL
    assert coverage(ranks, samples, rng) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / N))
    assert calibration.pull_width(calibration.pulls(draws, truth), samples) == pytest.approx(
        1, abs=4 * 1.2 / np.sqrt(N)
    )


def test_ranks_of_a_perfect_posterior_are_uniform(rng):
    draws, truth, *_ = perfect(rng, 31)
    counts = calibration.rank_histogram(calibration.ranks(draws, truth, rng), 31)
    assert len(counts) == 32 and counts.sum() == N
    assert ((counts - N / 32) ** 2 / (N / 32)).sum() < 31 + 5 * np.sqrt(62)


def test_coverage_of_31_samples_is_the_central_22_cells(rng):
    ranks = np.arange(32)
    inside = [coverage(np.array([r]), 31, rng) for r in ranks]
    assert inside == [0.0] * 5 + [1.0] * 22 + [0.0] * 5


def test_overconfidence_shows_in_every_score(rng):
    draws, truth, mean, width = perfect(rng, 31)
    narrow = mean + 0.5 * (draws - mean)
    assert calibration.pull_width(calibration.pulls(narrow, truth), 31) == pytest.approx(2, abs=0.06)
    assert coverage(calibration.ranks(narrow, truth, rng), 31, rng) < 0.45
    worse = calibration.crps(narrow / width, truth / width).mean()
    assert worse > calibration.crps(draws / width, truth / width).mean() + 0.02


def test_tied_ranks_are_uniform(rng):
    ranks = calibration.ranks(np.zeros((7, N)), np.zeros(N), rng)
    counts = calibration.rank_histogram(ranks, 7)
    assert np.abs(counts - N / 8).max() < 4.5 * np.sqrt(N / 8)


@pytest.mark.parametrize("samples", [2, 5, 31])
def test_ensemble_crps_is_fair(rng, samples):
    """Its mean is the Gaussian closed form, however few the samples."""
    draws, truth, mean, width = perfect(rng, samples)
    ensemble = calibration.crps(draws / width, truth / width)
    exact = crps_gaussian((truth - mean) / width)
    difference = ensemble - exact
    assert difference.mean() == pytest.approx(0, abs=4 * difference.std() / np.sqrt(N))
    assert exact.mean() == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)


def test_ensemble_crps_is_the_double_sum(rng):
    draws, truth = rng.normal(size=(6, 4)), rng.normal(size=4)
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (2 * 6 * 5)
    np.testing.assert_allclose(calibration.crps(draws, truth), np.abs(draws - truth).mean(0) - pairs)


def test_crps_of_one_sample_is_its_absolute_error():
    assert calibration.crps(np.array([[3.0]]), np.array([1.0]))[0] == 2
    assert np.isnan(calibration.pulls(np.array([[3.0]]), np.array([1.0]))[0])


def test_nmad_of_a_gaussian_is_its_width_and_ignores_outliers(rng):
    values = rng.normal(2, 3, N)
    values[:20] = 1e9
    assert calibration.nmad(values) == pytest.approx(3, abs=0.1)


def test_flux_scores_of_known_errors():
    truth = np.array([10.0, 100.0, 1000.0, 0.0, -5.0])
    estimate = np.array([11.0, 110.0, 1000.0, 3.0, 1.0])
    assert accuracy.bias(estimate, truth) == pytest.approx(0.1)
    assert accuracy.flux_weighted_bias(estimate, truth) == pytest.approx(20 / 1105)
    assert accuracy.outliers(np.array([1.0, 2.0, 2.0, 0.2]), np.array([1.0, 1.0, 2.0, 1.0])) == 0.5
    assert np.isnan(accuracy.bias(estimate[3:], truth[3:]))


def test_colour_error_ignores_a_common_factor():
    truth = np.array([[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]])
    np.testing.assert_allclose(accuracy.colour_error(1.3 * truth, truth), 0, atol=1e-12)
    redder = truth * [1.0, 1.1, 1.1]
    np.testing.assert_allclose(accuracy.colour_error(redder, truth)[:, 0], 2.5 * np.log10(1.1))  # blue minus red grows
    assert np.isnan(accuracy.colour_error(-truth, truth)).all()


def test_image_error_pools_scenes_and_ignores_the_margin():
    truth = np.ones((2, 4, 4))
    estimate = truth.copy()
    estimate[1] += 0.5
    estimate[:, 0] = 99
    weight = np.ones((4, 4))
    weight[0] = 0
    norms = accuracy.image_norms(estimate, truth, weight)
    np.testing.assert_allclose(accuracy.image_error(norms[None]), [0, 0.5])
    empty_sky = np.array([[0.0, 12 * 0.25], [0.0, 0.0]])
    np.testing.assert_allclose(accuracy.image_error(np.stack([norms, empty_sky])), [0, np.sqrt(0.5)])


def test_bootstrap_interval_holds_the_truth_as_often_as_it_says(rng):
    """Elements of a scene share its error, so a resampling of elements would be far too narrow."""
    scenes, every = np.repeat(np.arange(40), 10), np.ones(400, dtype=bool)
    hits = 0
    for _ in range(100):
        values = np.repeat(rng.normal(size=40), 10)
        draws = accuracy.Resamples(scenes, 40, rng, 100).by_source
        low, high = accuracy.interval(np.mean, [values], every, draws)
        hits += low <= 0 <= high
    assert 85 <= hits <= 100


def test_interval_of_the_chosen_is_that_of_the_chosen_alone(rng):
    """And scenes without any still take part: the number of chosen elements varies between resamples."""
    owners, values = np.array([0, 0, 1, 3, 3]), rng.normal(size=5)
    chosen = np.array([True, False, True, True, False])
    draws = accuracy.Resamples(owners, 4, rng, 50)
    assert all(np.isin(scenes, range(4)).all() and len(scenes) == 4 for scenes in draws.by_scene)
    alone = [[i for i in drawn if chosen[i]] for drawn in draws.by_source]
    sums = [values[i].sum() for i in alone]
    found = accuracy.interval(np.sum, [values], chosen, draws.by_source)
    np.testing.assert_allclose(found, np.quantile(sums, [0.025, 0.975]))
    assert len({len(i) for i in alone}) > 1


def blobs(rng, count: int, size: int = 48) -> list[ScoredScene]:
    """Scenes of Gaussian blobs in two bands, with a perfect white posterior and one of half the error."""
    y, x = np.mgrid[:size, :size]
    scenes = []
    for i in range(count):
        light = np.zeros((size, size))
        for cy, cx in ((14, 14), (32, 30)):
            light += rng.uniform(30, 90) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
        truth = np.stack([light, 0.5 * light])
        mean = truth + rng.normal(size=truth.shape)
        draws = mean + rng.normal(size=(31, *truth.shape))
        coarse, fine = (
            Estimate(torch.as_tensor(truth + f * (draws - truth)), torch.as_tensor(truth + f * (mean - truth)))
            for f in (1.0, 0.5)
        )
        noisy = torch.as_tensor(truth + rng.normal(size=truth.shape))
        data = Data(lambda x: [x[:, 0], x[:, 1]], [*noisy], [torch.ones(size, size, dtype=torch.float64)] * 2, (0, 1))
        scenes.append(ScoredScene(f"s{i}", torch.as_tensor(truth), {"half": fine, "wiener": coarse}, data=data))
    return scenes


@pytest.fixture(scope="module")
def scenes() -> list[ScoredScene]:
    return blobs(np.random.default_rng(11), 40)


@pytest.fixture(scope="module")
def scored(scenes):
    return score(measure_scenes(scenes, ("VIS", "g")), np.random.default_rng(0))


def test_scores_of_a_perfect_posterior(scored):
    for band in ("VIS", "g"):
        row = scored["wiener"][band]
        assert row["sources"] == 80
        assert row["coverage_low"] < 0.6875 < row["coverage_high"]
        assert row["pull_width_low"] < 1 < row["pull_width_high"]
        assert abs(row["flux_bias"]) < 0.01
        assert row["chi2"] == pytest.approx(3, abs=0.1)  # noise of data, mean and sample


def test_half_the_error_halves_what_is_linear(scored):
    for band in ("VIS", "g"):
        half, whole = scored["half"][band], scored["wiener"][band]
        for number in ("image_error", "crps", "flux_mean_bias"):
            assert half[number] == pytest.approx(whole[number] / 2, rel=1e-6)


def test_ratios_of_methods_are_paired(scored):
    """Every error of the one is half the other's in the same scene, so no resample can give anything but 1/2."""
    for band in ("VIS", "g"):
        row = scored["half"][band]
        for key in {*RATIOS} - {"flux_scatter"}:
            ends = [row[f"{key}_ratio{end}"] for end in ("_low", "", "_high")]
            assert ends == pytest.approx([0.5] * 3, rel=1e-6), key
        assert row["flux_scatter_ratio_low"] < row["flux_scatter_ratio_high"]  # relative errors: the means differ
        assert not any("ratio" in key for key in scored["wiener"][band])


def test_order_of_scenes_changes_no_score(scenes, scored):
    again = score(measure_scenes(scenes[::-1], ("VIS", "g")), np.random.default_rng(0))
    for method, rows in scored.items():
        for name, row in rows.items():
            for key, value in row.items():
                if not key.startswith("coverage") and not key.endswith(("_low", "_high")):  # drawn at random
                    assert again[method][name][key] == pytest.approx(value, rel=1e-9), key


def test_table_has_a_line_per_band_method_ratio_and_interval(scored):
    lines = format_table(scored, ("VIS", "g")).splitlines()
    assert len(lines) == 2 + 2 * 4 + 3
    assert max(map(len, lines)) <= 150
    assert lines[3].split()[:4] == ["/", "wiener", "0.50", "0.50"]
    assert lines[4].split()[:4] == ["95", "%", "0.50-0.50", "0.50-0.50"]


def test_bins_are_of_the_observed_and_hold_every_source_once(scenes):
    sources = measure_scenes(scenes, ("VIS", "g"))
    edges = (-np.inf, *np.quantile(sources.snr, [0.3, 0.6]), np.inf)
    binned = score_by(sources, sources.snr, edges, np.random.default_rng(0))
    assert (binned["half"]["VIS"]["sources"] + binned["half"]["g"]["sources"]).sum() == 160
    inside = (sources.snr[:, 1] >= edges[1]) & (sources.snr[:, 1] < edges[2])
    expected = accuracy.bias(sources.estimates["half"].point[inside, 1], sources.truth.point[inside, 1])
    assert binned["half"]["g"]["bias"][1] == expected
    assert set(binned["half"]["g"]) == {"bias", "scatter", "pull_width", "coverage", "sources"}


def test_sources_at_the_edge_count_in_rows_of_their_own(scenes):
    """Each scene has a blob at (14, 14) and one at (32, 30): data that end at column 8 come near the first alone."""
    weight = np.ones((48, 48))
    weight[:, :8] = 0
    cut = [ScoredScene(s.name, s.truth, s.estimates, weight, s.data) for s in scenes]
    sources = measure_scenes(cut, ("VIS", "g"))
    assert len(sources.edge) == 80 and sources.edge.sum() == 40
    scores = score(sources, np.random.default_rng(0))
    for method in ("half", "wiener"):
        assert scores[method]["g"]["sources"] == scores[method]["g edge"]["sources"] == 40
        assert scores[method]["VIS-g"]["sources"] <= 40
        assert "chi2" not in scores[method]["g edge"]
    binned = score_by(sources, sources.snr, (-np.inf, np.inf), np.random.default_rng(0))
    assert binned["half"]["g"]["sources"] == [40]
    assert "g edge" in format_table(scores, ("VIS", "g"))
    tags = {tag for tag, _ in scalars(scores)}
    assert {"accuracy/flux_bias/g/half", "calibration/coverage/g_edge/wiener", "image/chi2/g/half"} <= tags
    assert {"intervals/crps_ratio_low/g/half", "colour/bias/VIS-g/half", "shape/crps/r50/half"} <= tags


def test_a_source_is_at_the_edge_up_to_the_wide_apertures_radius(scenes):
    """10 pixels of 0.1 arcsec from the centroid to the centre of the first unscored pixel."""
    for column, expected in ((14 - 10, True), (14 - 12, False)):
        weight = np.ones((48, 48))
        weight[:, : column + 1] = 0
        scene = ScoredScene("s", scenes[0].truth, scenes[0].estimates, weight)
        sources = measure_scenes([scene], ("VIS", "g"))
        assert sources.edge.any() == expected


def test_truth_is_measured_in_the_apertures_of_the_data(scenes):
    """Other methods' images cannot move them."""
    alone = [ScoredScene(s.name, s.truth, {"wiener": s.estimates["wiener"]}) for s in scenes[:3]]
    a, b = measure_scenes(alone, ("VIS", "g")), measure_scenes(scenes[:3], ("VIS", "g"))
    np.testing.assert_array_equal(a.truth.point, b.truth.point)


def test_a_scene_without_the_reference_is_named(scenes):
    with pytest.raises(InputError, match="s0: no estimate by the reference method scarlet"):
        measure_scenes(scenes, ("VIS", "g"), reference="scarlet")
