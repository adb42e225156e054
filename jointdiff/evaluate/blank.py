"""Hallucination: what is found where there is nothing, beside what is found of what is there.

Empty skies are observed, reconstructed and searched as any field is. Fluxes at random places test the stated errors of
``flux_ml``; sources that are found are false. On the same kind of sky sources of known signal to noise are missed or
found: a method that finds nothing makes no false source either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate.figures import FAINT, INK, clean
from jointdiff.evaluate.suite import Kept, Outcome, Row, format_rows, table_of
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.data_checks import Data, check_against_data
from jointdiff.measure.detection import Segments, detect, detection_image
from jointdiff.measure.photometry import aperture_map, fluxes
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.scene import Observation
from jointdiff.seeds import seed_of
from jointdiff.simulate.compose import place
from jointdiff.simulate.mock import Mock, Simulator
from jointdiff.simulate.observe import GEOMETRIES
from jointdiff.units import SIGMA_PER_FWHM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 256
"""Scene pixels on a side of a field."""

AREA = 6.5
"""Empty sky, arcmin²: without a false source, fewer than 0.46 per arcmin² at 95 % confidence."""

INJECTED = 12
"""Fields with sources: 64 in each, 264 at a signal to noise of 10, whose completeness they tell to 4 points."""

SAMPLES = 8

CELL = 32
"""Scene pixels between places of flux_ml or of sources: far enough that their light does not overlap."""

APERTURE = 0.5
"""Radius (arcsec) of the aperture whose signal to noise in VIS says how bright a source is."""

SNRS = (5.0, 7.0, 10.0, 10.0, 14.0, 20.0)
"""Of the injected sources, in turn; twice as often 10, where 90 % completeness is asked."""

FAINTEST_MAGNITUDE = 24.0
"""Injected are library sources fainter than this, so that their shapes are those of faint sources."""

MATCH = 0.4
"""Greatest distance (arcsec) of a detection from the source that it is."""


def poisson_upper_limit(count: int, level: float = 0.95) -> float:
    """The mean under which ``count`` or fewer has a chance of 1 - level (Gehrels 1986, ApJ 303, 336, eq. 1)."""
    from scipy.stats import chi2

    return float(chi2.ppf(level, 2 * (count + 1)) / 2)


def cells(shape: Sequence[int], side: int, rng: np.random.Generator) -> np.ndarray:
    """One random place (N, 2), (y, x) in pixels, in the middle half of every square of ``side`` pixels of an image."""
    corners = np.stack(np.meshgrid(*(side * np.arange(n // side) for n in shape[-2:]), indexing="ij"), -1)
    return corners.reshape(-1, 2) + side * rng.uniform(0.25, 0.75, (len(corners.reshape(-1, 2)), 2))


def point_fluxes(places: np.ndarray, denoiser: Denoiser, data: Data, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """``flux_ml`` and its error, nJy, each (N, C), of point sources at places (N, 2) of a scene of that shape."""
    y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    sigma = SIGMA_PER_FWHM * denoiser.target_fwhm / denoiser.pixel_scale
    light, labels = np.zeros(shape), np.zeros(shape, dtype=int)
    for number, (row, column) in enumerate(places, start=1):
        square = (y - row) ** 2 + (x - column) ** 2
        near = square < (6 * sigma) ** 2
        labels[near] = number
        light[near] = np.exp(-square[near] / (2 * sigma**2))
    names = [band.name for band in denoiser.bands]
    segments = Segments(labels, places[:, 1], places[:, 0])
    mean = torch.as_tensor(light).to(data.images[0]).expand(len(names), *shape)
    checks = check_against_data(mean, names, segments, data)
    return checks.flux, checks.flux_err


def persistent(
    samples: Tensor, names: Sequence[str], scale: float, fwhm: float, noise: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 2), (y, x) in pixels, of what is a source in any sample (S, C, H, W), and in what share (N,) of them.

    noise: of the detection image, as the data have it. A source is significant against this or against the scatter of
    the samples, whichever is less: something in half of them scatters too much to stand out from its own scatter.
    Detections within one target FWHM (arcsec) are one source.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    found, owner = [np.empty((0, 2))], [np.empty(0, dtype=int)]
    cube = samples.detach().cpu().numpy()
    for number, sample in enumerate(cube):
        image, scatter = detection_image(cube, sample, names, None, fwhm, scale)
        segments = detect(image, np.minimum(scatter, noise))
        found.append(np.column_stack([segments.y, segments.x]))
        owner.append(np.full(len(segments), number))
    at, of = np.concatenate(found), np.concatenate(owner)
    if not len(at):
        return at, np.empty(0)
    pairs = cKDTree(at).sparse_distance_matrix(cKDTree(at), fwhm / scale)
    count, group = connected_components(pairs, directed=False)
    members = [np.flatnonzero(group == g) for g in range(count)]
    share = np.array([len(set(of[m])) for m in members]) / len(cube)
    return np.array([at[m].mean(0) for m in members]), share


def detection_noise(flux_err: float, scale: float, fwhm: float) -> float:
    """Noise of the detection image that a point source of flux error ``flux_err`` (nJy) has: its filtered peak."""
    return flux_err / (4 * math.pi * (SIGMA_PER_FWHM * fwhm / scale) ** 2)


def study(
    denoiser: Denoiser,
    simulators: Sequence[Simulator],
    evaluations: int,
    seed: int,
    kept: Kept,
    area: float = AREA,
    injected: int = INJECTED,
) -> Outcome:
    """Pulls of flux_ml and false sources on ``area`` arcmin² of empty sky; completeness on ``injected`` fields.

    simulators: of large tori, one a ground geometry, taken in turn.
    """
    grid = simulators[0].grid
    each = grid.shape[0] * grid.shape[1] * (grid.scale / 60) ** 2
    empty, sown = [], []
    method = Diffusion(denoiser, evaluations)
    for number in range(math.ceil(area / each)):
        source = simulators[number % len(simulators)]

        def search(number=number, source=source) -> list[Row]:
            return empty_field(method, source, seed_of("blank", seed, number))

        empty += kept.rows(f"empty_{number:03d}", search)
    for number in range(injected):
        source = simulators[number % len(simulators)]

        def find(number=number, source=source) -> list[Row]:
            return sown_field(method, source, seed_of("sown", seed, number))

        sown += kept.rows(f"sown_{number:03d}", find)
    rows = summary(empty, sown, [band.name for band in denoiser.bands], each)
    return Outcome(table_of(rows), _text(rows), {"blank": figure(rows)})


def empty_field(method: Diffusion, simulator: Simulator, seed: int) -> list[Row]:
    """A row for each place whose flux_ml was taken, with its pulls; one for each source found; one for the field."""
    mock = nothing(simulator, seed)
    denoiser, grid = method.denoiser, simulator.grid
    names = [band.name for band in denoiser.bands]
    data = Data.of(denoiser.forward_model(mock.observations, grid), mock.observations, denoiser.bands)
    flux, error = point_fluxes(cells(grid.shape, CELL, np.random.default_rng(seed)), denoiser, data, grid.shape)
    rows: list[Row] = [{"kind": "pull"} | dict(zip(names, map(float, pull), strict=True)) for pull in flux / error]
    draws = method.sample(mock.observations, grid, SAMPLES, NoiseStream(seed, "blank"))
    layout = (grid.scale, denoiser.target_fwhm)
    noise = detection_noise(float(np.nanmedian(error[:, names.index("VIS")])), *layout)
    segments = find_sources(draws.samples, draws.mean, names, target_fwhm=denoiser.target_fwhm, scale=grid.scale)
    _, share = persistent(draws.samples, names, *layout, noise)
    rows += [{"kind": "catalog", "share": 1.0}] * len(segments)
    rows += [{"kind": "samples", "share": float(s)} for s in share if s >= 0.5]
    return [*rows, {"kind": "field"}]


def sown_field(method: Diffusion, simulator: Simulator, seed: int) -> list[Row]:
    """A row for each injected source: its signal to noise in VIS's aperture, and whether the catalog has it."""
    rng = np.random.default_rng(seed)
    places = cells(simulator.grid.shape, CELL, rng)
    snr = rng.permutation(np.resize(SNRS, len(places)))
    mock, at = sown(simulator, seed, places, snr, rng)
    denoiser, grid = method.denoiser, simulator.grid
    names = [band.name for band in denoiser.bands]
    draws = method.sample(mock.observations, grid, SAMPLES, NoiseStream(seed, "sown"))
    segments = find_sources(draws.samples, draws.mean, names, target_fwhm=denoiser.target_fwhm, scale=grid.scale)
    found = np.column_stack([segments.y, segments.x])
    distance = np.linalg.norm(found[None] - at[:, None], axis=-1).min(1, initial=np.inf) * grid.scale
    return [
        {"kind": "injected", "snr": float(s), "found": float(d <= MATCH)} for s, d in zip(snr, distance, strict=True)
    ]


