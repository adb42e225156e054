"""The benchmark's one table: a line for each method, subset of the scenes, band, bin of observed S/N, and score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jointdiff.evaluate import accuracy, calibration
from jointdiff.evaluate.bars import EDGES
from jointdiff.evaluate.benchmark.record import Record
from jointdiff.evaluate.scores import (
    LEAST,
    SCALED,
    Statistic,
    flux_statistics,
    image_statistics,
    shape_statistics,
)
from jointdiff.evaluate.sources import ORACLE, REFERENCE, Sources, gather
from jointdiff.evaluate.suite import ALL, Row
from jointdiff.evaluate.validation import METHOD

RESAMPLES = 200
"""Of scenes, for the 95 % intervals."""

COMMON = "common"
"""The scenes that slow methods saw, too; ALL are those that every other method saw."""

FLUX = ("crps_relative", "flux_scatter", "flux_bias", "pull_width", "coverage", "efficiency")
MEAN_ERROR = "mean_error_relative"
"""Score: how far the mean's aperture fluxes are off, over the Wiener filter's deviation, as crps_relative is, and as a
mean of any number of samples would be (mean_errors)."""
IMAGE = ("image_error_typical", "image_error")
CHI2 = "chi2"
R50 = "r50"

ERRORS = ("image_error_typical", "crps_relative", "flux_scatter", "colour_scatter", "r50_scatter", "coverage_error")
"""Scores that methods are ranked by: the smaller the better."""

BEHIND = "_minus_" + METHOD
"""Ending of what a method's error is larger than ours: with the interval of the difference, on the same scenes."""

LOST = 10.0
"""Error (mag) of a colour that a method has none of, and size over the true one where it has none."""

Records = Mapping[str, Mapping[str, Record]]
"""method → scene → what is kept."""


class Place(NamedTuple):
    """Where a score counts: band, pair of bands or R50, and bin of observed signal to noise."""

    band: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def everywhere(self) -> bool:
        return math.isinf(self.low) and math.isinf(self.high)


_WHOLE: Row = {"snr_low": -math.inf, "snr_high": math.inf, "low": math.nan, "high": math.nan}
"""Of a row without signal to noise, nor interval."""

_ALONE: Row = {"without": math.nan, "scenes": math.nan}
"""Of a row that is no difference to ours."""


@dataclass(frozen=True)
class Subset:
    """Scenes that some methods all saw. bins: whether scores are told by signal to noise, too."""

    name: str
    scenes: Sequence[str]
    methods: Sequence[str]
    bins: bool = False

    def sources(self, records: Records, names: Sequence[str]) -> Sources:
        parts = []
        for scene in self.scenes:
            first = records[REFERENCE][scene]
            every = {"": first.truth} | {method: records[method][scene].measured for method in self.methods}
            parts.append((first.places.edge, every))
        return gather(parts, names, REFERENCE)

    def r50(self, records: Records, method: str) -> np.ndarray:
        """(N,), arcsec, as the method has it."""
        return np.concatenate([records[method][scene].r50 for scene in self.scenes])


def rows(records: Records, subset: Subset, names: Sequence[str], seed: int) -> list[Row]:
    """Every score of every method on a subset; and for ERRORS, in subsets with bins, by how much they exceed ours."""
    sources = subset.sources(records, names)
    draws = accuracy.Resamples(sources.scenes, len(sources.found), np.random.default_rng(seed), RESAMPLES)
    found = {
        method: dict(_statistics(sources, subset.r50(records, method), method, draws, subset.bins, seed))
        for method in subset.methods
    }
    made: list[Row] = []
    for method, statistics in found.items():
        for (place, score), statistic in statistics.items():
            made.append(_row(method, subset.name, place, score, statistic))
            for end in ("", SCALED) if score == "coverage_error" else ("",):  # others' errors are not scaled
                ours = found.get(METHOD, {}).get((place, score + end))
                if ours and subset.bins and method != METHOD and score in ERRORS:
                    less = difference(statistic, ours)
                    row = _row(method, subset.name, place, score + end + BEHIND, less)
                    owners = sources.scenes if less.draws is draws.by_source else np.arange(len(sources.found))
                    held = len(np.unique(owners[less.chosen]))
                    without = without_one(less, owners) if row["high"] < 0 else math.nan
                    made.append(row | {"without": without, "scenes": float(held)})
    count = {"method": METHOD, "subset": subset.name, "band": "", "score": "scenes", "value": float(len(subset.scenes))}
    made = [row for row in made if math.isfinite(row["value"])]
    return [*made, *_means(made), _WHOLE | count | {"n": len(subset.scenes)}]


