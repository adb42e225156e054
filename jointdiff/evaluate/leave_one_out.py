"""What the other bands say about one, against its own data: a test of colours that needs no truth.

Each observation y_o of a field is left out in turn, the sky is sampled from the others, and y_o is compared with
A_o x_k + M_o ν_k under its noise N_o and the covariance of these together: pixel by pixel around sources, and source by
source, in the flux that both have under the same template. M_o ν_k is what y_o may be off by as a whole (nuisances.py),
drawn from p(ν): no other image tells of it. Only its position is not as unknown as before the field was aligned, by y_o
itself: it is off by what the fit leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jointdiff.errors import InputError
from jointdiff.evaluate.calibration import pull_width
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.score_figures import PALETTE
from jointdiff.evaluate.suite import Outcome, Row, format_rows, table_of
from jointdiff.forward import ForwardModel
from jointdiff.io.scene_files import Field
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.data_checks import Data, check_against_data
from jointdiff.measure.detection import Segments
from jointdiff.nuisances import Levels, deepest, modes_of
from jointdiff.reconstruct.align import Alignment, align_field
from jointdiff.reconstruct.base import NoiseStream, Reconstructor
from jointdiff.reconstruct.field import PaddedField, pad_field
from jointdiff.reconstruct.stars import subtract_stars
from jointdiff.scene import Observation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = 0.05
"""Pixels predicted to be brighter than this share of the peak, and than their noise, are a source's."""

_COLUMNS = {
    "field": ("field", "{}"),
    "method": ("method", "{}"),
    "band": ("left out", "{}"),
    "pixels": ("pixels", "{:.0f}"),
    "chi2_data": ("chi2/N, data", "{:.2f}"),
    "chi2": ("chi2/N", "{:.2f}"),
    "chi2_noise": ("noise alone", "{:.2f}"),
    "sources": ("sources", "{:.0f}"),
    "bias": ("flux bias", "{:+.1%}"),
    "median_pull": ("pull bias", "{:+.2f}"),
    "pull_width": ("width", "{:.2f}"),
}


def predictive_chi2(image: Tensor, ivar: Tensor, models: Tensor) -> float:
    """χ² per pixel of an image (P,) predicted by samples (S, P), each pixel under σ² + (1 + 1/S) times their variance.

    One for samples that the true sky could be one of. ivar: (P,), positive. The inverse of a variance of ν degrees of
    freedom is too large on average, by ν/(ν - 2) for Gaussians, and that is taken out; ν as of a sum of a known and an
    estimated variance (Satterthwaite 1946, Biometrics Bulletin 2, 110).
    """
    count = len(models)
    assert count > 3, "the inverse of a variance of three samples has no mean"
    spread = (1 + 1 / count) * models.var(0)
    variance = 1 / ivar + spread
    # (spread/variance)² rather than its inverse: samples may agree to the last bit.
    excess = 2 / (count - 1) * (spread / variance).square()
    return float(((image - models.mean(0)).square() * (1 - excess) / variance).mean())


def study(methods: Sequence[Reconstructor], fields: Sequence[Field], samples: int, seed: int) -> Outcome:
    """A row for each method, field and observation left out of it; a source's pull for each under the first method.

    Raises InputError for a field of fewer than two observations, or that does not suit the denoiser; and for fewer than
    four samples.
    """
    if samples < 4:
        raise InputError(f"sampling.samples is {samples}, expected at least 4, whose scatter predicts a band")
    rows: list[Row] = []
    drawn: list[Row] = []
    for field in fields:
        padded = pad_field(field.observations, field.grid, methods[0].denoiser, field.sources)
        if len(padded.observations) < 2:
            raise InputError(f"{field.name}: one observation, expected at least two, to leave one out ({field.path})")
        # As reconstruct treats a field: offsets and bright stars are no test of colours.
        padded, alignment = align_field(subtract_stars(padded, field.name)[0], methods[0].denoiser)
        for method in methods:
            found = leave_each_out(method, padded, field.name, samples, seed, alignment)
            rows += [{"field": field.name, "method": method.method} | row for row in found if "chi2" in row]
            if method is methods[0]:
                drawn += [row for row in found if "pull" in row]
    text = (
        f"{samples} samples each. Pixels: around sources; chi2/N, data: of the samples of all the data; chi2/N: of the"
        " band's pixels under its noise and the samples of the other bands together; noise alone: without the samples'."
    )
    return Outcome(table_of(rows), f"{format_rows(rows, _COLUMNS)}\n{text}", {"leave_one_out": figure(drawn)})


