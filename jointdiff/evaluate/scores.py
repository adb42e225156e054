"""The scoreboard's numbers, with their bootstrap intervals: methods side by side on sources of known truth."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jointdiff.evaluate import accuracy, calibration
from jointdiff.evaluate.sources import ORACLE, Measured, Sources

MIN_SNR = 5.0
"""Relative flux errors are scored for sources this significant in the reference; all else for every source."""

SCALED = "_scaled"
"""Ending of a number of the errors as scaled by the calibration, beside that of the raw ones."""

INTERVALS = (
    *("flux_bias", "flux_bias_wide", "pull_median", "pull_width", "coverage", "efficiency"),
    *("pull_width" + SCALED, "coverage" + SCALED),
)
"""Numbers that have a 95 % interval, …_low and …_high."""

RATIOS = ("image_error_typical", "image_error", "flux_scatter", "crps", "crps_relative")
"""Numbers whose ratio to the reference's is scored: …_ratio, …_ratio_low and …_ratio_high."""

EDGE = " edge"
"""Ending of a band's row of the sources that the edge of the scored core may cut."""

LEAST = 5
"""Sources that a bin needs for a score."""

Scores = dict[str, dict[str, dict[str, float]]]
"""method → band, colour or shape → number."""

Binned = dict[str, dict[str, dict[str, np.ndarray]]]
"""method → band → number in each bin."""


@dataclass(frozen=True)
class Statistic:
    """A number with all that it takes to resample it: function of arrays (N, …), of which ``chosen`` (N,) count.

    draws: the resamples of scenes or of sources, whichever the N are.
    """

    function: Callable[..., float]
    arrays: tuple[np.ndarray, ...]
    chosen: np.ndarray
    draws: Sequence[np.ndarray]

    @property
    def value(self) -> float:
        return self.function(*(array[self.chosen] for array in self.arrays))

    @property
    def interval(self) -> tuple[float, float]:
        return accuracy.interval(self.function, self.arrays, self.chosen, self.draws)

    def over(self, other: "Statistic") -> "Statistic":
        """The ratio of two methods' numbers, of the sources that count for both, in the same resamples."""
        own = len(self.arrays)

        def ratio(*arrays: np.ndarray) -> float:
            below = other.function(*arrays[own:])
            return self.function(*arrays[:own]) / below if below else math.nan

        return Statistic(ratio, self.arrays + other.arrays, self.chosen & other.chosen, self.draws)


def score(sources: Sources, rng: np.random.Generator) -> Scores:
    """Per method and band: image error, aperture flux bias, scatter, pulls, coverage, CRPS (nJy), residual χ²/N.

    Beside the bands: neighbouring colours (mag) and r50, e1, e2. INTERVALS and RATIOS have 95 % bootstrap intervals
    over scenes. wide: the aperture of 1″; scatter, biases and outliers: sources above MIN_SNR. efficiency: ORACLE's
    variance over a method's, for the same, where ORACLE is compared. Sources at the edge of
    the scored core have rows of their own, "g edge", and count in no other.
    """
    draws = accuracy.Resamples(sources.scenes, len(sources.found), rng)
    groups = {"": ~sources.edge} | ({EDGE: sources.edge} if sources.edge.any() else {})
    scores: Scores = {}
    statistics: dict[str, dict[str, dict[str, Statistic]]] = {}
    for method, measured in sources.estimates.items():
        rows = {}
        for ending, group in groups.items():
            for band, name in enumerate(sources.names):
                rows[name + ending] = flux_statistics(sources, measured, band, group, draws, rng)
        for band, name in enumerate(sources.names):
            rows[name] |= image_statistics(sources, measured, band, draws)
        rows |= shape_statistics(sources, measured, ~sources.edge, draws, rng)
        statistics[method] = rows
        scores[method] = {name: _numbers(row) for name, row in rows.items()}
        scores[method] |= _colour_scores(sources, measured, ~sources.edge)
        for band, name in enumerate(sources.names):
            chi2, pixels = measured.chi2[:, band].sum(0)
            scores[method][name]["chi2"] = float(chi2 / pixels) if pixels else math.nan
    for method in scores.keys() - {sources.reference}:
        for name, row in statistics[method].items():
            for key in row.keys() & set(RATIOS):
                scores[method][name] |= _with_interval(
                    f"{key}_ratio", row[key].over(statistics[sources.reference][name][key])
                )
    return scores


