"""A library of sources: drawn once, in parallel, into shards; loaded whole into tensors.

A source is a function of (seed, its number) alone, so the library is the same whatever the number of workers or the
size of a shard, and one that grows keeps what it had. Each source is in train, validation or test by a hash of the
same two numbers: every view of a galaxy is on one side, and adding sources moves none. Galaxies that were pictured are
split by what the pictures show (simulate/images.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jointdiff.errors import InputError
from jointdiff.io.shards import read_header, read_index, read_shard, shard_record, write_index, write_shard
from jointdiff.simulate.galaxies import RECIPE, SourceSettings, draw_source
from jointdiff.simulate.images import SPLITS, ImageSet

if TYPE_CHECKING:  # a worker imports this module, and should not wait two seconds for torch
    from torch import Tensor

    from jointdiff.scene import Band


@dataclass(frozen=True)
class Library:
    """The sources of one split, by side n of their stamps.

    stamps: (N, C, n, n) float16; times scales (N,) float32, nJy per stamp pixel.
    flux: (N, C) float32, nJy in the stamp. is_star: (N,) bool. magnitude: (N,) float32, VIS, before the stamp's edge.
    pixel_scale of the stamps and psf_fwhm of their Gaussian PSF, arcsec.
    """

    bands: tuple[Band, ...]
    pixel_scale: float
    psf_fwhm: float
    stamps: dict[int, Tensor]
    scales: dict[int, Tensor]
    flux: dict[int, Tensor]
    is_star: dict[int, Tensor]
    magnitude: dict[int, Tensor]

    def __len__(self) -> int:
        return sum(map(len, self.scales.values()))

    def to(self, device) -> Library:
        """The same library on another device; no type is changed."""
        tensors = (self.stamps, self.scales, self.flux, self.is_star, self.magnitude)
        moved = [{n: tensor.to(device) for n, tensor in of_size.items()} for of_size in tensors]
        return Library(self.bands, self.pixel_scale, self.psf_fwhm, *moved)

    def fainter(self, magnitude: float) -> Library:
        """The sources that are fainter than this in VIS."""
        kept = {n: of_size >= magnitude for n, of_size in self.magnitude.items()}
        tensors = (self.stamps, self.scales, self.flux, self.is_star, self.magnitude)
        chosen = [{n: tensor[kept[n]] for n, tensor in of_size.items()} for of_size in tensors]
        return Library(self.bands, self.pixel_scale, self.psf_fwhm, *chosen)


@dataclass(frozen=True)
class ShardTask:
    """One task of a worker: the sources numbered ``first`` to ``last`` - 1 of the recipe that ``key`` stands for."""

    path: Path
    key: str
    filters: tuple[str, ...]
    settings: SourceSettings
    seed: int
    first: int
    last: int
    images: ImageSet | None = None

    def run(self) -> None:
        """Draw the sources and write the shard."""
        stamps, entries = [], []
        for number in range(self.first, self.last):
            rng = np.random.default_rng(np.random.SeedSequence((self.seed, number)))
            source = draw_source(rng, self.filters, self.settings, self.images)
            stamps.append(source.stamp)
            group = source.properties.get("group")
            split = split_of(self.seed, number) if group is None or self.images is None else self.images.split_of(group)
            entries.append({"number": number, "split": split} | source.properties)
        write_shard(self.path, self.key, stamps, entries)

    def is_done(self) -> bool:
        """Whether the shard is whole and holds these sources; one that is not is made again."""
        try:
            key, entries = read_header(self.path)
        except (FileNotFoundError, InputError):
            return False
        return key == self.key and [entry["number"] for entry in entries] == list(range(self.first, self.last))


def split_of(seed: int, number: int) -> str:
    """The split that source ``number`` of a library of this seed is in."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    rank = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in SPLITS.items():
        rank -= share
        if rank < 0:
            return name
    return name


def build_library(
    folder: str | Path,
    bands: Sequence[Band],
    settings: SourceSettings,
    count: int,
    seed: int,
    workers: int = 0,
    shard_size: int = 250,
    progress: bool = True,
    images: ImageSet | None = None,
) -> None:
    """Draw ``count`` sources into a folder of shards and an index; whole shards already there are kept.

    workers: processes; 0 for one per core. progress: show a bar. images: what galaxies are drawn from, if not models.
    Raises InputError for a folder that holds a library of other bands, settings, seed or recipe, or a larger one.
    """
    if count < 1 or not 1 <= shard_size <= 10_000:
        raise InputError(f"library of {count} in shards of {shard_size}: expected 1 or more, in shards of 1 to 10000")
    folder = Path(folder)
    recipe = {
        "bands": [{"name": band.name, "filter": band.filter} for band in bands],
        "settings": asdict(settings),
        "seed": seed,
    } | ({} if images is None else {"images": images.recipe})
    key = hashlib.sha256(json.dumps([RECIPE, recipe], sort_keys=True).encode()).hexdigest()
    filters = tuple(band.filter for band in bands)
    tasks = []
    for first in range(0, count, shard_size):
        path = folder / f"shard_{first // shard_size:05d}.safetensors"
        tasks.append(ShardTask(path, key, filters, settings, seed, first, min(first + shard_size, count), images))
    _refuse_another(folder, tasks)
    _run([task for task in tasks if not task.is_done()], workers or available_cores(), progress)
    records = [shard_record(task.path) for task in tasks]
    write_index(folder, {"version": version("jointdiff"), "key": key} | recipe | {"shards": records})


