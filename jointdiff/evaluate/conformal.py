"""Fitting calibration.json: split-conformal factors of stated errors, and what both modes may differ by.

Conformal prediction takes a posterior as it is, and widens its intervals until they hold the truth as often as they
say on scenes set aside for this (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, JASA 113, 1094), here bin by bin of an
observed quantity (Vovk et al. 2003, "Mondrian"). It makes no interval better placed, and nothing is promised for
scenes unlike those.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.validation import Validation
from jointdiff.measure.catalog import (
    MeasureSettings,
    find_sources,
    gaussian_fluxes,
    measure,
    measure_images,
    shape_image,
)
from jointdiff.measure.conformal import ErrorScales, quantities, significance
from jointdiff.measure.modes import ModeCheck, disagreement
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.measure.shapes import half_light_radius
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Grid

EDGES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Between bins of observed signal to noise. Steps, not a curve through them: in a bin the fitted share is exact."""

BAND_STRENGTH, BIN_STRENGTH = 64.0, 8.0
"""Sources that the factor of all bands in a bin is worth for one band's, and that of all bins for a bin's.

A factor fitted on n sources is off by 0.96/√n (the error of the 11/16 quantile of a normal's modulus). Bands of a bin
differ by some 12 percent, bins by 30 to 40; the best weight of what lies above is then (0.96/difference)² sources.
"""

FALSE_ALARMS = 0.02
"""Share of sound sources that disagreement of the modes may flag: one in fifty, which fifty sources can measure."""

MODE_SAMPLES = (32, 8)
"""Samples of the amortized and of the factorized mode that are compared; the latter cost some forty times as much."""


@dataclass(frozen=True)
class Scored:
    """One column on N sources of known truth: value, stated error, truth and observed signal to noise, each (N,).

    group: columns of the same one learn from one another.
    """

    group: str
    value: np.ndarray
    error: np.ndarray
    truth: np.ndarray
    snr: np.ndarray

    def stretches(self, samples: int, level: float) -> np.ndarray:
        """Factor (N,) that each error needs for the central interval of ``level`` to reach the truth.

        The interval of a Gaussian posterior known by S samples: value ± t · error · √(1 + 1/S), t the quantile of
        Student's t with S − 1 degrees of freedom. NaN where the error or the truth is undefined.
        """
        half = stdtrit(samples - 1, (1 + level) / 2) * math.sqrt(1 + 1 / samples)
        error = np.where(self.error > 0, self.error, np.nan)
        return np.abs(self.truth - self.value) / (half * error)


def conformal_quantile(values: np.ndarray, level: float) -> float:
    """The bound that a further, exchangeable value stays below with probability ``level``: rank (n + 1) level of n.

    Between two ranks it is interpolated, beyond the last it is the largest; NaN for no values.
    """
    return float(np.quantile(values, level, method="weibull")) if len(values) else math.nan


