"""Fields of any size, cut into tiles that are sampled one by one and meet without a seam (METHOD section 13).

A sample is one map from white noise and data to a sky. Noise and symmetries belong to pixels of the sky, amplitude and
stationary weights to the field, so that what two tiles say of one pixel differs by what either does not see alone: it
dies away within CONTEXT pixels of where the data of a tile end. What is kept of a tile is nothing nearer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.gaussian import Evidence, GaussianPosterior, likeliest_amplitude
from jointdiff.nuisances import Belief, belief_of, deepest
from jointdiff.reconstruct.align import Alignment, align_field
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, Shared
from jointdiff.reconstruct.field import PaddedField, margin_of, seen_in

TILE = 256
"""Side (pixels) of a tile, where none is asked for."""

WHOLE = 512
"""Side (pixels) of the largest square that is sampled in one piece, where no tile is asked for."""

CONTEXT = 48
"""Pixels around a tile whose data it sees."""

BLEND = 16
"""Pixels on either side of a tile's border over which Gaussian posterior means are blended."""

MOST_TOLD = 9
"""Tiles, spread over the field, whose light tells the shifts of its images, and what else is off with them."""

MOST_EVIDENCE = 64
"""Tiles, spread over the field, whose evidence tells its amplitude."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of a field's padded grid: its place among the tiles, and its pixels."""

    place: tuple[int, int]
    rows: range
    columns: range

    @property
    def name(self) -> str:
        return "_".join(f"{n:03d}" for n in self.place)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    @property
    def spans(self) -> tuple[range, range]:
        return self.rows, self.columns

    def holds(self, y: int, x: int) -> bool:
        return y in self.rows and x in self.columns

    def grown(self, reach: int, shape: tuple[int, int]) -> "Tile":
        """This tile and ``reach`` pixels around it, but none outside an image of this shape."""
        spans = (range(max(s.start - reach, 0), min(s.stop + reach, n)) for s, n in zip(self.spans, shape, strict=True))
        return Tile(self.place, *spans)

    def within(self, y: int, x: int) -> tuple[slice, slice]:
        """Its pixels in an image whose pixel (0, 0) is pixel (y, x) of the padded grid."""
        return slice(self.rows.start - y, self.rows.stop - y), slice(self.columns.start - x, self.columns.stop - x)

    def crop(self, images: Tensor, y: int, x: int) -> Tensor:
        """(…, h, w) of images (…, H, W) whose pixel (0, 0) is pixel (y, x) of the padded grid."""
        return images[..., *self.within(y, x)]


@dataclass(frozen=True)
class View:
    """A field as a tile sees it, on a torus of its own; corner: pixel (y, x) of the field's grid that is its first."""

    field: PaddedField
    corner: tuple[int, int]

    @property
    def torus(self) -> Tile:
        """All its pixels, in the field's grid and beyond."""
        rows, columns = (range(n, n + side) for n, side in zip(self.corner, self.field.grid.shape, strict=True))
        return Tile((0, 0), rows, columns)


