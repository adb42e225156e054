"""A field of any size, from its scene file to the same products as a small one: tile by tile, with memory for one."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from scipy.ndimage import find_objects

from jointdiff.errors import InputError
from jointdiff.evaluate.exports import write_large_picture
from jointdiff.evaluate.field import FieldJob, Treatment, chi2_text, misfit
from jointdiff.evaluate.figures import views_of
from jointdiff.forward import ForwardModel
from jointdiff.io.products import merge_catalogs, stream_reconstruction
from jointdiff.io.scene_files import Field
from jointdiff.measure.catalog import UNEXPLAINED, MeasureSettings
from jointdiff.measure.detection import Segments, detect, detection_image, typical_noise
from jointdiff.measure.peaks import joined, near_unexplained
from jointdiff.measure.unexplained import Significance, significance
from jointdiff.nuisances import modes_of, offsets
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor, Shared
from jointdiff.reconstruct.field import check_size, seen_in
from jointdiff.reconstruct.store import CUBES, REPLACED, Note, TileStore, key_of
from jointdiff.reconstruct.tiles import BLEND, CONTEXT, Tile, Tiling, View, divided, tile_size

_REACH = 24
"""Pixels beyond a tile that the filters of the detection image see: their kernels end within."""


@dataclass(frozen=True)
class Workers:
    """Processes that share the tiles: which of how many this is, its device, and how it waits for the others."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    device: torch.device | None = None

    @classmethod
    def launched(cls, patience: float) -> "Workers":
        """Those that accelerate or torchrun launched; patience: hours that one waits for another."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return cls()
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        # PartialState alone does not know of ACCELERATE_USE_CPU, and takes each process for the only one.
        patient = InitProcessGroupKwargs(timeout=timedelta(hours=patience))
        state = Accelerator(mixed_precision="no", kwargs_handlers=[patient])
        assert state.num_processes == int(os.environ["WORLD_SIZE"]), "processes that do not know of each other"
        return cls(state.process_index, state.num_processes, state.wait_for_everyone, state.device)

    @property
    def first(self) -> bool:
        """Whether this is the one that tells, measures and writes what is no tile."""
        return self.index == 0


class MosaicJob(FieldJob):
    """A field that is reconstructed in tiles of ``size`` pixels; a run that was killed goes on with those missing.

    All else as FieldJob has it. Raises InputError for a method whose tiles would show seams.
    """

    whole = False

    def __init__(
        self,
        field: Field,
        reconstructor: Reconstructor,
        count: int,
        treatment: Treatment,
        size: int = 256,
        workers: Workers | None = None,
    ):
        self._size, self._workers = size, workers or Workers()
        if (check := treatment.check) is not None or not reconstructor.seamless:
            how = "mode both" if check else f"method {reconstructor.method} (mode {reconstructor.mode or 'none'})"
            shape = " × ".join(map(str, field.grid.shape))
            raise InputError(
                f"{field.name}: {how} knows no tiles, and {shape} pixels are above those sampled whole: take method "
                f"wiener, or diffusion in mode amortized; or a larger --tile ({field.path})"
            )
        super().__init__(field, reconstructor, count, treatment)

    @property
    def _tiling(self) -> Tiling:
        return Tiling(self.padded, self._size, self._reconstructor.denoiser.network.stride)

    def _check_size(self, label: str) -> None:
        check_size(self._tiling.shape, self._count, len(self.names), label)

    def run(self, folder: Path, seed: int, provenance: Mapping[str, object]) -> Table | None:
        """Sample, measure and write into ``folder``; tells how it went; the catalog, of the first worker alone."""
        start, tiling = time.perf_counter(), self._tiling
        self._say(f"{self._describe()}, in {len(tiling)} tiles seen on {' × '.join(map(str, tiling.shape))} each")
        settings = dict(provenance) | {"samples": self._count, "align": self._align, "name": self.field.name}
        settings |= {"tile": self._size, "context": CONTEXT, "blend": BLEND, "mean": "blended"}
        settings |= {"stars": repr(self._stars), "precision": str(self._reconstructor.denoiser.network_dtype)}
        key = key_of(self.field.observations, self.field.grid, settings)
        store = TileStore(folder / "tiles", key, tiling)
        cards, stream = self._share(store, key), NoiseStream(seed, self.field.name)
        self._draw(store, stream)
        if not self._workers.first:
            return None
        seconds = time.perf_counter() - start
        catalog, chi2, found = self._survey(store, stream)
        cards |= self._unexplained(folder, found)
        catalog.meta.update({name: value for name, (value, _) in cards.items()})
        self._write(store, folder, catalog, provenance, cards)
        store.remove()
        self._tell(catalog, seconds, chi2, folder)
        return catalog

    def _say(self, text: str) -> None:
        if self._workers.first and text:
            print(text, flush=True)

    def _share(self, store: TileStore, key: str) -> dict[str, tuple[float, str]]:
        """Finds what tiles share, where it is not there; moves the observations as it says. The header's keywords."""
        denoiser = self._reconstructor.denoiser
        if self._workers.first and store.note() is None:
            _, found, shared = divided(self.padded, self._size, denoiser, self._align)
            store.write_note(Note.of(key, found), shared)
        self._workers.wait()
        note = store.note()
        assert note is not None, "nobody wrote what the tiles share"
        found = note.alignment
        if found is None:
            return {}
        self.padded = found.apply(self.padded)
        self._say(f"{self.field.name}: {found.line}" if found.line else "")
        return found.cards(self.names)

    def _draw(self, store: TileStore, stream: NoiseStream) -> None:
        """Samples the tiles that are missing, this worker's share of them; tells how long the rest will take."""
        missing, tiling = store.missing(), self._tiling
        self._workers.wait()  # nobody may finish a tile that others still count as missing
        mine = missing[self._workers.index :: self._workers.count]
        start = time.perf_counter()
        for done, tile in enumerate(mine, 1):
            shared = store.shared(tiling.view(tile).torus)
            store.write(tile, tiling.sample(self._reconstructor, tile, self._count, stream, shared))
            pace = (time.perf_counter() - start) / done
            left = timedelta(seconds=round(pace * (len(mine) - done)))
            whole = len(tiling) - len(missing) + min(done * self._workers.count, len(missing))
            self._say(f"{self.field.name}: {whole} of {len(tiling)} tiles, {pace:.1f} s each, {left} left")
        self._workers.wait()

    def _survey(self, store: TileStore, stream: NoiseStream) -> tuple[Table, str, Significance]:
        """The catalog, in pixels of the core, each source once; χ²/N of the samples; and what none of them explains."""
        segments, denoiser = self._find(store), self._reconstructor.denoiser
        boxes = find_objects(segments.labels, max_label=len(segments))
        tables, numbers, left = [], [], []
        totals = np.zeros((len(self.padded.observations), 2))
        for tile in self._tiling.tiles:
            own = _centred(segments, tile)
            part = self._part(tile, [boxes[k] for k in own])
            view = self._tiling.around(part)
            samples, mean = (store.read(cube, view.torus) for cube in ("samples", "mean"))
            shared = store.shared(view.torus)
            totals += self._misfit(tile, view, samples, shared, stream)
            seen = view.field.observations
            model = denoiser.forward_model(seen, view.field.grid)
            moved, replaced = self._offsets(seen, model, shared, stream), store.read(REPLACED, view.torus)
            draws = Draws(samples, mean, store.converged, moved, replaced)
            left.append(significance(draws, model, seen).crop(*tile.within(*view.corner)))
            if len(own):
                here, known = _crop(segments, view.torus)
                table = self._measure(view.field, draws, model, here)
                table["y"] += view.corner[0] - self.padded.corner[0]
                table["x"] += view.corner[1] - self.padded.corner[1]
                chosen = np.flatnonzero(np.isin(known, own))
                tables.append(table[chosen])
                numbers += known[chosen].tolist()
        found = joined([tile.within(0, 0) for tile in self._tiling.tiles], left, self.padded.grid.shape)
        catalog = self._joined(tables, numbers)
        catalog["flags"] |= UNEXPLAINED * near_unexplained(segments, found, self.padded.core.scale)
        return catalog, chi2_text(self.padded.observations, totals), found

    def _joined(self, tables: list[Table], numbers: list[int]) -> Table:
        """One catalog of those of all tiles, its rows by their number among the sources of the field."""
        if not tables:
            view = self._tiling.around(self._tiling.tiles[0])
            nothing = torch.zeros(self._count, len(self.names), *view.field.grid.shape)
            none = Segments(np.zeros(view.field.grid.shape, dtype=int), np.empty(0), np.empty(0))
            denoiser = self._reconstructor.denoiser
            model = denoiser.forward_model(view.field.observations, view.field.grid)
            return self._measure(view.field, Draws(nothing, nothing[0]), model, none)
        catalog = merge_catalogs(tables)[np.argsort(numbers)]
        catalog["object_id"] = np.array([f"{self.field.name}_{k + 1:05d}" for k in range(len(catalog))])
        self._place(catalog)
        return catalog

    def _find(self, store: TileStore) -> Segments:
        """The sources of the whole field, found at once on a detection image that is made tile by tile."""
        weight, shape = self.padded.weight, self.padded.grid.shape
        fwhm, scale = self._reconstructor.denoiser.target_fwhm, self.padded.core.scale
        noises = []
        for tile in self._tiling.tiles:
            scored = weight[tile.within(0, 0)]
            if scored.any():
                samples, mean = (store.read(cube, tile).numpy() for cube in ("samples", "mean"))
                noises.append(typical_noise(samples, mean, scored))
        typical = np.median(noises, axis=0)
        image, noise = np.empty(shape), np.empty(shape)
        for tile in self._tiling.tiles:
            wide = tile.grown(_REACH, shape)
            samples, mean = (store.read(c, wide).numpy() for c in ("samples", "mean"))
            there = detection_image(samples, mean, self.names, None, fwhm, scale, typical)
            for whole, part in zip((image, noise), there, strict=True):
                whole[tile.within(0, 0)] = part[tile.within(wide.rows.start, wide.columns.start)]
        return detect(image, noise, None, weight)

    def _part(self, tile: Tile, boxes: list[tuple[slice, slice]]) -> Tile:
        """A tile and all of its sources' segments and apertures."""
        reach = int(np.ceil(MeasureSettings().aperture / self.padded.core.scale)) + 2
        spans = []
        for axis, (span, side) in enumerate(zip(tile.spans, self.padded.grid.shape, strict=True)):
            low = min([span.start - reach, *(box[axis].start for box in boxes)])
            high = max([span.stop + reach, *(box[axis].stop for box in boxes)])
            spans.append(range(max(low, 0), min(high, side)))
        return Tile(tile.place, *spans)

    def _misfit(self, tile: Tile, view: View, samples: torch.Tensor, shared: Shared, stream: NoiseStream) -> np.ndarray:
        """χ² and numbers of pixels, (O, 2), of what was observed in a tile alone."""
        seen = seen_in(self.padded, view.field.grid, view.corner, tile.spans, 0).observations
        model = self._reconstructor.denoiser.forward_model(seen, view.field.grid)
        samples = samples.to(seen[0].image)
        return misfit(seen, Draws(samples, samples[0], offsets=self._offsets(seen, model, shared, stream)), model)

    def _offsets(self, seen, model: ForwardModel, shared: Shared, stream: NoiseStream) -> Sequence[torch.Tensor]:
        """What each sample takes each of some observations of a tile to be off by, as Draws has it."""
        told = shared.to(seen[0].image)
        if told.belief is None:
            return ()
        modes, _ = modes_of(model, seen, told.mean, self._reconstructor.denoiser.levels, told.belief.noise)
        (white,) = stream.normal(range(self._count), [(told.belief.count,)], told.mean)
        return offsets(told.belief.draw(white), modes)

    def _write(self, store: TileStore, folder: Path, catalog: Table, provenance, cards) -> None:
        field, denoiser = self.padded, self._reconstructor.denoiser
        rows, columns = (range(n, n + side) for n, side in zip(field.corner, field.core.shape, strict=True))
        planes: Mapping[str, Iterator[np.ndarray]] = {cube.upper(): store.planes(cube, rows, columns) for cube in CUBES}
        shape = (self._count, len(self.names), *field.core.shape)
        layout = (denoiser.bands, self.field.wcs, denoiser.target_fwhm)
        stream_reconstruction(folder / "reconstruction.fits", planes, shape, *layout, provenance, cards)
        self._export(folder, catalog, provenance)
        seen, means = [o.band.name for o in field.observations], store.planes("mean", rows, columns)
        write_large_picture(folder, self.names, seen, means, field.core.scale)
        self._draw_middle(store, folder)

    def _draw_middle(self, store: TileStore, folder: Path) -> None:
        """The figure of the tile in the middle of the field: of all of it, nothing could be seen."""
        tiling, denoiser, field = self._tiling, self._reconstructor.denoiser, self.padded
        tile = next(tile for tile in tiling.tiles if tile.holds(*(side // 2 for side in field.grid.shape)))
        view = tiling.around(tile)
        seen, cut = view.field.observations, view.field.crop
        mean, std, samples = (store.read(cube, view.torus) for cube in ("mean", "std", "samples"))
        model = denoiser.forward_model(seen, view.field.grid)
        truth = None
        if self.truth is not None:
            first = (n + m - k for n, m, k in zip(view.corner, view.field.corner, field.corner, strict=True))
            part = tuple(slice(n, n + side) for n, side in zip(first, view.field.core.shape, strict=True))
            truth = self.truth[:, *part]
        title = f"{self.field.name}, its middle tile alone ({tile.name} of {len(tiling)})"
        views = views_of(seen, model(mean[None].to(seen[0].image)))
        self._save_picture(folder, title, views, cut(mean).numpy(), cut(samples).numpy(), cut(std).numpy(), truth)


def job_of(
    field: Field, reconstructor: Reconstructor, count: int, treatment: Treatment, tile: int, workers: Workers
) -> FieldJob | None:
    """The job of a field, in tiles where it is too large for one piece; None where that is the first worker's alone.

    tile: side asked for, or 0.
    """
    size = tile_size(field.grid.shape, tile)
    if size:
        return MosaicJob(field, reconstructor, count, treatment, size, workers)
    return FieldJob(field, reconstructor, count, treatment) if workers.first else None


def _centred(segments: Segments, tile: Tile) -> np.ndarray:
    """Numbers of the sources whose centre lies in a tile; every source is in one."""
    inside = np.ones(len(segments), dtype=bool)
    for at, span in zip((segments.y, segments.x), tile.spans, strict=True):
        pixel = np.floor(at + 0.5)
        inside &= (pixel >= span.start) & (pixel < span.stop)
    return np.flatnonzero(inside)


def _crop(segments: Segments, part: Tile) -> tuple[Segments, np.ndarray]:
    """The sources with a pixel in a part of the image, in its pixels; and their numbers."""
    labels = np.zeros(part.shape, dtype=segments.labels.dtype)
    inside = part.grown(0, (segments.labels.shape[0], segments.labels.shape[1]))
    labels[inside.within(part.rows.start, part.columns.start)] = segments.labels[inside.within(0, 0)]
    found, places = np.unique(labels, return_inverse=True)
    known = found[found > 0] - 1
    renumbered = places.reshape(labels.shape) + (0 if found[0] == 0 else 1)
    return Segments(renumbered, segments.x[known] - part.columns.start, segments.y[known] - part.rows.start), known