def difference(other: Statistic, ours: Statistic) -> Statistic:
    """The other's number less ours, of the sources that count for both, in the same resamples."""
    own = len(other.arrays)

    def less(*arrays: np.ndarray) -> float:
        return other.function(*arrays[:own]) - ours.function(*arrays[own:])

    return Statistic(less, other.arrays + ours.arrays, other.chosen & ours.chosen, other.draws)


def without_one(less: Statistic, owners: np.ndarray) -> float:
    """The difference where the one scene is left out that makes it most negative. owners: (N,), each element's scene.

    Of few scenes an interval says little; a difference that one scene makes is then no longer below zero.
    """
    left = [less.chosen & (owners != scene) for scene in np.unique(owners[less.chosen])]
    values = [replace(less, chosen=chosen).value for chosen in left if chosen.any()]
    return max((value for value in values if math.isfinite(value)), default=math.nan)


def _row(method: str, subset: str, place: Place, score: str, statistic: Statistic) -> Row:
    low, high = statistic.interval
    row = {"method": method, "subset": subset, "band": place.band, "snr_low": place.low, "snr_high": place.high}
    row |= {"score": score, "value": statistic.value, "low": low, "high": high}
    return row | _ALONE | {"n": int(statistic.chosen.sum())}


def _means(made: Sequence[Row]) -> list[Row]:
    """Of what is told of every band, over all signal to noise, the mean of the bands; colours alike."""
    groups: dict[tuple, list[Row]] = {}
    for row in made:
        whole = math.isinf(row["snr_low"]) and math.isinf(row["snr_high"])
        if whole and row["band"] != R50 and not row["score"].endswith(BEHIND):
            groups.setdefault((row["method"], row["score"]), []).append(row)
    means = []
    for group in groups.values():
        value = float(np.mean([row["value"] for row in group]))
        means.append(group[0] | {"band": ALL, "value": value, "low": math.nan, "high": math.nan})
    return means


def _statistics(
    sources: Sources, r50: np.ndarray, method: str, draws: accuracy.Resamples, binned: bool, seed: int
) -> Iterator[tuple[tuple[Place, str], Statistic]]:
    measured, rng = sources.estimates[method], np.random.default_rng(seed)
    bins = [(-math.inf, math.inf), *(pairwise(EDGES) if binned else ())]
    for band, name in enumerate(sources.names):
        deviation = sources.estimates[REFERENCE].samples[..., band].std(0, ddof=1)
        truth = sources.truth.point[:, band]
        error = mean_errors(measured.point[:, band], measured.samples[..., band], truth) / deviation
        for place, group in _groups(name, sources.snr[:, band], bins):
            told = flux_statistics(sources, measured, band, group, draws, rng)
            told[MEAN_ERROR] = Statistic(_mean, (error,), group, draws.by_source)
            if place.everywhere:
                told |= (images := image_statistics(sources, measured, band, draws))
                if images:  # what knows fluxes alone leaves residuals that are not its own
                    seen = measured.chi2[:, band, 1] > 0
                    told[CHI2] = Statistic(_per_pixel, (measured.chi2[:, band],), seen, draws.by_scene)
            for key in (*FLUX, MEAN_ERROR, *IMAGE, CHI2):
                for score, statistic in _with_errors(key, told):
                    yield (place, score), statistic
    for band, pair in enumerate(pairwise(sources.names)):
        errors = accuracy.colour_error(measured.point, sources.truth.point)[:, band]
        errors = np.nan_to_num(errors, nan=LOST)  # a flux that has no colour is wrong
        snr = sources.snr[:, band : band + 2].min(1)
        for place, group in _groups("-".join(pair), snr, [(EDGES[1], math.inf), *bins[2:]]):
            shown = Place(place.band) if place.low == EDGES[1] and math.isinf(place.high) else place
            yield (shown, "colour_scatter"), Statistic(calibration.nmad, (errors,), group, draws.by_source)
    if np.isfinite(r50).any():
        yield from _sizes(sources, r50, method, draws, bins, rng)