def leave_each_out(
    method: Reconstructor, padded: PaddedField, name: str, samples: int, seed: int, alignment: Alignment | None = None
) -> list[Row]:
    """For each observation a row of its scores; then a row a source with its flux in both, and the pull.

    alignment: by which the field's observations were placed; None where they are as served.
    """
    denoiser, observations = method.denoiser, padded.observations
    names = [band.name for band in denoiser.bands]
    whole = method.sample(observations, padded.grid, samples, NoiseStream(seed, name))
    scores: list[Row] = []
    pulls: list[Row] = []
    for number in range(len(observations)):
        *others, left = _without(number, observations, alignment)
        draws = method.sample(others, padded.grid, samples, NoiseStream(seed, f"{name} without {number}"))
        model = denoiser.forward_model([left], padded.grid)
        fitted, told = (model(d.samples)[0] for d in (whole, draws))
        fitted = fitted + whole.offsets[number] if whole.offsets else fitted
        predicted = told + own_errors(
            model, left, draws.mean, denoiser.levels, NoiseStream(seed, f"{name} of {number}"), samples
        )
        image, ivar = left.image[0], left.ivar[0]
        # Neither sources nor templates know of the noise that they are compared with.
        fwhm, scale = denoiser.target_fwhm, padded.grid.scale
        segments = find_sources(draws.samples, draws.mean, names, padded.weight, target_fwhm=fwhm, scale=scale)
        mean = told.mean(0)
        around = (ivar > 0) & (mean > torch.maximum(LIGHT * mean.max(), ivar.clamp(min=1e-30).rsqrt()))
        if not bool(around.any()):
            around = ivar > 0
        at = image[around], ivar[around]
        row: Row = {"band": left.band.name, "pixels": float(around.sum())}
        row["chi2_data"] = float(((image - fitted).square() * ivar)[:, around].mean())
        row["chi2"] = predictive_chi2(*at, predicted[:, around])
        row["chi2_noise"] = float(((at[0] - told[:, around].mean(0)).square() * at[1]).mean())
        flux = source_fluxes(draws.mean, names, segments, Data.of(model, [left], denoiser.bands), predicted)
        found = [{"band": left.band.name} | f for f in flux]
        scores.append(row | _of_fluxes(found, samples))
        pulls += found
    return scores + pulls


def _without(number: int, observations: Sequence[Observation], found: Alignment | None) -> list[Observation]:
    """The observations, that of a number last, each as uncertain of its place as where that one is left out.

    It was placed by its own data, so it is off by what the fit left. So are the others where it is the reference: its
    data placed them, and what they have among themselves does not tell where they all are together.
    """
    known = list(observations)
    if found is not None and found.shifts.agree[0]:
        reference = found.numbers[found.bands.index(found.reference)]
        for place, left in zip(found.numbers, found.left.tolist(), strict=True):
            if number in (place, reference):
                known[place] = replace(known[place], position_error=left)
    return [*known[:number], *known[number + 1 :], known[number]]


def own_errors(model: ForwardModel, left: Observation, sky: Tensor, levels: Levels, white: NoiseStream, samples: int):
    """M ν (S, h, w), nJy per pixel: draws of what the left-out image of a sky (C, H, W) may be off by as a whole."""
    (modes,), _ = modes_of(model, [left], sky[None], levels, deepest([left]))
    (drawn,) = white.normal(range(samples), [(len(modes),)], modes)
    return torch.tensordot(drawn, modes, 1)


