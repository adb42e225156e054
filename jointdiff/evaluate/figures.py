"""One scene at a glance.

matplotlib's Figure alone, no pyplot: nothing global.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from jointdiff.io.atomic import atomic_path
from jointdiff.scene import Observation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8a8a8a"
_RGB = ("y", "z", "i", "r", "VIS", "g", "u")
"""Bands from red to blue."""
_BALANCE = {"y": 0.65, "z": 0.7, "i": 0.8, "r": 1.0, "g": 1.5, "u": 2.0}
"""Factors that make a galaxy of average colour white (f_nu rises to the red)."""

_DARK = 10
"""Typical noise of a colour picture's band goes that often into its stretch."""


@dataclass(frozen=True)
class View:
    """One observation as drawn: image (h, w), nJy per pixel of ``scale`` arcsec; residual (h, w) in units of sigma."""

    band: str
    image: np.ndarray
    scale: float
    residual: np.ndarray | None = None


def views_of(observations: Sequence[Observation], predicted: Sequence[Tensor], scene: int = 0) -> list[View]:
    """Views of one scene of a batch: observations against the model's images (B, h, w) of the posterior mean.

    Masked pixels are NaN, drawn grey; an observation without any pixel is left out, and so marked as not observed.
    """
    views = []
    for observation, model in zip(observations, predicted, strict=True):
        ivar = observation.ivar[scene].cpu().numpy()
        if ivar.any():
            image = np.where(ivar > 0, observation.image[scene].cpu().numpy(), np.nan)
            residual = (image - model[scene].cpu().numpy()) * np.sqrt(ivar)
            views.append(View(observation.band.name, image, observation.frame.grid.scale, residual))
    return views


def scene_figure(
    views: Sequence[View],
    names: Sequence[str],
    mean: np.ndarray,
    samples: np.ndarray,
    std: np.ndarray,
    truth: np.ndarray | None = None,
    scale: float = 0.1,
    title: str = "",
) -> Figure:
    """One scene: colour pictures above; below, for each band, the input, the posterior mean, its std and the residual.

    mean, std, truth: (C, H, W), nJy per pixel of ``scale`` arcsec; samples: (S, C, H, W), two of them are drawn. names:
    the C bands'. Without a truth (real data) its panel is left out; a band that no view has is marked as not observed.
    """
    from matplotlib.figure import Figure

    pictures = colour_panels(views, names, mean, samples, truth, scale)
    columns = max(len(names), 2)
    width = 2.0 * columns + 1.2
    top = min((width - 0.4) / len(pictures), 4.2)
    figure = Figure(figsize=(width, top + 8.9), facecolor="white")
    upper, lower = figure.subfigures(2, 1, height_ratios=[top + 0.55, 8.35], squeeze=False)[:, 0]
    left = (1 - len(pictures) * top / width) / 2
    grid = upper.add_gridspec(
        1, len(pictures), left=left, right=1 - left, wspace=0.04, top=1 - 0.5 / (top + 0.55), bottom=0.02
    )
    for i, (label, picture, pixel) in enumerate(pictures):
        axes = upper.add_subplot(grid[i])
        _show(axes, picture, pixel)
        axes.set_title(label, fontsize=11, color=INK)
        if i == 0:
            _scale_bar(axes, picture.shape[1] * pixel)
    if title:
        upper.suptitle(title, fontsize=13, color=INK, y=0.985)
    _band_rows(lower, views, names, mean / scale**2, std / scale**2, scale)
    return figure