def fit_scales(
    tested: Mapping[str, Scored],
    samples: int,
    scenes: int,
    edges: Sequence[float] = EDGES,
    level: float = COVERAGE_LEVEL,
) -> ErrorScales:
    """Factors of the errors of each column in each bin, so that their intervals of ``level`` hold as often as stated.

    Where a bin has few sources its factor leans, in the logarithm, to that of all columns of its group in this bin, and
    that one to the factor of all bins; without any source it is 1. samples, scenes: that the columns are measured on.
    """
    needed = {name: column.stretches(samples, level) for name, column in tested.items()}
    place = {name: np.digitize(column.snr, edges) for name, column in tested.items()}
    scales: dict[str, tuple[float, ...]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    for group in dict.fromkeys(column.group for column in tested.values()):
        names = [name for name, column in tested.items() if column.group == group]
        values, where = (np.concatenate([part[name] for name in names]) for part in (needed, place))
        root = _leaning(values, 1.0, BIN_STRENGTH, level, len(names))
        bins = range(len(edges) + 1)
        pooled = [_leaning(values[where == b], root, BIN_STRENGTH, level, len(names)) for b in bins]
        for name in names:
            inside = [needed[name][place[name] == b] for b in bins]
            scales[name] = tuple(
                _leaning(v, parent, BAND_STRENGTH, level) for v, parent in zip(inside, pooled, strict=True)
            )
            counts[name] = tuple(int(np.isfinite(v).sum()) for v in inside)
    return ErrorScales(tuple(edges), scales, counts, level, scenes, samples)


def _leaning(values: np.ndarray, parent: float, strength: float, level: float, shared: int = 1) -> float:
    """The quantile of the finite values, drawn to the parent's. shared: values that one source counts with."""
    values = values[np.isfinite(values)]
    own = conformal_quantile(values, level)
    if not own > 0:
        return parent
    count = len(values) / shared
    return math.exp((count * math.log(own) + strength * math.log(parent)) / (count + strength))


def measure_errors(trials: Validation, denoiser: Denoiser, progress: bool = False) -> ErrorScales:
    """Fit the factors on simulated scenes, measured as a catalog of them is: sources found and binned by its own."""
    from rich.progress import track

    names = [band.name for band in denoiser.bands]
    method = Diffusion(denoiser, trials.evaluations)
    rows: dict[str, list[tuple[np.ndarray, ...]]] = {}
    aperture = MeasureSettings().aperture
    for trial in track(trials.trials, "calibrating", disable=not progress):
        stream = NoiseStream(trials.seed, f"calibration {trial.name}")
        draws = method.sample(trial.observations, trials.grid, trials.samples, stream)
        scale, fwhm = trials.grid.scale, denoiser.target_fwhm
        segments = find_sources(draws.samples, draws.mean, names, target_fwhm=fwhm, scale=scale)
        sizes = scale * half_light_radius(shape_image(draws.mean[None], names), segments)[0]
        table = measure(draws.samples, names, trial.name, scale, draws.mean, segments=segments, target_fwhm=fwhm)
        true = measure_images(trial.truth[None], names, segments, sizes, scale, aperture)
        truth = {f"flux_{name}": true.segment[0, :, band] for band, name in enumerate(names)}
        truth |= {f"aper_flux_{name}": true.aperture[0, :, band] for band, name in enumerate(names)}
        gauss = gaussian_fluxes(trial.truth[None], segments, scale, fwhm)[0]
        truth |= {f"gauss_flux_{name}": gauss[:, band] for band, name in enumerate(names)}
        truth |= {"r50": true.r50[0], "e1": true.shape[0, :, 0], "e2": true.shape[0, :, 1]}
        for column, error, *_ in quantities(names):
            cells = (table[column], table[error], truth[column], significance(table, names, column))
            rows.setdefault(column, []).append(tuple(map(np.asarray, cells)))
    tested = {
        column: Scored(_group(column), *(np.concatenate(parts) for parts in zip(*cells, strict=True)))
        for column, cells in rows.items()
    }
    return fit_scales(tested, trials.samples, len(trials.trials))


def _group(column: str) -> str:
    return "ellipticity" if column in ("e1", "e2") else column.rsplit("_", 1)[0]


def fit_check(scenes: Sequence[np.ndarray], rate: float = FALSE_ALARMS) -> ModeCheck:
    """The threshold that a sound source's disagreement passes with probability ``rate``, and how often it did.

    scenes: the disagreement (K,) of the sources of each. Alarms are counted against thresholds fitted without the
    source's own scene. Raises ValueError for fewer sources than ``rate`` can be told from.
    """
    every, least = np.concatenate(scenes), math.ceil(1 / rate)
    if len(every) < least:
        raise ValueError(f"{len(every)} sources, expected at least {least} for a false-alarm rate of {rate:g}")
    alarms = 0
    for number, own in enumerate(scenes):
        others = np.concatenate([*scenes[:number], np.empty(0), *scenes[number + 1 :]])
        alarms += int((own > conformal_quantile(others, 1 - rate)).sum())
    threshold = conformal_quantile(every, 1 - rate)
    return ModeCheck(threshold, rate, MODE_SAMPLES, len(scenes), len(every), alarms)


def compare_modes(trials: Validation, denoiser: Denoiser, progress: bool = False) -> list[np.ndarray]:
    """Disagreement (K,) of the modes on the sources of each simulated scene."""
    from rich.progress import track

    methods = [Diffusion(denoiser, trials.evaluations, mode=mode) for mode in ("amortized", "factorized")]
    found = []
    for trial in track(trials.trials, "comparing modes", disable=not progress):
        stream = NoiseStream(trials.seed, f"modes {trial.name}")
        ours, other = (
            method.sample(trial.observations, trials.grid, count, stream).samples
            for method, count in zip(methods, MODE_SAMPLES, strict=True)
        )
        circles = apertures(ours, denoiser, trials.grid)
        found.append(disagreement(*(fluxes(samples.cpu(), circles).numpy() for samples in (ours, other))))
    return found


def apertures(samples: Tensor, denoiser: Denoiser, grid: Grid) -> Tensor:
    """Those of the catalog (measure/photometry.py's map), about the sources that samples (S, C, H, W) show."""
    names = [band.name for band in denoiser.bands]
    found = find_sources(samples, samples.mean(0), names, target_fwhm=denoiser.target_fwhm, scale=grid.scale)
    return aperture_map(found.x, found.y, MeasureSettings().aperture / grid.scale, found.labels.shape)
