"""Objects that the prior does not know: are they reconstructed, or told of, or silently wrong?

Rings, arcs, dipoles, checkerboards and a satellite's trail are drawn on the fine sky, observed, and made so bright that
their signature in the data, √((A x)ᵀ N⁻¹ A x), is a given one. A sky is *wrong* where the samples exclude the object's
true brightness; it is *caught* where the search of what no sample explains finds something around the object, as users
are told of it, or where the catalog's chi2 says that the data are not explained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.calibration import pulls
from jointdiff.evaluate.figures import INK, clean
from jointdiff.evaluate.suite import Kept, Outcome, Row, format_rows, table_of
from jointdiff.forward import ForwardModel, gaussian_transfer
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.data_checks import Data, check_against_data
from jointdiff.measure.peaks import ALARM, NEAR
from jointdiff.measure.unexplained import significance
from jointdiff.reconstruct.base import Draws, NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Band, Grid, Observation
from jointdiff.seeds import seed_of
from jointdiff.simulate.mock import Mock, Simulator
from jointdiff.simulate.observe import GEOMETRIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIGNATURES = (0.0, 5.0, 10.0, 20.0, 40.0)
"""Of the object in all the data together, in sigmas; 0 is an empty sky, whose alarms are false."""

SCENES = 6
"""Places and noises that each object is seen with."""

SAMPLES = 15

WRONG = 3.0
"""Stated errors by which a brightness is off that is wrong."""

CATALOG_ALARM = 1.5
"""Value of a catalog's chi2 that catches an object."""

FOOTPRINT = 0.2
"""An object is where it is brighter than that share of its peak, and within peaks.NEAR of there."""


def _ring(y, x):
    return np.exp(-(((np.hypot(y, x) - 1.0) / 0.1) ** 2) / 2)


def _arc(y, x):
    return _ring(y, x) * (np.abs(np.arctan2(y, x)) < np.pi / 4)


def _dipole(y, x):
    return sum(sign * np.exp(-(y**2 + (x - 0.25 * sign) ** 2) / (2 * 0.1**2)) for sign in (1, -1))


def _checkerboard(y, x):
    return np.sign(np.sin(np.pi * y / 0.4) * np.sin(np.pi * x / 0.4)) * (np.maximum(abs(y), abs(x)) < 0.8)


def _trail(y, x):
    return np.exp(-((y / 0.3) ** 2) / 2)


@dataclass(frozen=True)
class Object:
    """light: surface brightness at offsets (y, x) in arcsec. band: the only one that sees it, or all alike."""

    light: Callable[[np.ndarray, np.ndarray], np.ndarray]
    band: str | None = None

    def sky(self, grid: Grid, psf_fwhm: float, bands: Sequence[Band], centre: np.ndarray) -> Tensor:
        """(C, H, W) on a fine periodic grid, at the PSF of skies, about a sky position (y, x) in pixels."""
        offsets = [(np.arange(n) - c + n / 2) % n - n / 2 for n, c in zip(grid.shape, centre, strict=True)]
        light = self.light(*(grid.scale * axis for axis in np.meshgrid(*offsets, indexing="ij")))
        smooth = np.fft.irfft2(np.fft.rfft2(light) * gaussian_transfer(grid, psf_fwhm), s=grid.shape)
        seen = torch.tensor([self.band in (None, band.name) for band in bands], dtype=torch.float32)
        return seen.view(-1, 1, 1) * torch.tensor(smooth, dtype=torch.float32)


OBJECTS = {
    "ring": Object(_ring),
    "arc": Object(_arc),
    "dipole": Object(_dipole),
    "checkerboard": Object(_checkerboard),
    "trail": Object(_trail, "r"),
}
"""A ring of 1″ radius, a quarter of it, two blobs of either sign 0.5″ apart, 4 × 4 squares of 0.4″, and a line 0.7″
wide through all of r."""

_COLUMNS = {
    "object": ("object", "{}"),
    "signature": ("sigma", "{:.0f}"),
    "recovered": ("recovered", "{:.2f}"),
    "wrong": ("wrong", "{:.0%}"),
    "significance": ("left", "{:.1f}"),
    "caught": ("caught", "{:.0%}"),
    "listed": ("listed", "{:.0%}"),
    "caught_catalog": ("by chi2", "{:.0%}"),
    "silent": ("silent", "{:.0%}"),
}


def study(denoiser: Denoiser, simulators: Sequence[Simulator], evaluations: int, seed: int, kept: Kept) -> Outcome:
    """Fractions of SCENES skies in which each object of OBJECTS, at each of SIGNATURES, is reconstructed and caught.

    simulators: one a ground geometry, taken in turn.
    """
    method = Diffusion(denoiser, evaluations)
    names = [band.name for band in denoiser.bands]
    rows: list[Row] = []
    for name, thing in OBJECTS.items():
        if thing.band not in (None, *names):
            continue
        for signature in SIGNATURES:

            def make(name=name, thing=thing, signature=signature) -> list[Row]:
                found = []
                for number in range(SCENES):
                    source = simulators[number % len(simulators)]
                    found.append(trial(method, source, thing, signature, seed_of("outside", seed, name, number)))
                return found

            found = kept.rows(f"{name}_{signature:02.0f}", make)
            means = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
            rows.append({"object": name, "signature": signature} | means)
    notes = (
        f"Means over {SCENES} skies, {SAMPLES} samples each. Recovered: share of the object in the posterior mean, as"
        f" the data see it.\nWrong: its true brightness is more than {WRONG:g} stated errors off. Left: what no sample"
        f" explains there, in sigmas (of 0: anywhere); caught: above {ALARM:g}.\nListed: as a source of the catalog; by"
        f" chi2: with chi2 above {CATALOG_ALARM:g} in some band. Silent: wrong, and neither caught nor by chi2."
    )
    return Outcome(table_of(rows), f"{format_rows(rows, _COLUMNS)}\n{notes}", {"outside": figure(rows)})


