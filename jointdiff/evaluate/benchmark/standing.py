"""Is our method first? Score by score, band by band, in each bin of observed signal to noise, against every other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jointdiff.evaluate.benchmark.table import BEHIND, COMMON, ERRORS, LIMITS, Place
from jointdiff.evaluate.scores import SCALED
from jointdiff.evaluate.suite import ALL, Row
from jointdiff.evaluate.validation import METHOD

AHEAD, FIRST, TIED, BEHIND_OTHERS = "ahead", "first", "tied", "behind"
"""All differences above zero by their 95 % intervals; all above zero; none below zero by its interval; some is."""

RANKED = (*ERRORS, "coverage_error" + SCALED)


@dataclass(frozen=True)
class Rival:
    """Another method's error, ours on the same scenes, and the difference with its 95 % interval."""

    method: str
    value: float
    ours: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """One score at one place: every rival, the best one first."""

    score: str
    place: Place
    rivals: Sequence[Rival]

    @property
    def verdict(self) -> str:
        if any(rival.high < 0 for rival in self.rivals):
            return BEHIND_OTHERS
        if any(rival.value < rival.ours for rival in self.rivals):
            return TIED
        return AHEAD if all(rival.low > 0 for rival in self.rivals) else FIRST

    def sentence(self) -> str:
        """Where ours is not first, in plain words."""
        where = f"{self.score}, {self.place.band}, {snr_label(self.place)}"
        before = [rival for rival in self.rivals if rival.high < 0]
        told = [
            f"{r.method} {r.value:.3g} against {r.ours:.3g} (difference {-r.high:.2g} to {-r.low:.2g})" for r in before
        ]
        return f"{where}: {'; '.join(told)}"


def standings(table: Sequence[Row]) -> list[Standing]:
    """Every score of RANKED at every place, against the methods that are not LIMITS, each on all scenes that it saw.

    Scaled coverage is what catalogs state: ours is compared with the others' raw one.
    """
    found: dict[tuple, Row] = {}
    for row in table:
        place = Place(row["band"], row["snr_low"], row["snr_high"])
        found[row["method"], row["subset"], place, row["score"]] = row
    every = [key for key in found if key[0] == METHOD and key[3] in RANKED and key[1] == ALL and key[2].band != ALL]
    methods = [name for name in dict.fromkeys(row["method"] for row in table) if name not in (METHOD, *LIMITS)]
    made = []
    for _, _, place, score in every:
        rivals = [rival for name in methods for rival in _rival(found, name, place, score)]
        if rivals:
            made.append(Standing(score, place, sorted(rivals, key=lambda rival: rival.value - rival.ours)))
    return made


def _rival(found: Mapping[tuple, Row], method: str, place: Place, score: str) -> Iterator[Rival]:
    theirs = score.removesuffix(SCALED)
    for subset in (ALL, COMMON):
        value, ours = found.get((method, subset, place, theirs)), found.get((METHOD, subset, place, score))
        less = found.get((method, subset, place, score + BEHIND))
        if value and ours and less and math.isfinite(value["value"]):
            yield Rival(method, value["value"], ours["value"], less["low"], less["high"])
            return


def snr_label(place: Place) -> str:
    if place.everywhere:
        return "all S/N"
    if math.isinf(place.low):
        return f"S/N < {place.high:g}"
    return f"S/N > {place.low:g}" if math.isinf(place.high) else f"S/N {place.low:g} to {place.high:g}"


def equal_time(table: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(method, its time over ours a sample, its CRPS less ours, mean of the bands) of all that are not limits."""
    numbers: dict[tuple[str, str, str], float] = {}
    for row in table:
        if row["band"] in (ALL, ""):
            numbers[row["method"], row["subset"], row["score"]] = row["value"]
    told = []
    for method in dict.fromkeys(row["method"] for row in table):
        subset = ALL if (method, ALL, "crps_relative") in numbers else COMMON
        keys = [(name, subset, "crps_relative") for name in (method, METHOD)]
        if method not in (METHOD, *LIMITS) and all(key in numbers for key in keys):
            theirs, ours = (numbers[name, ALL, "seconds_per_sample"] for name in (method, METHOD))
            told.append((method, theirs / ours, numbers[keys[0]] - numbers[keys[1]]))
    return told
