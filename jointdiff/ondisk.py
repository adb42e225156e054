"""Observations too large to be held: their pixels stay in files, and come window by window (METHOD section 13)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jointdiff.scene import Band, Frame, Observation

HELD = 2048**2
"""Pixels of the largest image that a process holds; of larger ones it reads what a tile sees."""

LAGS = 64
"""Largest lag (pixels), at least, that the spectrum of a noise holds."""

Reader = Callable[[range, range], tuple[Tensor, Tensor]]
"""From rows and columns to image and ivar, (1, h, w) each."""


@dataclass(frozen=True, kw_only=True)
class OnDisk(Observation):
    """An observation (B = 1) whose image and ivar have a shape, but no pixels: ``window`` reads some.

    read: the pixels. total, peak: sum and maximum of the inverse variances. correlation: of images of even sides,
    smaller than this one.
    """

    read: Reader = field(repr=False)
    total: float = math.nan
    peak: float = math.nan

    @classmethod
    def of(cls, band: Band, frame: Frame, read: Reader, correlation: Tensor | None = None) -> "OnDisk":
        """What ``read`` gives of a frame; its sums are still to be told."""
        hollow = torch.empty(1, *frame.grid.shape, device="meta")
        return cls(band, frame, hollow, hollow, correlation, read=read)

    @property
    def present(self) -> Tensor:
        return self._told(self.peak) > 0

    @property
    def information(self) -> Tensor:
        return self._told(self.total)

    @property
    def deepest(self) -> Tensor:
        return self._told(self.peak) / (1.0 if self.correlation is None else self.correlation[:, 0, 0])

    def _told(self, value: float) -> Tensor:
        return self.frame.psf.new_full((1,), value)

    def pixels(self, rows: range, columns: range) -> tuple[Tensor, Tensor]:
        return self.read(rows, columns)

    @property
    def noise_shape(self) -> tuple[int, int]:
        assert self.correlation is not None
        rows, columns = self.correlation.shape[-2:]
        return rows, 2 * (columns - 1)

    @property
    def large(self) -> bool:
        """Whether it has more pixels than a process holds."""
        return math.prod(self.frame.grid.shape) > HELD

    def cropped(self, rows: range, columns: range) -> "OnDisk":
        """Some of its rows and columns, still on disk."""
        height, width = self.frame.grid.shape
        grid = self.frame.grid.padded((-rows.start, rows.stop - height), (-columns.start, columns.stop - width))

        def read(y: range, x: range) -> tuple[Tensor, Tensor]:
            return self.read(_moved(y, rows.start), _moved(x, columns.start))

        return OnDisk.of(self.band, replace(self.frame, grid=grid), read, self.correlation)

    def through(self, step: Callable[[Observation], Observation], reach: int) -> "OnDisk":
        """What a step, which looks no farther than ``reach`` pixels, makes of every window; it may bin pixels."""
        height, width = self.frame.grid.shape
        sample = step(self.window(*(range(min(side, 4 * reach) // 8 * 8) for side in (height, width))))
        times = round(sample.frame.grid.scale / self.frame.grid.scale)
        assert reach % times == 0, f"{times} pixels do not divide {reach}"
        grid = replace(sample.frame.grid, shape=(height // times, width // times))

        def read(rows: range, columns: range) -> tuple[Tensor, Tensor]:
            spans = [
                range(max(times * span.start - reach, 0), min(times * span.stop + reach, side // times * times))
                for span, side in zip((rows, columns), (height, width), strict=True)
            ]
            found = step(self.window(*spans))
            return found.pixels(*(_moved(s, -(w.start // times)) for s, w in zip((rows, columns), spans, strict=True)))

        return OnDisk.of(sample.band, replace(sample.frame, grid=grid), read, sample.correlation)


def _moved(span: range, by: int) -> range:
    return range(span.start + by, span.stop + by)