def trial(method: Diffusion, simulator: Simulator, thing: Object, signature: float, seed: int) -> Row:
    """One sky with one object of that signature: what became of it."""
    denoiser, grid = method.denoiser, simulator.grid
    mock, truth = observed(denoiser, simulator, thing, signature, seed)
    draws = method.sample(mock.observations, grid, SAMPLES, NoiseStream(seed, "outside"))
    model = denoiser.forward_model(mock.observations, grid)
    row = recovery(draws, truth, model, mock.observations)
    names = [band.name for band in denoiser.bands]
    segments = find_sources(draws.samples, draws.mean, names, target_fwhm=denoiser.target_fwhm, scale=grid.scale)
    light = truth.abs().amax(0).cpu().numpy()
    footprint = light > FOOTPRINT * light.max()
    found = significance(draws, model, mock.observations)
    around = maximum_filter(footprint, size=2 * round(NEAR / grid.scale) + 1, mode="wrap")
    left = float(found.sigma[around].max() if signature else found.sigma.max())
    own = np.unique(segments.labels[footprint])
    own = own[own > 0] - 1
    data = Data.of(model, mock.observations, denoiser.bands)
    chi2 = check_against_data(draws.mean, names, segments, data).chi2[own]
    row |= {"listed": float(len(own) > 0), "caught_catalog": float(np.nanmax(chi2, initial=0) > CATALOG_ALARM)}
    row |= {"significance": left, "caught": float(left > ALARM)}
    caught, pull = row["caught"] or row["caught_catalog"], row.pop("pull")
    # An empty sky has no object to be wrong about.
    wrong = signature > 0 and abs(pull) > WRONG
    recovered = row["recovered"] if signature > 0 else np.nan
    return row | {"recovered": recovered, "wrong": float(wrong), "silent": float(wrong and not caught)}


def observed(
    denoiser: Denoiser, simulator: Simulator, thing: Object, signature: float, seed: int
) -> tuple[Mock, Tensor]:
    """An otherwise empty sky with the object; and the object alone (C, H, W), at signature 1 where there is none."""
    geometry = GEOMETRIES[simulator.geometries[0]]
    bands = simulator.composed(geometry)
    centre = np.random.default_rng(seed).uniform(0, simulator.sky.shape)
    sky = thing.sky(simulator.sky, simulator.library.psf_fwhm, bands, centre)[None].to(simulator.device)
    blank = simulator.admitted(simulator.expose_skies(torch.zeros_like(sky), geometry, seed)).observations
    truth = simulator.scenes(sky[:, : len(simulator.bands)])
    seen = denoiser.forward_model(blank, simulator.grid)(truth)
    power = sum(float((o.weigh(image) * image).sum()) for o, image in zip(blank, seen, strict=True))
    scale = (signature or 1.0) / power**0.5
    drawn = scale * sky if signature else torch.zeros_like(sky)
    return simulator.admitted(simulator.expose_skies(drawn, geometry, seed)), scale * truth[0]


def recovery(draws: Draws, truth: Tensor, model: ForwardModel, observations: Sequence[Observation]) -> Row:
    """What the samples make of an object ``truth`` (C, H, W).

    recovered: ⟨A x̄, A x⟩/⟨A x, A x⟩ under N⁻¹. pull: of its brightness ⟨x_k, x⟩/⟨x, x⟩ in the scene, true value 1.
    """
    shared = own = 0.0
    for o, light, guess in zip(observations, model(truth[None]), model(draws.mean[None]), strict=True):
        weighed = o.weigh(light)
        shared, own = shared + float((weighed * guess).sum()), own + float((weighed * light).sum())
    brightness = (draws.samples * truth).sum((1, 2, 3)) / truth.square().sum()
    pull = float(pulls(brightness.double().cpu().numpy()[:, None], np.ones(1))[0])
    return {"recovered": shared / own, "pull": pull}


def figure(rows: Sequence[Row]) -> Figure:
    """For each object, against its signature: how much is recovered, how often it is wrong, caught, and silent."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(str(row["object"]) for row in rows))
    lines = (
        ("recovered", "recovered", "#3b6fb6", "o-"),
        ("wrong", "wrong", "#d98032", "s-"),
        ("caught", "caught by the search", "#3f9a6b", "^-"),
        ("caught_catalog", "caught by chi2", "#7a6a55", "v-"),
        ("silent", "silently wrong", "#c0304d", "D--"),
    )
    drawn = Figure(figsize=(2.7 * len(names) + 0.6, 3.3), facecolor="white", layout="constrained")
    for axes, name in zip(drawn.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["object"] == name]
        for key, label, colour, style in lines:
            axes.plot(
                [row["signature"] for row in own], [row[key] for row in own], style, ms=4, color=colour, label=label
            )
        axes.set_title(name, fontsize=11, color=INK)
        axes.set_xlabel("signature in the data, σ")
        axes.set_ylim(-0.05, 1.15)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        clean(axes)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, loc="outside lower center")
    return drawn