def colour_panels(
    views: Sequence[View],
    names: Sequence[str],
    mean: np.ndarray,
    samples: np.ndarray,
    truth: np.ndarray | None,
    scale: float,
) -> list[tuple[str, np.ndarray, float]]:
    """(label, RGB image (H, W, 3), pixel scale), all in one Lupton et al. (2004) stretch of surface brightness.

    i, r, g make red, green, blue; where one was not observed, the reddest, middle and bluest band that were.
    """
    seen = {v.band: v for v in views}
    chosen = rgb_bands([name for name in names if name in seen] or names)
    stretch = _stretch(names, mean, scale)
    panels = []
    if all(b in seen for b in chosen) and len({seen[b].image.shape for b in chosen}) == 1:
        pixel = seen[chosen[0]].scale
        observed = np.stack([np.nan_to_num(seen[b].image) for b in chosen]) / pixel**2
        panels.append((f"Observed ({', '.join(chosen)})", _lupton(observed, chosen, stretch), pixel))
    images = ([("Truth", truth)] if truth is not None else []) + [("Posterior mean", mean)]
    images += [(f"Sample {i + 1}", sample) for i, sample in enumerate(samples[:2])]
    for label, image in images:
        bands = image[[list(names).index(b) for b in chosen]] / scale**2
        panels.append((label, _lupton(bands, chosen, stretch), scale))
    return panels


