"""How the cost of a scene grows with its size, the bands that were observed, and the samples that are drawn."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.evaluate.suite import Row
from jointdiff.evaluate.validation import METHOD, method_of
from jointdiff.reconstruct.base import NoiseStream, Reconstructor
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.posterior_sampling import PosteriorSampling
from jointdiff.reconstruct.starlet import Starlet
from jointdiff.scene import Grid, Observation

TIMED: Mapping[type, tuple[str, int]] = {
    PosteriorSampling: ("evaluations", 4),
    Starlet: ("iterations", 20),
}
"""Of methods whose steps cost alike: what their number is called, and how few are timed, and again twice as many.

All n steps then take t(few) + (n/few − 1) (t(2 few) − t(few)): what comes before the first step counts once. Where
there are rounds each is of so many.
scarlet2 is not of them: most of its time is compiling, and all of its steps take no longer than the two timings would.
"""

SAMPLES = (1, 4, 8)

QUICK = 1.0
"""Seconds: of what takes less, the least of three; what else a computer does only makes times longer."""


def grow(
    method: str,
    denoiser: Denoiser,
    scenes: Mapping[int, tuple[Grid, Sequence[Observation]]],
    usual: int,
    evaluations: int,
) -> list[Row]:
    """Rows kind (size, bands or samples), at, seconds (of all cores, one scene), and steps and timed: how many the
    method takes, and how many were timed; both 0 where all were.

    scenes: side in pixels → grid and observations (B = 1). usual: the side at which bands and samples are varied.
    Elsewhere two samples are drawn; a method that needs every band has no rows of fewer.
    """
    used = Diffusion(denoiser, evaluations) if method == METHOD else method_of(method, denoiser)
    cases = [
        ({"kind": kind, "at": float(at)}, partial(_seconds, used, observations, grid, count))
        for kind, at, (grid, observations), count in _cases(scenes, usual)
        if _takes(used, observations)
    ]
    for _, seconds in cases[:1]:
        _taken(used, seconds)  # what is made only once is made now
    return [told | _taken(used, seconds) for told, seconds in cases]


def _takes(used: Reconstructor, observations: Sequence[Observation]) -> bool:
    try:
        used.check(observations, "growth")
    except InputError:
        return False
    return True


def _taken(used: Reconstructor, seconds: Callable[[], float]) -> dict[str, float]:
    """The time of all steps, and how many of them were timed. seconds: what ``used`` takes as it is.

    NaN where twice as many steps took less time than few: then the timings say nothing of a step.
    """
    few = next((told for kind, told in TIMED.items() if isinstance(used, kind)), None)
    steps = getattr(used, few[0]) if few else 0
    if few is None or steps <= 2 * few[1]:
        return {"seconds": seconds(), "steps": 0.0, "timed": 0.0}
    name, count = few
    rounds, taken = getattr(used, "rounds", 1), []
    for number in (count, 2 * count):
        setattr(used, name, number)
        taken.append(seconds())
    setattr(used, name, steps)
    more = taken[1] - taken[0]
    every = taken[0] + (steps / count - 1) * more if more >= 0 else math.nan
    return {"seconds": every, "steps": float(steps * rounds), "timed": float(2 * count * rounds)}


def _cases(scenes: Mapping[int, tuple], usual: int) -> Iterator[tuple]:
    for size, scene in scenes.items():
        yield "size", size, scene, 2
    grid, observations = scenes[usual]
    for bands in sorted({1, 2, 4, len(observations)}):
        if bands <= len(observations):
            yield "bands", bands, (grid, observations[:bands]), 2
    for count in SAMPLES:
        yield "samples", count, (grid, observations), count


def _seconds(used: Reconstructor, observations: Sequence[Observation], grid: Grid, count: int) -> float:
    taken: list[float] = []
    while not taken or (max(taken) < QUICK and len(taken) < 3):
        start = time.process_time()
        used.sample(observations, grid, count, NoiseStream(0, "growth"))
        taken.append(time.process_time() - start)
    return min(taken)