def sown(
    simulator: Simulator, seed: int, places: np.ndarray, snr: np.ndarray, rng: np.random.Generator
) -> tuple[Mock, np.ndarray]:
    """A sky of faint library sources at places (N, 2), made as bright as to have a given signal to noise (N,) in VIS.

    Returns the mock, and the sources' places (N, 2) to the fine sky's pixel.
    """
    library, grid = simulator.library, simulator.grid
    ratio = simulator.sky.shape[0] // grid.shape[0]
    fine = [(round(ratio * y), round(ratio * x)) for y, x in places.tolist()]
    faint = np.flatnonzero(torch.cat([library.magnitude[n].cpu() for n in library.scales]) >= FAINTEST_MAGNITUDE)
    chosen = torch.as_tensor(rng.choice(faint, len(places)))
    turns = torch.as_tensor(rng.integers(0, 8, len(places)))
    geometry = GEOMETRIES[simulator.geometries[0]]
    bands = simulator.composed(geometry)
    at = np.asarray(fine) / ratio
    vis = [band.name for band in simulator.bands].index("VIS")
    apertures = aperture_map(at[:, 1], at[:, 0], APERTURE / grid.scale, grid.shape)

    def aperture_fluxes(mock: Mock) -> np.ndarray:
        return fluxes(mock.truth[0].cpu(), apertures)[:, vis].numpy()

    def observed(gains: Tensor) -> Mock:
        sky = place(library, bands, simulator.sky, fine, chosen, gains, turns)
        return simulator.expose_skies(sky[None], geometry, seed)

    first = observed(torch.ones(len(places)))
    noise = _aperture_noise(nothing(simulator, seed).observations[vis])
    gains = snr * noise / aperture_fluxes(first)
    return simulator.admitted(observed(torch.as_tensor(gains))), at


