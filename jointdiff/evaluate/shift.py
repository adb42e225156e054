"""What becomes of accuracy and coverage when the data are not as in training, or not as the method is told.

Every condition is the same scenes with the same noise, one thing changed: what the method is told of the data (PSF,
place, noise), which data there are, or the sky itself. Scores stand beside those of the undisturbed scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from jointdiff.decimate import at_its_resolution
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import COVERAGE_LEVEL
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.score_figures import BAND_PALETTE
from jointdiff.evaluate.suite import ALL, Kept, Outcome, Row, format_rows, score_rows, table_of
from jointdiff.evaluate.validation import METHOD, Validation
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Observation
from jointdiff.seeds import seed_of
from jointdiff.simulate.mock import Simulator
from jointdiff.simulate.off_locus import dusty, line_emitting, quasars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lot = tuple[Simulator, int, int]
"""A simulator, how many scenes to draw with it, and their seed."""

UNDISTURBED = "undisturbed"

MAGNITUDE = 0.4
"""dex of sky noise that a magnitude of depth is."""


def narrower(observations: Sequence[Observation], seed: int, factor: float) -> list[Observation]:
    """All PSFs told ``factor`` times as wide as they are."""
    frames = [replace(o.frame, psf_scale=factor * o.frame.psf_scale) for o in observations]
    return [replace(o, frame=frame) for o, frame in zip(observations, frames, strict=True)]


def misplaced(observations: Sequence[Observation], seed: int, offset: float) -> list[Observation]:
    """Each ground band told ``offset`` arcsec from where it is, in a direction of its own; VIS is the reference."""
    generator = torch.Generator().manual_seed(seed_of("offset", seed))
    moved = []
    for o in observations:
        angle = 2 * torch.pi * torch.rand(len(o.image), generator=generator)
        step = offset * torch.stack([angle.sin(), angle.cos()], dim=1).to(o.image)
        held = torch.zeros_like(step) if o.frame.shift is None else o.frame.shift
        moved.append(o if o.band.name == "VIS" else replace(o, frame=replace(o.frame, shift=held + step)))
    return moved


def misjudged(observations: Sequence[Observation], seed: int, factor: float) -> list[Observation]:
    """All noise told ``factor`` times what it is."""
    return [replace(o, ivar=o.ivar / factor**2) for o in observations]


def without(observations: Sequence[Observation], seed: int, bands: Sequence[str]) -> list[Observation]:
    """Without the data of these bands."""
    return [replace(o, ivar=o.ivar * (o.band.name not in bands)) for o in observations]


def deeper(simulator: Simulator, magnitudes: float) -> Simulator:
    """Observed with a sky noise that many magnitudes fainter than the surveys'."""
    return simulator.but(conditions=replace(simulator.conditions, sky=-MAGNITUDE * magnitudes))


@dataclass(frozen=True)
class Shift:
    """One condition. told: changes observations, given a seed. drawn: changes the simulator. says: what it is."""

    says: str
    told: Callable[[Sequence[Observation], int], Sequence[Observation]] = lambda observations, seed: observations
    drawn: Callable[[Simulator], Simulator] = lambda simulator: simulator


SHIFTS: Mapping[str, Shift] = {
    UNDISTURBED: Shift("as in training, every band observed"),
    "psf_narrow": Shift("PSFs told 5 % too narrow", partial(narrower, factor=0.95)),
    "psf_wide": Shift("PSFs told 5 % too wide", partial(narrower, factor=1.05)),
    "offset_050": Shift("ground bands off by 50 mas", partial(misplaced, offset=0.050)),
    "offset_100": Shift("ground bands off by 100 mas", partial(misplaced, offset=0.100)),
    "offset_140": Shift("ground bands off by 140 mas", partial(misplaced, offset=0.140)),
    "noise_under": Shift("noise told 20 % too small", partial(misjudged, factor=1 / 1.2)),
    "noise_over": Shift("noise told 20 % too large", partial(misjudged, factor=1.2)),
    "no_r": Shift("without r", partial(without, bands=("r",))),
    "no_ground": Shift("VIS alone", partial(without, bands=("u", "g", "r", "i", "z", "y"))),
    "no_VIS": Shift("without VIS", partial(without, bands=("VIS",))),
    "shallow": Shift("1 mag shallower", drawn=partial(deeper, magnitudes=-1)),
    "deep": Shift("1 mag deeper", drawn=partial(deeper, magnitudes=1)),
    "dust": Shift("dust, E(B-V) = 0.5", drawn=lambda simulator: simulator.but(dusty(simulator.library))),
    "lines": Shift("strong emission lines", drawn=lambda simulator: simulator.but(line_emitting(simulator.library))),
    "quasars": Shift("quasars alone", drawn=lambda simulator: simulator.but(quasars(simulator.library))),
}
"""Conditions by name; the first is what the others are compared with."""

LSST = "lsst"
"""The condition that all ground data have LSST's 0.2″ pixels."""

OVER = {"image_error_typical": "image_error_over", "flux_scatter": "flux_scatter_over", "crps": "crps_over"}
"""Scores that are also given over those of the undisturbed scenes."""