def source_fluxes(mean: Tensor, names: Sequence[str], segments: Segments, data: Data, predicted: Tensor) -> list[Row]:
    """For each source with data: its maximum-likelihood flux in one observation, and in its predictions (S, h, w).

    data: of that observation alone. The template is that of ``flux_ml``, from the mean (C, H, W) of the others; both
    fluxes are the same linear function of pixels, so the filter does not matter. pull: of the one from the others,
    under the data's error and the samples' together.
    """
    band, *_ = data.bands
    own = check_against_data(mean, names, segments, data)
    each = []
    for model in predicted:
        told = replace(data, images=[model])
        each.append(check_against_data(mean, names, segments, told).flux[:, band])
    guesses, flux, error = np.array(each), own.flux[:, band], own.flux_err[:, band]
    rows: list[Row] = []
    for source in np.flatnonzero(np.isfinite(flux) & (error > 0)):
        guess = guesses[:, source]
        spread = math.sqrt(error[source] ** 2 + (1 + 1 / len(guess)) * guess.var(ddof=1))
        pull = (guess.mean() - flux[source]) / spread
        row: Row = {"flux": float(flux[source]), "flux_err": float(error[source])}
        rows.append(row | {"predicted": float(guess.mean()), "spread": float(spread), "pull": float(pull)})
    return rows


def _of_fluxes(rows: Sequence[Row], samples: int) -> Row:
    """Number of sources, median relative error of those above 5σ, and median and width of the pulls."""
    flux, error, predicted, pull = (
        np.array([row[key] for row in rows]) for key in ("flux", "flux_err", "predicted", "pull")
    )
    bright = flux > 5 * error
    bias = float(np.median(predicted[bright] / flux[bright] - 1)) if bright.any() else math.nan
    median = float(np.median(pull)) if len(pull) else math.nan
    return {
        "sources": float(len(pull)),
        "bias": bias,
        "median_pull": median,
        "pull_width": pull_width(pull, samples),
    }


def figure(rows: Sequence[Row]) -> Figure:
    """How far predicted fluxes are off the measured ones, against their significance, and the pulls: a colour a band.

    Line beside the pulls: normal ones of width 1. What is beyond an axis is drawn at its rim.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    drawn = Figure(figsize=(10, 4), facecolor="white", layout="constrained")
    fluxes, pulls = drawn.subplots(1, 2, width_ratios=[1.4, 1])
    fluxes.axhline(0, color=FAINT, lw=0.9)
    bands = list(dict.fromkeys(str(row["band"]) for row in rows))
    colours = (*PALETTE, "#c0304d", INK)
    pulled: list[np.ndarray] = []
    for number, band in enumerate(bands):
        own = [row for row in rows if row["band"] == band]
        bright = [row for row in own if row["flux"] > 5 * row["flux_err"]]
        snr = [row["flux"] / row["flux_err"] for row in bright]
        error = [np.clip(row["predicted"] / row["flux"] - 1, -1, 1) for row in bright]
        bars = [row["spread"] / row["flux"] for row in bright]
        colour = colours[number % len(colours)]
        fluxes.errorbar(snr, error, bars, fmt="o", ms=4, lw=0.8, color=colour, label=f"without {band}")
        pulled.append(np.clip([row["pull"] for row in own], -6, 6))
    fluxes.set_xscale("log")
    fluxes.set_ylim(-1.05, 1.05)
    fluxes.yaxis.set_major_formatter(PercentFormatter(1))
    fluxes.set_xlabel("signal to noise of the measured flux")
    fluxes.set_ylabel("predicted / measured - 1")
    fluxes.set_title("Fluxes above 5σ, predicted from the other bands", fontsize=11, color=INK)
    if bands:
        edges = np.linspace(-6, 6, 25)
        pulls.hist(pulled, edges.tolist(), stacked=True, color=[colours[n % len(colours)] for n in range(len(bands))])
        at, count = np.linspace(-6, 6, 121), (edges[1] - edges[0]) * sum(map(len, pulled))
        pulls.plot(at, count * np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi), color=INK, lw=1)
        handles, labels = fluxes.get_legend_handles_labels()
        drawn.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="outside lower center")
    pulls.set_ylabel("sources")
    pulls.set_xlabel("(predicted - measured) / stated error")
    pulls.set_title("Pulls of all sources", fontsize=11, color=INK)
    for axes in drawn.axes:
        clean(axes)
    return drawn