def _aperture_noise(observation: Observation) -> float:
    """nJy, of the sky in a VIS aperture."""
    pixels = math.pi * (APERTURE / observation.frame.grid.scale) ** 2
    return math.sqrt(pixels / float(observation.ivar.median()))


def nothing(simulator: Simulator, seed: int) -> Mock:
    """Nothing, observed."""
    geometry = GEOMETRIES[simulator.geometries[0]]
    nothing = torch.zeros(1, len(simulator.composed(geometry)), *simulator.sky.shape, device=simulator.device)
    return simulator.admitted(simulator.expose_skies(nothing, geometry, seed))


def summary(empty: Sequence[Row], sown: Sequence[Row], names: Sequence[str], area: float) -> list[Row]:
    """The rows of the table: pulls of each band, false sources of either kind, completeness at each of SNRS.

    area: of one field, arcmin². value, low, high: of pulls the width, with one standard error; of false sources their
    number per arcmin², with the one-sided 95 % limit; of completeness the fraction, with its 95 % interval (Clopper &
    Pearson 1934, Biometrika 26, 404).
    """
    from scipy.stats import binomtest

    rows: list[Row] = []
    for name in names:
        pulls = np.array([row[name] for row in empty if row["kind"] == "pull"])
        width, count = float(pulls.std()), len(pulls)
        error = width / math.sqrt(2 * count)
        row: Row = {"what": f"flux_ml pulls, {name}", "value": width, "low": width - error, "high": width + error}
        rows.append(row | {"mean": float(pulls.mean()), "number": float(count)})
    total = area * sum(row["kind"] == "field" for row in empty)
    for kind, told in (("catalog", "in the catalog"), ("samples", "in half of the samples")):
        count = sum(row["kind"] == kind for row in empty)
        limit = poisson_upper_limit(count) / total
        row = {"what": f"false sources per arcmin², {told}", "value": count / total, "low": math.nan, "high": limit}
        rows.append(row | {"mean": math.nan, "number": float(count)})
    for snr in sorted(set(SNRS)):
        found = [row["found"] for row in sown if row["snr"] == snr]
        low, high = binomtest(int(sum(found)), len(found)).proportion_ci(0.95)
        row = {"what": f"completeness, S/N {snr:g}", "value": float(np.mean(found)), "low": low, "high": high}
        rows.append(row | {"mean": math.nan, "number": float(len(found))})
    return rows