_COLUMNS = {
    "says": ("condition", "{}"),
    "method": ("method", "{}"),
    "image_error_typical": ("error", "{:.3f}"),
    "image_error_over": ("over", "{:.2f}"),
    "flux_scatter": ("scatter", "{:.1%}"),
    "flux_scatter_over": ("over", "{:.2f}"),
    "crps_over": ("CRPS over", "{:.2f}"),
    "flux_bias": ("bias", "{:+.1%}"),
    "pull_width": ("width", "{:.2f}"),
    "coverage": ("coverage", "{:.1%}"),
    "chi2": ("chi2/N", "{:.3f}"),
    "sources": ("sources", "{:.0f}"),
}


def study(
    denoiser: Denoiser, lots: Sequence[Lot], lsst: Sequence[Lot], samples: int, evaluations: int, seed: int, kept: Kept
) -> Outcome:
    """SCORES in every condition, of the denoiser and of the joint Wiener filter, which is told the same.

    lots: of the scenes, seen whole; lsst: of those with LSST's pixels, or none. seed: of the samples.
    """
    names = [band.name for band in denoiser.bands]
    conditions = {name: (shift, lots) for name, shift in SHIFTS.items()}
    if lsst:
        conditions[LSST] = (Shift("0.2″ LSST pixels only"), lsst)
    rows: list[Row] = []
    for name, (shift, drawn) in conditions.items():

        def make(shift=shift, drawn=drawn) -> list[Row]:
            trials = Validation(mocks(drawn, shift), drawn[0][0].grid, 0, samples, evaluations, seed)
            return score_rows(trials.scored(Diffusion(denoiser, evaluations)), names, trials.grid.scale, seed)

        rows += [{"condition": name, "says": shift.says} | row for row in kept.rows(name, make)]
    rows = relative(rows)
    told = [row for row in rows if row["band"] == ALL]
    count = sum(count for _, count, _ in lots)
    text = f"{count} scenes, {samples} samples each; means over {', '.join(names)}; over: the undisturbed scenes'"
    return Outcome(table_of(rows), f"{text}\n{format_rows(told, _COLUMNS)}", {"shift": figure(rows, names)})


def mocks(lots: Sequence[Lot], shift: Shift) -> list:
    """The scenes of all lots in one condition, as every method takes them."""
    drawn = []
    for simulator, count, seed in lots:
        changed = shift.drawn(simulator)
        mock = changed.expose(count, seed)
        # What is told must not decide on the pixels that are compared.
        seen = [at_its_resolution(o, changed.grid.scale) for o in mock.observations]
        drawn.append(changed.admitted(replace(mock, observations=list(shift.told(seen, seed)))))
    return drawn


def relative(rows: Sequence[Row]) -> list[Row]:
    """The rows, with scores over the same method's and band's undisturbed ones: OVER."""
    base = {(row["method"], row["band"]): row for row in rows if row["condition"] == UNDISTURBED}
    found = []
    for row in rows:
        own = base[row["method"], row["band"]]
        over = {new: row[key] / own[key] if own[key] else np.nan for key, new in OVER.items()}
        found.append(row | over)
    return found


def figure(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """A line a condition, a column a score. Dots: bands; bars: their mean; circles: the joint Wiener filter's mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    columns = (
        ("image_error_over", "Image error\nover undisturbed", 1.0),
        ("flux_scatter_over", "Flux scatter\nover undisturbed", 1.0),
        ("crps_over", "CRPS of fluxes\nover undisturbed", 1.0),
        ("flux_bias", "Flux bias", 0.0),
        ("pull_width", "Pull width\n(nominal: 1)", 1.0),
        ("coverage", f"Coverage\n(nominal: {COVERAGE_LEVEL:.0%})", COVERAGE_LEVEL),
    )
    told = {str(row["condition"]): str(row["says"]) for row in rows}
    places = {condition: -place for place, condition in enumerate(told)}
    drawn = Figure(figsize=(14, 0.36 * len(told) + 1.6), facecolor="white", layout="constrained")
    for axes, (key, title, ideal) in zip(drawn.subplots(1, len(columns), sharey=True), columns, strict=True):
        axes.axvline(ideal, color=FAINT, lw=0.9, zorder=0)
        for row in rows:
            place = places[str(row["condition"])]
            if row["method"] == METHOD and row["band"] != ALL:
                colour = BAND_PALETTE[list(names).index(str(row["band"])) % len(BAND_PALETTE)]
                label = str(row["band"]) if place == 0 else None
                axes.plot(row[key], place, "o", ms=4, color=colour, alpha=0.75, label=label)
            elif row["band"] == ALL:
                ours = row["method"] == METHOD
                style = {"marker": "|", "ms": 15, "mew": 2} if ours else {"marker": "o", "ms": 7, "mfc": "none"}
                label = ("mean" if ours else str(row["method"])) if place == 0 else None
                axes.plot(row[key], place, ls="", color=INK, label=label, **style)
        if key.endswith("_over"):
            axes.set_xscale("symlog", linthresh=2)
            axes.set_xlim(left=0)
            largest = max(2.0, axes.get_xlim()[1])
            ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100) if tick <= largest]
            axes.set_xticks(ticks, map(str, ticks))
            axes.minorticks_off()
        if key in ("flux_bias", "coverage"):
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks(list(places.values()), list(told.values()))
        axes.set_title(title, fontsize=11, color=INK)
        axes.grid(axis="y", color="#eeeeee", lw=0.8)
        axes.set_axisbelow(True)
        clean(axes)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="outside lower center")
    return drawn