def score_by(sources: Sources, observed: np.ndarray, edges: Sequence[float], rng: np.random.Generator) -> Binned:
    """Bias, scatter, pull_width, coverage and number of sources, by what was observed of each source and band.

    …_scaled: of the errors as scaled, for a method whose errors are. observed: (N, C), as sources.magnitude or
    sources.snr, never the truth. Each number is (len(edges) - 1,), NaN in bins of fewer than LEAST sources; sources at
    the edge of the scored core are left out.
    """
    scores: Binned = {method: {} for method in sources.estimates}
    for method, measured in sources.estimates.items():
        for band, name in enumerate(sources.names):
            samples, truth = measured.samples[..., band], sources.truth.point[:, band]
            pulls, stretch = calibration.pulls(samples, truth), measured.stretch[:, band]
            covered, held = _covered(samples, truth, stretch, rng)
            rows = []
            for inside in accuracy.bins(observed[:, band], edges):
                inside = inside & ~sources.edge
                point, real = measured.point[inside, band], truth[inside]
                row = {"bias": accuracy.bias(point, real), "scatter": accuracy.scatter(point, real)}
                row["pull_width"] = calibration.pull_width(pulls[inside], len(samples))
                row["coverage"] = _mean(covered[inside])
                if np.isfinite(stretch).any():
                    row["pull_width" + SCALED] = calibration.pull_width((pulls / stretch)[inside], len(samples))
                    row["coverage" + SCALED] = _mean(held[inside])
                enough = inside.sum() >= LEAST
                rows.append({key: value if enough else math.nan for key, value in row.items()})
                rows[-1]["sources"] = float(inside.sum())
            scores[method][name] = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return scores


def flux_statistics(
    sources: Sources, measured: Measured, band: int, group: np.ndarray, draws: accuracy.Resamples, rng
) -> dict[str, Statistic]:
    """Number → Statistic of a method's aperture fluxes in one band, of the sources of a group (N,)."""
    bright = group & (sources.snr[:, band] >= MIN_SNR)
    samples, truth = measured.samples[..., band], sources.truth.point[:, band]
    narrow = measured.point[:, band], truth
    wide = measured.wide[:, band], sources.truth.wide[:, band]
    relative: dict[str, tuple[Callable[..., float], tuple[np.ndarray, ...]]] = {
        "flux_bias": (accuracy.bias, narrow),
        "flux_bias_wide": (accuracy.bias, wide),
        "flux_mean_bias": (accuracy.flux_weighted_bias, narrow),
        "flux_mean_bias_wide": (accuracy.flux_weighted_bias, wide),
        "flux_scatter": (accuracy.scatter, narrow),
        "flux_outliers": (accuracy.outliers, narrow),
        "sources_bright": (_count, narrow),
    }
    found = {key: Statistic(f, arrays, bright, draws.by_source) for key, (f, arrays) in relative.items()}
    found |= spread_statistics(samples, truth, measured.stretch[:, band], group, draws, rng)
    if ORACLE in sources.estimates:
        limit = sources.estimates[ORACLE]
        deviation = limit.samples[..., band].std(0, ddof=1)
        errors = measured.point[:, band] - truth, limit.point[:, band] - truth, deviation
        found["efficiency"] = Statistic(accuracy.efficiency, errors, bright & (deviation > 0), draws.by_source)
    # In units of the reference's posterior deviation of each source, faint and bright ones count alike.
    deviation = sources.estimates[sources.reference].samples[..., band].std(0, ddof=1)
    found["crps_relative"] = Statistic(_mean, (found["crps"].arrays[0] / deviation,), group, draws.by_source)
    return found


