"""Is our method first? Score by score, band by band, in each bin of observed signal to noise, against every other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jointdiff.evaluate.benchmark.table import BEHIND, CHI2, COMMON, ERRORS, LIMITS, MEAN_ERROR, Place
from jointdiff.evaluate.scores import SCALED
from jointdiff.evaluate.suite import ALL, Row
from jointdiff.evaluate.validation import METHOD

AHEAD, FIRST, TIED, BEHIND_OTHERS = "ahead", "first", "tied", "behind"
"""All differences above zero by their 95 % intervals; all above zero; none below zero by its interval; some is."""

RANKED = (*ERRORS, "coverage_error" + SCALED)

SAME_WEIGHTS = ("dps", "pigdm", "mmps")
"""Beginnings of the names of the methods that draw with our weights, and lead them by the likelihood at every step."""

CAUSES = (
    (MEAN_ERROR, "error of the mean", "{:.3g}"),
    ("pull_width", "pull width", "{:.2f}"),
    ("flux_bias", "flux bias", "{:+.1%}"),
    (CHI2, "χ²/N", "{:.3f}"),
)
"""What else is told of a place where ours is behind: score, words and format. Of ours the scaled one, where there is
one and the place is of scaled errors."""


@dataclass(frozen=True)
class Rival:
    """Another method's error, ours on the same scenes, and the difference with its 95 % interval.

    without: the difference where the scene is left out that speaks most against ours. scenes, sources: how many scenes
    have any that count, and what they are scored on. causes: (theirs, ours) of those of CAUSES that the place has.
    """

    method: str
    value: float
    ours: float
    low: float
    high: float
    without: float
    scenes: int
    sources: int
    causes: Mapping[str, tuple[float, float]]

    def sentence(self) -> str:
        """By how much ours is behind, on how many scenes, and what was measured beside it."""
        told = f"{self.method} {self.value:.3g} against {self.ours:.3g} (difference {-self.high:.2g} to {-self.low:.2g}"
        told += f"; {self.scenes} scenes, n = {self.sources}"
        if math.isfinite(self.without):
            told += f"; without one of the scenes {-self.without:.2g}"
        pairs = [(words, form, self.causes.get(score)) for score, words, form in CAUSES]
        shown = [f"{words} {form.format(p[0])} against {form.format(p[1])}" for words, form, p in pairs if p]
        return f"{told}): {', '.join(shown)}" if shown else f"{told})"


@dataclass(frozen=True)
class Standing:
    """One score at one place: every rival, the best one first."""

    score: str
    place: Place
    rivals: Sequence[Rival]

    @property
    def before(self) -> list[Rival]:
        """Those whose error is the smaller one beyond the interval."""
        return [rival for rival in self.rivals if rival.high < 0]

    @property
    def verdict(self) -> str:
        if self.before:
            return BEHIND_OTHERS
        if any(rival.value < rival.ours for rival in self.rivals):
            return TIED
        return AHEAD if all(rival.low > 0 for rival in self.rivals) else FIRST

    def sentence(self) -> str:
        """Where ours is not first, in plain words."""
        where = f"{self.score}, {self.place.band}, {snr_label(self.place)}"
        return f"{where}: {'; '.join(rival.sentence() for rival in self.before)}"


def reasons(judged: Sequence[Standing]) -> list[str]:
    """Of all differences beyond the intervals against ours: counts of what was measured of them."""
    behind = [(standing, rival) for standing in judged for rival in standing.before]
    if not behind:
        return []
    alone = sum(not rival.without < 0 for _, rival in behind)
    few = min(rival.scenes for _, rival in behind)
    told = [
        f"Of the {len(behind)} differences against ours beyond the intervals {alone} come from a single scene: without "
        f"it they are not against ours. The fewest scenes that one rests on are {few}."
    ]
    led = sum(rival.method.startswith(SAME_WEIGHTS) for _, rival in behind)
    told.append(
        f"{led} are to methods that draw with our own weights, led by the likelihood of the data at every step: what "
        f"they gain is no larger network's. {len(behind) - led} are to others."
    )
    crps = [rival.causes for standing, rival in behind if standing.score == "crps_relative"]
    if pairs := [causes[MEAN_ERROR] for causes in crps if MEAN_ERROR in causes]:
        mean = sum(theirs < ours for theirs, ours in pairs)
        told.append(
            f"Of the {len(pairs)} in CRPS our mean is the worse one in {mean}; in {len(pairs) - mean} it is not, and "
            "what is missing is in the spread of the samples."
        )
    return told


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
    ending = score.removeprefix(theirs)
    for subset in (ALL, COMMON):
        value, ours = found.get((method, subset, place, theirs)), found.get((METHOD, subset, place, score))
        less = found.get((method, subset, place, score + BEHIND))
        if value and ours and less and math.isfinite(value["value"]):
            told = {key: found.get((METHOD, subset, place, key)) for key, *_ in CAUSES}
            told |= {key: row for key in told if (row := found.get((METHOD, subset, place, key + ending)))}
            pairs = {key: (found.get((method, subset, place, key)), row) for key, row in told.items()}
            causes = {key: (a["value"], b["value"]) for key, (a, b) in pairs.items() if a and b}
            rests = less["low"], less["high"], less["without"], int(less["scenes"]), int(less["n"])
            yield Rival(method, value["value"], ours["value"], *rests, causes)
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
