"""Morphology on posterior samples against the truth: are Sérsic index, C, A, Gini, M20, size and shape covered?

All are measured on the joint Wiener filter's segments, on the truth and on each sample alike. What statmorph flags has
no value; it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import COVERAGE_LEVEL, covered, nmad, pull_width, pulls, ranks
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.score_figures import PALETTE
from jointdiff.evaluate.sources import REFERENCE, ScoredScene, measure_scenes
from jointdiff.evaluate.suite import Kept, Outcome, Row, format_rows, table_of
from jointdiff.evaluate.validation import METHOD, Trial, Validation
from jointdiff.measure.catalog import find_sources, shape_image
from jointdiff.measure.morphology import INDICES, MIN_SNR, measure_morphology
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.seeds import seed_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 8
"""Posterior samples of a scene: statmorph takes longer than drawing them."""

QUANTITIES = (*INDICES, "r50", "e1", "e2")

_COLUMNS = {
    "quantity": ("quantity", "{}"),
    "method": ("method", "{}"),
    "sources": ("sources", "{:.0f}"),
    "flagged_truth": ("flagged, truth", "{:.0f}"),
    "flagged_samples": ("samples", "{:.1%}"),
    "scored": ("scored", "{:.0f}"),
    "truth": ("truth", "{:.3f}"),
    "bias": ("bias", "{:+.3f}"),
    "scatter": ("scatter", "{:.3f}"),
    "deviation": ("stated", "{:.3f}"),
    "spread": ("spread", "{:.3f}"),
    "width": ("width", "{:.2f}"),
    "coverage": ("coverage", "{:.0%}"),
    "low": ("low", "{:.0%}"),
    "high": ("high", "{:.0%}"),
}


def study(denoiser: Denoiser, trials: Validation, kept: Kept) -> Outcome:
    """A row for each of QUANTITIES and method; trials: scenes seen whole, with SAMPLES samples each."""
    found: list[Row] = []
    for trial in trials.trials:

        def make(trial=trial) -> list[Row]:
            return scene_rows(denoiser, trials, trial)

        found += kept.rows(trial.name, make)
    rows = summary(found)
    notes = (
        f"{len(trials.trials)} scenes, {trials.samples} samples each; sources with a VIS aperture flux above "
        f"{MIN_SNR:g} sigma.\nFlagged by statmorph: of the truth, and share of the samples. Scored: truth and most "
        "samples have a value.\nTruth: median; bias: median error of the posterior mean; scatter: its NMAD, beside the "
        "median stated error\nand the spread (NMAD) of the truth itself. "
        f"Coverage: of {COVERAGE_LEVEL:.0%}, raw, with its 95 % interval. What samples have of noise adds to asymmetry."
    )
    return Outcome(table_of(rows), f"{format_rows(rows, _COLUMNS)}\n{notes}", {"morphology": figure(rows)})


def scene_rows(denoiser: Denoiser, trials: Validation, trial: Trial) -> list[Row]:
    """For each source and method of one scene: truth, mean, deviation, pull and whether it is inside, of QUANTITIES."""
    names, scale = [band.name for band in denoiser.bands], trials.grid.scale
    method = Diffusion(denoiser, trials.evaluations)
    estimates = {METHOD: trials.estimate(method, trial), REFERENCE: trials.reference(denoiser, trial)}
    base = estimates[REFERENCE]
    fwhm = denoiser.target_fwhm
    segments = find_sources(base.samples, base.mean, names, trials.weight, target_fwhm=fwhm, scale=scale)
    if not len(segments):
        return []
    scene = ScoredScene(trial.name, trial.truth, estimates, trials.weight, target_fwhm=fwhm)
    sources = measure_scenes([scene], names, scale)
    snr = sources.snr[:, names.index("VIS")]
    layout = (segments, snr >= MIN_SNR, fwhm, scale)

    def values(images, measured) -> tuple[np.ndarray, np.ndarray]:
        """(S, K, 8) of QUANTITIES and what is flagged."""
        found = measure_morphology(shape_image(images, names), *layout)
        own = np.concatenate([measured.r50[..., None], measured.shape], -1)
        return np.concatenate([found.values, own], -1), np.concatenate([found.flagged, ~np.isfinite(own)], -1)

    truth, bad_truth = (array[0] for array in values(trial.truth[None], sources.truth))
    rows: list[Row] = []
    for name, estimate in estimates.items():
        drawn, bad = values(estimate.samples, sources.estimates[name])
        for k in np.flatnonzero(layout[1]):
            row: Row = {"scene": trial.name, "source": float(k), "method": name, "snr": float(snr[k])}
            for q, quantity in enumerate(QUANTITIES):
                rng = np.random.default_rng(seed_of("morphology", trials.seed, trial.name, int(k), quantity))
                scored = _score(drawn[:, k, q], truth[k, q], rng)
                counted = {"flagged_truth": float(bad_truth[k, q]), "flagged_samples": float(bad[:, k, q].mean())}
                row |= {f"{quantity} {key}": value for key, value in (scored | counted).items()}
            rows.append(row)
    return rows


def _score(samples: np.ndarray, truth: float, rng: np.random.Generator) -> dict[str, float]:
    """Of one quantity of one source: NaN where the truth or half of the samples (S,) have no value."""
    finite = samples[np.isfinite(samples)]
    if not math.isfinite(truth) or 2 * len(finite) <= len(samples) or len(finite) < 2:
        return dict.fromkeys(("truth", "mean", "deviation", "pull", "inside"), math.nan)
    column, target = finite[:, None], np.array([truth])
    inside = covered(ranks(column, target, rng), len(finite), rng)[0]
    scored = (truth, finite.mean(), finite.std(ddof=1), pulls(column, target)[0], inside)
    return dict(zip(("truth", "mean", "deviation", "pull", "inside"), map(float, scored), strict=True))


def summary(found: Sequence[Row]) -> list[Row]:
    """The rows of the table. low, high: 95 % interval of the coverage (Clopper & Pearson 1934, Biometrika 26, 404)."""
    from scipy.stats import binomtest

    rows: list[Row] = []
    for quantity in QUANTITIES:
        for method in dict.fromkeys(row["method"] for row in found):
            own = [row for row in found if row["method"] == method]
            keys = ("truth", "mean", "deviation", "pull", "inside", "flagged_truth", "flagged_samples")
            of = {key: np.array([row[f"{quantity} {key}"] for row in own]) for key in keys}
            good = np.isfinite(of["mean"])
            row: Row = {"quantity": quantity, "method": method, "sources": float(len(own))}
            row |= {"flagged_truth": float(of["flagged_truth"].sum())}
            row |= {"flagged_samples": float(of["flagged_samples"].mean()), "scored": float(good.sum())}
            if good.any():
                error = (of["mean"] - of["truth"])[good]
                row |= {"truth": float(np.median(of["truth"][good])), "bias": float(np.median(error))}
                row |= {"scatter": nmad(error), "deviation": float(np.median(of["deviation"][good]))}
                row |= {"spread": nmad(of["truth"][good]), "width": pull_width(of["pull"][good], SAMPLES)}
                interval = binomtest(int(of["inside"][good].sum()), int(good.sum())).proportion_ci(0.95)
                row |= {"coverage": float(of["inside"][good].mean()), "low": interval.low, "high": interval.high}
            rows.append(row)
    return rows


def figure(rows: Sequence[Row]) -> Figure:
    """Coverage, and scatter and bias over the spread of the truth, of each quantity; one colour a method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    drawn = Figure(figsize=(12, 3.6), facecolor="white", layout="constrained")
    inside, error = drawn.subplots(1, 2)
    inside.axhline(COVERAGE_LEVEL, color=FAINT, lw=0.9)
    error.axhline(0, color=FAINT, lw=0.9)
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    for number, (method, colour) in enumerate(zip(methods, PALETTE, strict=False)):
        own = {str(row["quantity"]): row for row in rows if row["method"] == method and row["scored"]}
        at = [QUANTITIES.index(quantity) + 0.16 * (number - (len(methods) - 1) / 2) for quantity in own]
        value, low, high, bias, scatter, spread = (
            np.array([row[key] for row in own.values()])
            for key in ("coverage", "low", "high", "bias", "scatter", "spread")
        )
        inside.errorbar(at, value, [value - low, high - value], fmt="o", ms=4, color=colour, label=method)
        spread = np.where(spread > 0, spread, np.nan)  # of a single source there is none
        error.errorbar(at, bias / spread, scatter / spread, fmt="o", ms=4, color=colour, label=method)
    inside.set_title(f"Coverage (nominal: {COVERAGE_LEVEL:.0%})", fontsize=11, color=INK)
    inside.set_ylim(0, 1)
    inside.yaxis.set_major_formatter(PercentFormatter(1))
    error.set_title("Bias, with the scatter as its bar, over the spread of the truth", fontsize=11, color=INK)
    for axes in drawn.axes:
        axes.set_xticks(range(len(QUANTITIES)), QUANTITIES, rotation=20)
        clean(axes)
    if methods:
        handles, labels = inside.get_legend_handles_labels()
        drawn.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="outside lower center")
    return drawn
