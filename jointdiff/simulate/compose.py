"""Scenes composed from the library, on the device, fresh at every step.

The sky is a torus: a source that leaves the grid on one side comes back on the other, so that the periodic scene is
exactly what the forward model says it is. The composed sky has finer pixels than the scene, and holds what a scene
cannot: the aliasing of sharp sources in VIS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jointdiff.forward import gaussian_transfer
from jointdiff.scene import Band, Grid, pair_of_pairs
from jointdiff.simulate.library import Library


@dataclass(frozen=True)
class Crowding:
    """How sources are thrown on the sky.

    mean_sources: mean number in a scene that is not empty (1 + Poisson). empty: fraction of empty scenes.
    blended: probability that a source is placed beside another one, at an exponential distance of blend_scale arcsec.
    flux_scatter: dex by which a source is made brighter or fainter than its own magnitude.
    """

    mean_sources: float = 4.0
    empty: float = 0.06
    blended: float = 0.4
    blend_scale: float = 0.8
    flux_scatter: float = 0.2
    most: int = 24


def sky_grid(scene: Grid, library_scale: float) -> Grid:
    """The fine grid of the composed sky: the same torus, pixel (0, 0) on the scene's pixel (0, 0)."""
    ratio = round(scene.scale / library_scale)
    assert abs(ratio * library_scale / scene.scale - 1) < 1e-6, "the scene pixel is a multiple of the library's"
    matrix = pair_of_pairs(np.asarray(scene.matrix) / ratio)
    return Grid((scene.shape[0] * ratio, scene.shape[1] * ratio), matrix, scene.origin)


def compose(
    library: Library, bands: Sequence[Band], grid: Grid, crowding: Crowding, batch: int, generator: torch.Generator
) -> Tensor:
    """Skies (B, C, H, W) in nJy per fine pixel, at the library's PSF, in C of the library's bands.

    generator: on the CPU, so that a scene is the same on every device; the bands change no source and no place.
    """
    skies = []
    for _ in range(batch):
        positions = _positions(grid, crowding, generator)
        chosen = torch.randint(len(library), (len(positions),), generator=generator)
        gains = 10 ** (crowding.flux_scatter * torch.randn(len(positions), generator=generator))
        turns = torch.randint(8, (len(positions),), generator=generator)
        skies.append(place(library, bands, grid, positions, chosen, gains, turns))
    return torch.stack(skies)


def place(
    library: Library,
    bands: Sequence[Band],
    grid: Grid,
    positions: Sequence[tuple[int, int]],
    chosen: Tensor,
    gains: Tensor,
    turns: Tensor,
) -> Tensor:
    """One sky (C, H, W), nJy per fine pixel, of sources at given fine pixels (y, x), beyond the torus too.

    chosen: their numbers in the library, stamps in the order of their sizes. gains: factors of their fluxes. turns: 0
    to 7, flips and right angles. All (N,), on the CPU.
    """
    sizes = list(library.scales)
    device = library.stamps[sizes[0]].device
    margin = max(sizes)
    channels = torch.tensor([library.bands.index(band) for band in bands], device=device)
    starts = torch.tensor([0] + [len(library.scales[n]) for n in sizes]).cumsum(0)
    canvas = torch.zeros(len(bands), grid.shape[0] + margin, grid.shape[1] + margin, device=device)
    for position, source, gain, turn in zip(positions, chosen.tolist(), gains.tolist(), turns.tolist(), strict=True):
        group = int(torch.searchsorted(starts, source, right=True)) - 1
        size, index = sizes[group], source - int(starts[group])
        stamp = _turned(library.stamps[size][index][channels].float(), turn) * (gain * library.scales[size][index])
        row, column = ((p - size // 2) % extent for p, extent in zip(position, grid.shape, strict=True))
        canvas[:, row : row + size, column : column + size] += stamp
    return _wrapped(canvas, grid.shape)


def _positions(grid: Grid, crowding: Crowding, generator: torch.Generator) -> list[tuple[int, int]]:
    """Fine pixels of the sources of one scene."""
    empty, *_ = torch.rand(1, generator=generator).tolist()
    if empty < crowding.empty:
        return []
    mean = torch.tensor(crowding.mean_sources - 1.0)
    count = min(1 + int(torch.poisson(mean, generator=generator)), crowding.most)
    positions: list[tuple[int, int]] = []
    for _ in range(count):
        beside, which, distance, angle, y, x = torch.rand(6, dtype=torch.float64, generator=generator).tolist()
        if positions and beside < crowding.blended:
            anchor = positions[int(which * len(positions))]
            radius = -torch.log1p(torch.tensor(-distance)).item() * crowding.blend_scale / grid.scale
            turn = torch.tensor(2 * torch.pi * angle)
            step = (radius * turn.sin().item(), radius * turn.cos().item())
            positions.append((round(anchor[0] + step[0]), round(anchor[1] + step[1])))
        else:
            positions.append((int(y * grid.shape[0]), int(x * grid.shape[1])))
    return positions


def _turned(stamp: Tensor, turn: int) -> Tensor:
    """One of the eight flips and right-angle turns of a stamp."""
    stamp = torch.rot90(stamp, turn % 4, (-2, -1))
    return stamp.flip(-1) if turn >= 4 else stamp


def _wrapped(canvas: Tensor, shape: Sequence[int]) -> Tensor:
    """Folds what stands beyond the torus back onto it."""
    rows, columns = shape
    for start in range(rows, canvas.shape[-2], rows):
        part = canvas[..., start : start + rows, :]
        canvas[..., : part.shape[-2], :] += part
    canvas = canvas[..., :rows, :]
    for start in range(columns, canvas.shape[-1], columns):
        part = canvas[..., start : start + columns]
        canvas[..., : part.shape[-1]] += part
    return canvas[..., :columns]


def scene_of(sky: Tensor, sky_grid: Grid, psf_fwhm: float, scene: Grid, target_fwhm: float) -> Tensor:
    """The true scene (B, C, H, W): the sky at the target PSF, at the scene's pixel centres, nJy per scene pixel."""
    ratio = sky_grid.shape[0] // scene.shape[0]
    transfer = gaussian_transfer(sky_grid, target_fwhm) / gaussian_transfer(sky_grid, psf_fwhm)
    sharp = torch.fft.irfft2(torch.fft.rfft2(sky) * torch.as_tensor(transfer).to(sky), s=sky_grid.shape)
    return ratio**2 * sharp[..., ::ratio, ::ratio]
