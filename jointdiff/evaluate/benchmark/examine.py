"""One method on one scene: what it says of the sources and of every frequency, and what that costs."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.benchmark.record import Cost, Record
from jointdiff.evaluate.sources import ORACLE, Estimate, Measured, Places, ScoredScene, find, measure_estimate
from jointdiff.evaluate.templates import Templates, oracle
from jointdiff.evaluate.validation import METHOD, Trial, method_of
from jointdiff.measure.catalog import posterior_mean, shape_image
from jointdiff.measure.conformal import ErrorScales
from jointdiff.measure.data_checks import Data
from jointdiff.measure.shapes import half_light_radius
from jointdiff.reconstruct.base import NoiseStream, Reconstructor
from jointdiff.reconstruct.bootstrap import PointEstimate
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Grid

ANNULI = 20
"""Of spatial frequency, from 0 to the scene's Nyquist frequency."""


class Examiner:
    """A method with what it takes to try it on scenes of one grid.

    method: METHOD, a name of settings.Method, or of photometry alone. errors: factors of METHOD's stated errors.
    evaluations: of the network per sample, for METHOD.
    """

    def __init__(
        self,
        method: str,
        denoiser: Denoiser,
        grid: Grid,
        samples: int,
        evaluations: int,
        seed: int,
        errors: ErrorScales | None = None,
    ):
        self.method, self.denoiser, self.grid = method, denoiser, grid
        self.samples, self.seed, self.errors = samples, seed, errors
        self._reconstructor: Reconstructor | None = None
        if method != ORACLE:
            self._reconstructor = Diffusion(denoiser, evaluations) if method == METHOD else method_of(method, denoiser)
        self._base = held()

    def record(self, trial: Trial, places: Places | None, pictured: bool = False) -> Record:
        """What the method says of one scene. places: where its sources are; None for the reference, which tells."""
        names, scale = [band.name for band in self.denoiser.bands], self.grid.scale
        estimate, cost = self._timed(trial, places)
        places = places or find(estimate, names, scale=scale, target_fwhm=self.denoiser.target_fwhm)
        model = self.denoiser.forward_model(trial.observations, self.grid)
        data = Data.of(model, trial.observations, self.denoiser.bands)
        scene = ScoredScene(trial.name, trial.truth, {}, data=data, target_fwhm=self.denoiser.target_fwhm)
        truth = measure_estimate(Estimate(trial.truth[None], trial.truth), scene, names, places, scale)
        measured = measure_estimate(estimate, scene, names, places, scale, self.errors)
        sky, true = estimate.mean.cpu().numpy(), trial.truth.cpu().numpy()
        pictures = np.stack([sky, estimate.samples[0].cpu().numpy(), true]) if pictured else None
        r50 = self._r50(estimate, measured, places, names)
        return Record(trial.name, places, truth, measured, r50, spectra(sky, true), cost, pictures)

    def _r50(self, estimate: Estimate, measured: Measured, places: Places, names: list[str]) -> np.ndarray:
        if not isinstance(self._reconstructor, PointEstimate):
            return posterior_mean(measured.r50)
        light = shape_image(estimate.mean[None], names)
        return self.grid.scale * half_light_radius(light, places.segments)[0]

    def _timed(self, trial: Trial, places: Places | None) -> tuple[Estimate, Cost]:
        calls: list[int] = []
        hook = self.denoiser.network.register_forward_hook(lambda module, given, out: calls.append(len(out)))
        forget_peak()
        start = time.process_time(), time.perf_counter()
        try:
            estimate = self._estimate(trial, places)
        finally:
            hook.remove()
        seconds, wall = time.process_time() - start[0], time.perf_counter() - start[1]
        return estimate, Cost(seconds, wall, sum(calls) / self.samples, max(held(peak=True) - self._base, 0.0))

    def _estimate(self, trial: Trial, places: Places | None) -> Estimate:
        stream = NoiseStream(self.seed, trial.name)
        if self._reconstructor is None:
            assert places is not None
            model = self.denoiser.forward_model(trial.observations, self.grid)
            return oracle(trial.truth, places.segments, model, trial.observations, self.samples, stream)
        draws = self._reconstructor.sample(trial.observations, self.grid, self.samples, stream)
        return Estimate(draws.samples, draws.mean, isinstance(self._reconstructor, Templates), draws.offsets)


def spectra(estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(3, C, ANNULI): Σ|x̂|², Σ|x|² and Σ Re x̂ x* of skies (C, H, W), over annuli, in parts of the truth's Σ|x|²."""
    rows, columns = truth.shape[-2:]
    k = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns))
    place = np.minimum((k / 0.5 * ANNULI).astype(int), ANNULI)  # beyond Nyquist along the axes: left out
    a, b = np.fft.rfft2(estimate), np.fft.rfft2(truth)
    weight = np.full(k.shape, 2.0)
    weight[:, 0] = 1.0
    if columns % 2 == 0:
        weight[:, -1] = 1.0
    sums = [
        [np.bincount(place.ravel(), (weight * power).ravel(), ANNULI + 1)[:ANNULI] for power in powers]
        for powers in (np.abs(a) ** 2, np.abs(b) ** 2, (a * b.conj()).real)
    ]
    found = np.array(sums)
    total = found[1].sum(-1)[:, None]
    return found / np.where(total > 0, total, 1.0)


def forget_peak() -> None:
    """Let the kernel count the process's peak of memory anew; where it cannot, peaks are those of the whole process."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def held(peak: bool = False) -> float:
    """MiB of memory that the process holds, or at its peak held."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key)) / 1024