def load_library(
    folder: str | Path, split: str, bands: Sequence[Band] | None = None, max_bytes: int = 16 * 2**30
) -> Library:
    """The sources of one split (train, validation or test) in ``bands``, in that order (all, if None).

    Raises InputError for an unknown split, a band that the library lacks or saw through another filter, a missing or
    truncated shard, an empty split, or stamps of more than ``max_bytes``.
    """
    import torch

    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    folder = Path(folder)
    index = read_index(folder)
    bands, channels = _channels(folder, index, bands)
    entries = [e for record in index["shards"] for e in record["entries"] if e["split"] == split]
    sizes = sorted({entry["size"] for entry in entries})
    if not entries:
        raise InputError(f"{folder}: no source is in the {split} split: the library is too small")
    needed = sum(2 * len(channels) * entry["size"] ** 2 for entry in entries)
    if needed > max_bytes:
        raise InputError(f"{folder}: the {split} split needs {needed} bytes of memory, expected at most {max_bytes}")
    parts = {n: _Parts([], [], []) for n in sizes}
    for record in index["shards"]:
        arrays = read_shard(folder, record)
        for n in sizes:
            rows = [entry["split"] == split for entry in record["entries"] if entry["size"] == n]
            if any(rows):
                parts[n].stamps.append(arrays[f"stamps_{n}"][rows][:, channels])
                parts[n].scales.append(arrays[f"scales_{n}"][rows])
                parts[n].flux.append(arrays[f"flux_{n}"][rows][:, channels])

    def of_size(value, dtype):
        return {n: torch.tensor([value(e) for e in entries if e["size"] == n], dtype=dtype) for n in sizes}

    return Library(
        bands=bands,
        pixel_scale=index["settings"]["pixel_scale"],
        psf_fwhm=index["settings"]["psf_fwhm"],
        stamps={n: torch.from_numpy(np.concatenate(parts[n].stamps)) for n in sizes},
        scales={n: torch.from_numpy(np.concatenate(parts[n].scales)) for n in sizes},
        flux={n: torch.from_numpy(np.concatenate(parts[n].flux)) for n in sizes},
        is_star=of_size(lambda entry: entry["kind"] == "star", torch.bool),
        magnitude=of_size(lambda entry: entry["mag_VIS"], torch.float32),
    )


class _Parts(NamedTuple):
    """What the shards hold of one stamp side."""

    stamps: list[np.ndarray]
    scales: list[np.ndarray]
    flux: list[np.ndarray]


def _run(tasks: list[ShardTask], workers: int, progress: bool) -> None:
    from rich.progress import track

    def shown(results):
        return track(results, "drawing galaxies", total=len(tasks), disable=not progress)

    if not tasks:
        return
    if workers == 1:
        for task in shown(tasks):
            task.run()
        return
    # Spawned, not forked: the parent may hold torch's threads, which a fork does not survive.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(task.run) for task in tasks]
        try:
            for future in shown(as_completed(futures)):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _refuse_another(folder: Path, tasks: list[ShardTask]) -> None:
    """Raise InputError if the folder holds shards of another recipe, or more than this library has."""
    replaced = {task.path for task in tasks}
    for path in sorted(folder.glob("shard_*.safetensors")):
        try:
            key, entries = read_header(path)
        except InputError:
            if path in replaced:  # broken: it will be made again
                continue
            raise
        if key != tasks[0].key:
            raise InputError(
                f"{path}: drawn with other bands, settings or seed: use another folder, or remove this one"
            )
        if (number := entries[-1]["number"]) >= tasks[-1].last:
            raise InputError(
                f"{path}: holds source {number} of a larger library, expected at most {tasks[-1].last - 1}"
            )


def _channels(folder: Path, index: dict, bands: Sequence[Band] | None) -> tuple[tuple[Band, ...], list[int]]:
    from jointdiff.scene import Band

    held = tuple(Band(**band) for band in index["bands"])
    if bands is None:
        return held, list(range(len(held)))
    for band in bands:
        if band not in held:
            names = ", ".join(f"{b.name} ({b.filter})" for b in held)
            raise InputError(
                f"{folder}: no band {band.name} ({band.filter}): the library has {names}: "
                "use another folder, or remove this one"
            )
    return tuple(bands), [held.index(band) for band in bands]


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