def colour_picture(
    names: Sequence[str], chosen: Sequence[str], image: np.ndarray, scale: float, zoom: int = 1
) -> np.ndarray:
    """RGB bytes (zoom · H, zoom · W, 3) of an image (C, H, W), nJy per pixel of ``scale`` arcsec, in three bands.

    Their stretch is wide enough for the noisiest of the three to stay dark: this picture is to find sources in, that of
    ``scene_figure`` to show what is not known. ``zoom`` repeats pixels.
    """
    bands = image[[list(names).index(b) for b in chosen]] / scale**2
    noise = max(_BALANCE.get(b, 1.0) * float(np.median(np.abs(plane))) for b, plane in zip(chosen, bands, strict=True))
    stretch = max(_stretch(names, image, scale), _DARK * noise)
    return _lupton(bands, chosen, stretch).repeat(zoom, 0).repeat(zoom, 1)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write RGB bytes (H, W, 3) as PNG, first row at the bottom as in FITS; whole or not at all."""
    from matplotlib.image import imsave

    with atomic_path(path) as temporary:
        imsave(temporary, picture, origin="lower", format="png")


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write the figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def pixels(figure: Figure, dpi: int = 80) -> np.ndarray:
    """The figure as an image (H, W, 3) of bytes, for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def rgb_bands(names: Sequence[str]) -> tuple[str, str, str]:
    """Three bands from red to blue; VIS, the sharpest and widest, only for want of others."""
    if all(b in names for b in "irg"):
        return "i", "r", "g"
    ground = [name for name in names if name != "VIS"]
    order = sorted(ground if len(ground) > 2 else names, key=lambda n: _RGB.index(n) if n in _RGB else len(_RGB))
    return order[0], order[len(order) // 2], order[-1]


def _stretch(names: Sequence[str], mean: np.ndarray, scale: float) -> float:
    """Surface brightness (nJy arcsec⁻²) at which a picture of a mean (C, H, W) turns from linear to logarithmic."""
    # VIS is the sharpest and deepest: the least sure band must not set the stretch.
    light = (mean[list(names).index("VIS")] if "VIS" in names else mean.mean(0)) / scale**2
    return max(float(np.quantile(light, 0.99)) / 3, 4 * float(np.median(np.abs(light))), 1e-9)


def _lupton(light: np.ndarray, chosen: Sequence[str], stretch: float) -> np.ndarray:
    from astropy.visualization import make_lupton_rgb

    red, green, blue = (_BALANCE.get(b, 1.0) * plane for b, plane in zip(chosen, light, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # a black pixel has no colour
        return make_lupton_rgb(red, green, blue, minimum=0, stretch=stretch, Q=6)


def _band_rows(figure, views: Sequence[View], names: Sequence[str], mean: np.ndarray, std: np.ndarray, scale: float):
    """Four rows of maps with a colour bar each; fluxes as surface brightness, so that pixel sizes do not matter."""
    from matplotlib.colors import AsinhNorm, LogNorm, Normalize

    seen = {v.band: v for v in views}
    noise = max(float(np.median(std, axis=(1, 2)).min()), 1e-9)  # of the surest band
    peak = max(float(np.median(np.quantile(mean, 0.999, axis=(1, 2)))), 10 * noise)
    light = AsinhNorm(linear_width=2 * noise, vmin=-4 * noise, vmax=peak)
    low, high = (max(float(q), 1e-9) for q in np.quantile(std, [0.001, 0.999]))
    spread = LogNorm(low, max(high, 2 * low))
    observed = {name: (v.image / v.scale**2, v.scale) for name, v in seen.items()}
    residuals = {name: (v.residual, v.scale) for name, v in seen.items() if v.residual is not None}
    means = {name: (image, scale) for name, image in zip(names, mean, strict=True)}
    spreads = {name: (image, scale) for name, image in zip(names, std, strict=True)}
    brightness = "nJy arcsec$^{-2}$"
    rows = (
        ("Observed", observed, "magma", light, brightness),
        ("Posterior mean", means, "magma", light, brightness),
        ("Posterior std", spreads, "viridis", spread, brightness),
        ("Residual", residuals, "RdBu_r", Normalize(-5, 5), r"(data - model) / $\sigma$"),
    )
    ratios = [*[1] * len(names), 0.06]
    edges = {"left": 0.05, "right": 0.92, "top": 0.965, "bottom": 0.015, "wspace": 0.05, "hspace": 0.06}
    grid = figure.add_gridspec(len(rows), len(names) + 1, width_ratios=ratios, **edges)
    for row, (label, images, cmap, norm, unit) in enumerate(rows):
        drawn = None
        for band, name in enumerate(names):
            axes = figure.add_subplot(grid[row, band])
            if name in images:
                drawn = _show(axes, *images[name], cmap=cmap, norm=norm)
            else:
                _blank(axes, "" if name in seen else "not observed")
            if row == 0:
                axes.set_title(name, fontsize=11, color=INK)
            if band == 0:
                axes.set_ylabel(label, fontsize=11, color=INK)
        if drawn is not None:
            bar = figure.colorbar(drawn, cax=figure.add_subplot(grid[row, -1]))
            if norm is light:
                ticks = _asinh_ticks(2 * noise, peak)
                bar.set_ticks(ticks, labels=[_decades(tick) for tick in ticks])
                bar.minorticks_off()
            bar.set_label(unit, fontsize=9, color=INK)
            bar.ax.tick_params(labelsize=8)
            bar.outline.set_visible(False)


def _asinh_ticks(linear_width: float, largest: float) -> list[float]:
    """Zero and the decades that an asinh scale sets well apart."""
    first = int(np.ceil(np.log10(linear_width)))
    return [0.0, *(10.0**n for n in range(first, int(np.floor(np.log10(max(largest, linear_width)))) + 1))]


def _decades(value: float, _position=None) -> str:
    return "0" if value == 0 else f"$10^{{{round(np.log10(value))}}}$"


def _show(axes: Axes, image: np.ndarray, scale: float, **style):
    """Draw an image in arcsec about its centre, y upwards; masked pixels stay grey."""
    height, width = image.shape[0] * scale / 2, image.shape[1] * scale / 2
    drawn = axes.imshow(
        image, origin="lower", extent=(-width, width, -height, height), interpolation="nearest", **style
    )
    axes.set_facecolor("#d0d0d0")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def _blank(axes: Axes, text: str) -> None:
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="#f2f2f2")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _scale_bar(axes: Axes, extent: float) -> None:
    """A white bar of a round length near a fifth of the picture (arcsec)."""
    length = min((0.5, 1, 2, 5, 10, 20, 60), key=lambda n: abs(n - extent / 5))
    left, bottom = axes.get_xlim()[0] + 0.06 * extent, axes.get_ylim()[0] + 0.06 * extent
    axes.plot([left, left + length], [bottom, bottom], color="white", lw=2.2, solid_capstyle="butt")
    axes.text(left + length / 2, bottom + 0.03 * extent, f"{length:g}″", color="white", ha="center", fontsize=10)


def clean(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