class Tiling:
    """A field's padded grid in tiles of at most ``size`` pixels on a side, alike but for the last of a row or column.

    All are seen on tori of one shape, that sampling needs: with CONTEXT and, so that the ends of the data do not meet,
    a margin as the field itself has. Where one tile is as wide as the field there is no more to see.
    """

    def __init__(self, field: PaddedField, size: int, stride: int):
        self.field = field
        self._gap = gap = math.ceil(margin_of(field.observations, field.core.scale))
        axes = [_Axis(side, size, CONTEXT + gap, stride) for side in field.grid.shape]
        self._axes, self.shape = axes, (axes[0].length, axes[1].length)
        self.tiles = [
            Tile((i, j), rows, columns)
            for i, rows in enumerate(axes[0].spans)
            for j, columns in enumerate(axes[1].spans)
        ]

    def __len__(self) -> int:
        return len(self.tiles)

    def view(self, tile: Tile, context: int | None = None) -> View:
        """What a tile sees, with the data of so many pixels around it: CONTEXT, where it is not said."""
        y, x = (axis.start(span) for axis, span in zip(self._axes, (tile.rows, tile.columns), strict=True))
        (height, width), (full_h, full_w) = self.shape, self.field.grid.shape
        grid = self.field.grid.padded((-y, y + height - full_h), (-x, x + width - full_w))
        return View(seen_in(self.field, grid, (y, x), tile.spans, CONTEXT if context is None else context), (y, x))

    def around(self, part: Tile) -> View:
        """A part of the field and CONTEXT about it, on a torus of its own that suits no network."""
        spans, sides = [], self.field.grid.shape
        for span in part.spans:
            reach = CONTEXT + self._gap
            length = next_fast_len(len(span) + 2 * reach)
            spans.append((span.start - reach, span.start - reach + length))
        (top, bottom), (left, right) = spans
        grid = self.field.grid.padded((-top, bottom - sides[0]), (-left, right - sides[1]))
        return View(seen_in(self.field, grid, (top, left), part.spans, CONTEXT), (top, left))

    def spread(self, most: int) -> list[Tile]:
        """At most so many tiles: all of some rows and columns that are evenly spread over the field.

        As many as there are rows and columns for; where the number is the same, as far apart down as across.
        """
        rows, columns = (len(axis.spans) for axis in self._axes)
        grids = [(n, min(columns, most // n)) for n in range(1, min(rows, most) + 1)]

        def merit(grid: tuple[int, int]) -> tuple[int, int, float]:
            down, across = grid
            # One row alone says nothing of how the field changes, however many tiles it has.
            return min(down, 2) + min(across, 2), down * across, -abs(rows / down - columns / across)

        down, across = max(grids, key=merit)
        return [self.tiles[i * columns + j] for i in _evenly(rows, down) for j in _evenly(columns, across)]

    def views(self, most: int) -> Iterator[View]:
        """At most so many tiles, spread over the field, each with its own data: none count twice."""
        for tile in self.spread(most):
            yield self.view(tile, 0)

    @cached_property
    def weights(self) -> Tensor:
        """(O, 1): each observation's inverse variance per pixel of the padded grid."""
        area = self.field.grid.shape[0] * self.field.grid.shape[1]
        return torch.stack([o.information / area for o in self.field.observations])

    @torch.no_grad()
    def amplitude(self, denoiser: Denoiser) -> Tensor:
        """(1,), the one of the largest evidence, of tiles together."""
        evidences = []
        for view in self.views(MOST_EVIDENCE):
            seen, grid = view.field.observations, view.field.grid
            evidences.append(Evidence(denoiser.forward_model(seen, grid), seen, denoiser.prior.on(grid)))
        floor = torch.stack([evidence.floor for evidence in evidences]).amin(0)
        return likeliest_amplitude(lambda a: torch.stack([e(a) for e in evidences]).sum(0), floor)

    @torch.no_grad()
    def belief(self, denoiser: Denoiser, amplitude: Tensor) -> Belief | None:
        """What some tiles together say of the errors of the observations; None where there are none to be had."""
        if not denoiser.levels:
            return None
        noise = deepest(self.field.observations)
        return belief_of(
            (self._posterior(v, denoiser, amplitude) for v in self.views(MOST_TOLD)), denoiser.levels, noise
        )

    def _posterior(self, view: View, denoiser: Denoiser, amplitude: Tensor, **options) -> GaussianPosterior:
        seen, grid = view.field.observations, view.field.grid
        model = denoiser.forward_model(seen, grid)
        return GaussianPosterior(model, seen, denoiser.prior.on(grid), amplitude, **options)

    @torch.no_grad()
    def mean(self, denoiser: Denoiser, amplitude: Tensor) -> Tensor:
        """The Gaussian posterior mean (1, C, H, W) of the field, nJy per pixel, on the CPU: that of tiles, blended.

        Each is solved as a whole field's is. Conjugate gradients stop when the error is small on the whole torus, which
        leaves some at bright sources, here more and there less; the blend is one answer for all.
        """
        total = torch.zeros(1, len(denoiser.bands), *self.field.grid.shape)
        shares = torch.zeros(self.field.grid.shape)
        for tile in self.tiles:
            view = self.view(tile)
            mean = self._posterior(view, denoiser, amplitude, weights=list(self.weights)).mean.cpu()
            wide = tile.grown(BLEND, self.field.grid.shape)
            ramps = [_ramp(w, own, n) for w, own, n in zip(wide.spans, tile.spans, self.field.grid.shape, strict=True)]
            share = ramps[0][:, None] * ramps[1]
            total[..., *wide.within(0, 0)] += share * wide.crop(mean, *view.corner)
            shares[wide.within(0, 0)] += share
        return total.div_(shares)

    def shared(self, denoiser: Denoiser) -> Shared:
        """What all tiles take from the field, its mean on the padded grid, on the CPU.

        The amplitude is that of tiles of TILE, whatever these are: a field that is no larger, its margin included, has
        the same one in tiles as in one piece.
        """
        amplitude = Tiling(self.field, TILE, denoiser.network.stride).amplitude(denoiser)
        return Shared(amplitude, self.weights, self.mean(denoiser, amplitude), self.belief(denoiser, amplitude))

    def sample(self, method: Reconstructor, tile: Tile, count: int, stream: NoiseStream, shared: Shared) -> Draws:
        """The samples of a seamless method on the pixels of a tile alone. shared: with the mean on the tile's torus."""
        view = self.view(tile)
        told = shared.to(self.weights)
        draws = method.sharing(told).sample(view.field.observations, view.field.grid, count, stream)
        samples, mean = (tile.crop(images, *view.corner) for images in (draws.samples, draws.mean))
        replaced = None if draws.replaced is None else tile.crop(draws.replaced, *view.corner)
        return Draws(samples, mean, draws.converged, replaced=replaced)

    def sample_all(self, method: Reconstructor, count: int, stream: NoiseStream, shared: Shared) -> Draws:
        """The samples on the whole padded grid, in memory. shared: with the mean of the field."""
        drawn = []
        for tile in self.tiles:
            own = replace(shared, mean=padded_crop(shared.mean, self.view(tile).torus))
            drawn.append(self.sample(method, tile, count, stream, own))
        shares = [draws.replaced for draws in drawn if draws.replaced is not None]
        samples, mean = (self._joined([getattr(draws, cube) for draws in drawn]) for cube in ("samples", "mean"))
        replaced = self._joined(shares) if shares else None
        return Draws(samples, mean, all(draws.converged for draws in drawn), replaced=replaced)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """(…, H, W) on the padded grid, of what each tile has, (…, h, w)."""
        image = parts[0].new_empty(*parts[0].shape[:-2], *self.field.grid.shape)
        for tile, part in zip(self.tiles, parts, strict=True):
            image[..., *tile.within(0, 0)] = part
        return image


def divided(field: PaddedField, size: int, denoiser: Denoiser, align: bool) -> tuple[Tiling, Alignment | None, Shared]:
    """A field in tiles, its observations moved by what was found of their shifts; and what the tiles share."""
    found, stride = None, denoiser.network.stride
    if align:
        parts = [view.field for view in Tiling(field, size, stride).views(MOST_TOLD)]
        field, found = align_field(field, denoiser, parts)
    tiling = Tiling(field, size, stride)
    return tiling, found, tiling.shared(denoiser)


def tile_size(shape: tuple[int, int], asked: int) -> int:
    """Side of the tiles of a field of this shape, ``asked`` or, for 0, TILE; 0 for a field that is sampled whole."""
    whole = shape[0] * shape[1] <= WHOLE**2 if asked == 0 else max(shape) <= asked
    return 0 if whole else asked or TILE


class _Axis:
    """Rows, or columns, of a padded grid, in spans that are each seen on a torus of ``length`` pixels."""

    def __init__(self, side: int, size: int, reach: int, stride: int):
        count = math.ceil(side / size)
        step = math.ceil(side / count)
        self.spans = [range(first, min(first + step, side)) for first in range(0, side, step)]
        alone = len(self.spans) == 1
        self.length = side if alone else stride * next_fast_len(math.ceil((step + 2 * reach) / stride))
        self._before = 0 if alone else (self.length - step) // 2

    def start(self, span: range) -> int:
        """The pixel at which the torus around a span begins; negative outside the grid."""
        return span.start - self._before


def _evenly(side: int, count: int) -> list[int]:
    """So many of the numbers below ``side``, each in the middle of its share."""
    return [(2 * n + 1) * side // (2 * count) for n in range(count)]


def _ramp(wide: range, own: range, side: int) -> Tensor:
    """Shares of a tile along one axis: 1 in its middle, falling over the border to where ``wide`` ends."""
    at = torch.arange(wide.start, wide.stop)
    ends = (at - (own.start - BLEND), own.stop + BLEND - 1 - at)
    inner = [
        e if edge else torch.full_like(e, 2 * BLEND) for e, edge in zip(ends, (own.start, own.stop < side), strict=True)
    ]
    return ((torch.minimum(*inner) + 0.5) / (2 * BLEND)).clamp(0, 1)


def padded_crop(images: Tensor, tile: Tile) -> Tensor:
    """The pixels (…, h, w) of a tile that may reach beyond images (…, H, W); 0 there."""
    inside = tile.grown(0, (images.shape[-2], images.shape[-1]))
    out = images.new_zeros(*images.shape[:-2], *tile.shape)
    out[..., *inside.within(tile.rows.start, tile.columns.start)] = images[..., *inside.within(0, 0)]
    return out
