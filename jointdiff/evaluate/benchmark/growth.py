"""How the cost of a scene grows with its size, the bands that were observed, and the samples that are drawn."""

import time
from collections.abc import Iterator, Mapping, Sequence

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.evaluate.suite import Row
from jointdiff.evaluate.validation import METHOD, method_of
from jointdiff.reconstruct.base import NoiseStream, Reconstructor
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.posterior_sampling import PosteriorSampling
from jointdiff.scene import Grid, Observation

STEPS = 4
"""Of the samplers whose steps cost alike: what all their steps take is so many times what these do."""

SAMPLES = (1, 4, 16)

QUICK = 2.0
"""Seconds: what takes less is measured again, without what is made only once in a process."""


def grow(
    method: str,
    denoiser: Denoiser,
    scenes: Mapping[int, tuple[Grid, Sequence[Observation]]],
    usual: int,
    evaluations: int,
) -> list[Row]:
    """Rows kind (size, bands or samples), at, seconds (of all cores, one scene).

    scenes: side in pixels → grid and observations (B = 1). usual: the side at which bands and samples are varied.
    Elsewhere two samples are drawn; a method that needs every band has no rows of fewer.
    """
    used = Diffusion(denoiser, evaluations) if method == METHOD else method_of(method, denoiser)
    factor = 1.0
    if isinstance(used, PosteriorSampling) and used.evaluations:
        factor, used.evaluations = used.evaluations / STEPS, STEPS
    rows = []
    for kind, at, (grid, observations), count in _cases(scenes, usual):
        try:
            used.check(observations, "growth")
        except InputError:
            continue
        rows.append({"kind": kind, "at": float(at), "seconds": factor * _seconds(used, observations, grid, count)})
    return rows


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
    taken = QUICK
    for _ in range(2):
        start = time.process_time()
        used.sample(observations, grid, count, NoiseStream(0, "growth"))
        taken = time.process_time() - start
        if taken > QUICK:
            break
    return taken