def _text(rows: Sequence[Row]) -> str:
    columns = {"what": ("", "{}"), "mean": ("mean", "{:+.3f}"), "value": ("value", "{:.3f}")}
    columns |= {"low": ("low", "{:.3f}"), "high": ("high", "{:.3f}"), "number": ("number", "{:.0f}")}
    notes = (
        "Pulls: mean and width, with one standard error; false sources: 95 % upper limit; completeness: 95 % interval."
    )
    return f"{format_rows(rows, columns)}\n{notes}"


def figure(rows: Sequence[Row]) -> Figure:
    """Means and widths of the pulls, with the bounds asked of them shaded; completeness against signal to noise."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    pulls = [row for row in rows if str(row["what"]).startswith("flux_ml")]
    complete = [row for row in rows if str(row["what"]).startswith("completeness")]
    drawn = Figure(figsize=(12, 3.4), facecolor="white", layout="constrained")
    means, widths, found = drawn.subplots(1, 3)
    names = [str(row["what"]).rsplit(" ", 1)[-1] for row in pulls]
    for axes, key, ideal, title in ((means, "mean", 0.0, "Mean"), (widths, "value", 1.0, "Width")):
        axes.axhspan(ideal - 0.05, ideal + 0.05, color="#e8eef6")
        axes.axhline(ideal, color=FAINT, lw=0.9)
        share = 1.0 if key == "mean" else math.sqrt(0.5)
        bars = [share * row["value"] / math.sqrt(row["number"]) for row in pulls]
        axes.errorbar(range(len(pulls)), [row[key] for row in pulls], bars, fmt="o", color="#3b6fb6")
        axes.set_xticks(range(len(pulls)), names)
        axes.set_title(f"{title} of flux_ml pulls on empty sky", fontsize=11, color=INK)
        axes.set_xlabel("band; bars: one standard error")
    asked = sorted(set(SNRS))
    value, low, high = (np.array([row[key] for row in complete]) for key in ("value", "low", "high"))
    found.axhline(0.9, color=FAINT, lw=0.9)
    found.yaxis.set_major_formatter(PercentFormatter(1))
    found.errorbar(asked, value, [value - low, high - value], fmt="o-", color="#3b6fb6")
    found.set_xscale("log")
    found.set_xticks(asked, [f"{snr:g}" for snr in asked])
    found.minorticks_off()
    found.set_ylim(0, 1.03)
    found.set_xlabel("signal to noise in VIS, 0.5″ radius")
    false = next(row for row in rows if str(row["what"]).endswith("in the catalog"))
    found.set_title("Completeness of the catalog", fontsize=11, color=INK)
    limit = f"on empty sky fewer than {float(false['high']):.2f}\nfalse sources per arcmin² (95 %)"
    found.text(0.97, 0.06, limit, transform=found.transAxes, ha="right", fontsize=9, color=INK)
    for axes in drawn.axes:
        clean(axes)
    return drawn