def spread_statistics(
    samples: np.ndarray,
    truth: np.ndarray,
    stretch: np.ndarray,
    group: np.ndarray,
    draws: accuracy.Resamples,
    rng: np.random.Generator,
) -> dict[str, Statistic]:
    """Scores of samples (S, N) against truth (N,), for the sources of a group (N,).

    stretch: (N,) factors of the stated errors; where there are any, pull width and coverage are scored of the samples
    spread by as much about their mean, too.
    """
    count = len(samples)
    pulls = calibration.pulls(samples, truth)
    covered, held = _covered(samples, truth, stretch, rng)

    def width(values: np.ndarray) -> float:
        return calibration.pull_width(values, count)

    def of(function: Callable[..., float], values: np.ndarray, chosen: np.ndarray = group) -> Statistic:
        return Statistic(function, (values,), chosen, draws.by_source)

    found = {
        "crps": of(_mean, calibration.crps(samples, truth)),
        "pull_median": of(_median, pulls, group & np.isfinite(pulls)),
        "pull_width": of(width, pulls),
        "coverage": of(_mean, covered),
        "sources": of(_count, truth),
    }
    if np.isfinite(stretch).any():
        found |= {"pull_width" + SCALED: of(width, pulls / stretch), "coverage" + SCALED: of(_mean, held)}
    return found


def _covered(
    samples: np.ndarray, truth: np.ndarray, stretch: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which truths (N,) the samples (S, N) cover as they are, and spread by ``stretch`` about their mean."""
    own = rng.spawn(1)[0]  # raw numbers are the same with and without scaled ones
    mean, count = samples.mean(0), len(samples)
    raw = calibration.covered(calibration.ranks(samples, truth, rng), count, rng)
    return raw, calibration.covered(calibration.ranks(mean + stretch * (samples - mean), truth, own), count, own)


def image_statistics(
    sources: Sources, measured: Measured, band: int, draws: accuracy.Resamples
) -> dict[str, Statistic]:
    """Errors of a method's images in one band; none of a method of photometry alone."""
    if np.isnan(measured.norms).any():  # photometry only
        return {}
    norms, every = (measured.norms[..., band : band + 1],), np.ones_like(sources.found)
    return {
        "image_error": Statistic(lambda n: float(accuracy.image_error(n)[0]), norms, every, draws.by_scene),
        "image_error_typical": Statistic(
            lambda n: float(accuracy.typical_image_error(n)[0]), norms, sources.found, draws.by_scene
        ),
    }


def shape_statistics(
    sources: Sources, measured: Measured, group: np.ndarray, draws: accuracy.Resamples, rng: np.random.Generator
) -> dict[str, dict[str, Statistic]]:
    shapes = {"r50": (measured.r50, sources.truth.r50[0])}
    shapes |= {f"e{i + 1}": (measured.shape[..., i], sources.truth.shape[0, :, i]) for i in (0, 1)}
    rows = {}
    for stretch, (name, (samples, truth)) in zip(measured.shape_stretch.T, shapes.items(), strict=True):
        defined = np.isfinite(samples).all(0) & np.isfinite(truth)
        rows[name] = spread_statistics(samples, truth, stretch, group & defined, draws, rng)
        rows[name]["defined"] = Statistic(_mean, (defined.astype(float),), group, draws.by_source)
    return rows


def _colour_scores(sources: Sources, measured: Measured, group: np.ndarray) -> dict[str, dict[str, float]]:
    """Median and NMAD (mag) of neighbouring colours' errors, where the reference is significant in both bands."""
    errors = accuracy.colour_error(measured.point, sources.truth.point)
    rows = {}
    for band, (blue, red) in enumerate(pairwise(sources.names)):
        bright = group & (sources.snr[:, band : band + 2] >= MIN_SNR).all(1) & np.isfinite(errors[:, band])
        values = errors[bright, band]
        row = {"bias": _median(values), "scatter": calibration.nmad(values), "sources": float(values.size)}
        rows[f"{blue}-{red}"] = row
    return rows


def _numbers(statistics: Mapping[str, Statistic]) -> dict[str, float]:
    row: dict[str, float] = {}
    for key, statistic in statistics.items():
        row |= _with_interval(key, statistic) if key in INTERVALS else {key: statistic.value}
    return row


def _with_interval(key: str, statistic: Statistic) -> dict[str, float]:
    low, high = statistic.interval
    return {key: statistic.value, f"{key}_low": low, f"{key}_high": high}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else math.nan


def _count(values: np.ndarray, *_) -> float:
    return float(len(values))
