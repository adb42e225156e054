"""How many evaluations of the network a sample takes, and by which solver: scores against both, on the same scenes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.diffusion.solvers import DEFAULT, SOLVERS
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.score_figures import PALETTE
from jointdiff.evaluate.suite import ALL, Kept, Outcome, Row, format_rows, score_rows, table_of
from jointdiff.evaluate.validation import METHOD, Validation
from jointdiff.reconstruct.diffusion import Diffusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATIONS = (3, 4, 6, 8, 12, 16, 32, 64)
"""Heun's method makes an even number of them, so it has no row of three."""

_COLUMNS = {
    "solver": ("solver", "{}"),
    "evaluations": ("evaluations", "{:.0f}"),
    "image_error_typical": ("error", "{:.3f}"),
    "flux_bias": ("bias", "{:+.1%}"),
    "flux_scatter": ("scatter", "{:.1%}"),
    "crps_relative": ("CRPS/sd", "{:.3f}"),
    "pull_width": ("width", "{:.3f}"),
    "coverage": ("coverage", "{:.1%}"),
    "chi2": ("chi2/N", "{:.3f}"),
    "seconds": ("s/scene", "{:.2f}"),
}


def study(denoiser: Denoiser, trials: Validation, kept: Kept) -> Outcome:
    """SCORES of every solver at every number of evaluations, and the core seconds that a scene's samples take.

    Solvers start from the same noise. The scores of the joint Wiener filter, which needs no solver, stand below.
    """
    names = [band.name for band in denoiser.bands]
    rows: list[Row] = []
    for solver in SOLVERS:
        for count in EVALUATIONS:
            if solver == "heun" and count % 2:
                continue

            def make(solver=solver, count=count) -> list[Row]:
                return _score(Diffusion(denoiser, count, solver, guard=False, refine=False), trials, names)

            found = kept.rows(f"{solver}_{count:02d}", make)
            rows += [{"solver": solver, "evaluations": float(count)} | row for row in found if row["method"] == METHOD]
            reference = [{"solver": row["method"]} | row for row in found if row["method"] != METHOD]
    rows += reference
    for row in rows:
        del row["method"]
    text = format_rows([row for row in rows if row["band"] == ALL], _COLUMNS)
    samples = f"{len(trials.trials)} scenes, {trials.samples} samples each; means over {', '.join(names)}"
    return Outcome(table_of(rows), f"{samples}\n{text}", {"solvers": figure(rows)})


def _score(method: Diffusion, trials: Validation, names: Sequence[str]) -> list[Row]:
    for trial in trials.trials:
        trials.reference(method.denoiser, trial)
    # What else a computer does must not count; but the time of another device is not that of this process.
    clock = time.process_time if method.denoiser.wavenumbers.device.type == "cpu" else time.perf_counter
    start = clock()
    scenes = trials.scored(method)
    seconds = (clock() - start) / len(trials.trials)
    return [row | {"seconds": seconds} for row in score_rows(scenes, names, trials.grid.scale, trials.seed)]


def figure(rows: Sequence[Row]) -> Figure:
    """Scores, means over the bands, against evaluations: one line a solver; dotted, the joint Wiener filter's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter, ScalarFormatter

    panels = (
        ("image_error_typical", "Image error, median scene", None),
        ("flux_scatter", "Flux scatter", None),
        ("crps_relative", "CRPS over the Wiener filter's deviation", None),
        ("pull_width", "Pull width (nominal: 1)", 1.0),
        ("coverage", f"Coverage (nominal: {COVERAGE_LEVEL:.0%})", COVERAGE_LEVEL),
        ("seconds", "Core seconds a scene", None),
    )
    drawn = Figure(figsize=(12, 6.4), facecolor="white", layout="constrained")
    chosen = [row for row in rows if row["band"] == ALL]
    for axes, (key, title, ideal) in zip(drawn.subplots(2, 3).flat, panels, strict=True):
        if ideal is not None:
            axes.axhline(ideal, color=FAINT, lw=0.9)
        for colour, solver in zip(PALETTE, SOLVERS, strict=False):
            own = [row for row in chosen if row["solver"] == solver]
            x, y = ([row[k] for row in own] for k in ("evaluations", key))
            name = f"{solver} (ours)" if solver == DEFAULT else solver
            axes.plot(x, y, "o-", ms=4, lw=2 if solver == DEFAULT else 1.3, color=colour, label=name)
        inside = [row[key] for row in chosen if row["solver"] in SOLVERS]
        if key != "seconds":  # what a few steps do to a solver may be beyond all scale
            axes.set_ylim(top=min(max(inside) * 1.05, 2.5 * min(inside)))
        if key in ("flux_scatter", "coverage"):
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        for row in chosen:
            if row["solver"] not in SOLVERS and key != "seconds":
                axes.axhline(row[key], color=INK, lw=1, ls=":", label=f"{row['solver']}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title, fontsize=11, color=INK)
        axes.set_xlabel("evaluations")
        clean(axes)
    drawn.axes[0].legend(frameon=False, fontsize=9)
    return drawn