def _sizes(
    sources: Sources, r50: np.ndarray, method: str, draws: accuracy.Resamples, bins: Sequence[tuple], rng
) -> Iterator[tuple[tuple[Place, str], Statistic]]:
    truth, vis = sources.truth.r50[0], list(sources.names).index("VIS")
    for place, group in _groups(R50, sources.snr[:, vis], bins):
        defined = group & np.isfinite(truth)
        guess = np.where(np.isfinite(r50), r50, LOST * truth)  # a size that a method cannot tell is wrong
        yield (place, "r50_scatter"), Statistic(accuracy.scatter, (guess, truth), defined, draws.by_source)
        told = shape_statistics(sources, sources.estimates[method], defined, draws, rng)[R50]
        for key in ("coverage", "pull_width"):
            for score, statistic in _with_errors(key, told):
                yield (place, score), statistic


def _groups(band: str, snr: np.ndarray, bins: Sequence[tuple]) -> Iterator[tuple[Place, np.ndarray]]:
    """Places with their sources (N,); those of fewer than LEAST are left out."""
    for low, high in bins:
        group = np.ones(len(snr), dtype=bool) if math.isinf(low) and math.isinf(high) else (snr >= low) & (snr < high)
        if group.sum() >= LEAST:
            yield Place(band, low, high), group


def _with_errors(key: str, told: Mapping[str, Statistic]) -> Iterator[tuple[str, Statistic]]:
    """A score, raw and scaled; of coverages also the distance from the nominal one."""
    for ending in ("", SCALED):
        if key + ending in told:
            statistic = told[key + ending]
            yield key + ending, statistic
            if key == "coverage":
                yield "coverage_error" + ending, replace(statistic, function=_miss)


def mean_errors(point: np.ndarray, samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|point − truth| (N,) of samples (S, N); where the point is their mean, over √(1 + 1/S).

    Samples of the truth's own posterior scatter about its mean as the truth does, so that by so much a mean of S is
    farther off than one of many. A method's own estimate, or an exact mean, has no such scatter.
    """
    drawn = np.abs(point - samples.mean(0)).sum() <= 0.01 * samples.std(0, ddof=1).sum()
    return np.abs(point - truth) / (math.sqrt(1 + 1 / len(samples)) if drawn else 1.0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _per_pixel(chi2: np.ndarray) -> float:
    total, pixels = chi2.sum(0) if len(chi2) else (math.nan, math.nan)
    return float(total / pixels)


def _miss(covered: np.ndarray) -> float:
    return abs(float(covered.mean()) - calibration.COVERAGE_LEVEL) if covered.size else math.nan


def cost_rows(records: Records, subset: str) -> list[Row]:
    """What each method costs: medians over its scenes, core seconds, and the largest memory."""
    made = []
    for method, scenes in records.items():
        costs = [record.cost for record in scenes.values()]
        samples = next(iter(scenes.values())).measured.samples.shape[0]
        numbers = {
            "seconds_per_scene": float(np.median([cost.seconds for cost in costs])),
            "seconds_per_sample": float(np.median([cost.seconds for cost in costs])) / samples,
            "wall_per_scene": float(np.median([cost.wall for cost in costs])),
            "evaluations": float(np.median([cost.evaluations for cost in costs])),
            "memory_mib": max(cost.memory for cost in costs),
            "samples": float(samples),
        }
        base = _WHOLE | {"method": method, "subset": subset, "band": "", "n": len(costs)}
        made += [base | {"score": score, "value": value} for score, value in numbers.items()]
    return made


def growth_rows(growth: Sequence[Row]) -> list[Row]:
    """Rows of growth.grow, with their methods, as those of the table: score seconds_at_KIND_VALUE, n the steps timed.

    Where not all steps were timed the score's name says so.
    """
    made = []
    for row in growth:
        score = f"seconds_at_{row['kind']}_{row['at']:g}" + (EXTRAPOLATED if row["timed"] else "")
        base = _WHOLE | {"method": row["method"], "subset": GROWTH, "band": "", "n": int(row["timed"])}
        made.append(base | {"score": score, "value": row["seconds"]})
    return made


GROWTH, EXTRAPOLATED = "growth", "_extrapolated"
"""The subset of growth_rows, of no benchmark's scenes; the ending of a time that some of a method's steps foretell."""

LIMITS = (ORACLE,)
"""Methods that know the truth, and are ranked with no other."""
