"""A sampled field on disk: a file for each finished tile, whole or absent, and the field read back by parts.

A tile's file names what its numbers depend on: a run that was killed goes on where it was, and another run's tiles are
drawn again.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jointdiff.io.atomic import atomic_path
from jointdiff.nuisances import Belief
from jointdiff.package import code_digest
from jointdiff.reconstruct.align import Alignment, Shifts
from jointdiff.reconstruct.base import Draws, Shared
from jointdiff.reconstruct.tiles import Tile, Tiling
from jointdiff.scene import Grid, Observation

CUBES = ("mean", "std", "samples")
"""What a field is published as: (C, H, W) twice, and (S, C, H, W)."""

REPLACED = "replaced"
"""What is kept beside it, (H, W): as Draws has it, 0 where nobody looked."""

FORMAT = "2"

_SHARED = "shared"
_STRIP = 512


@dataclass(frozen=True)
class Note:
    """The shifts of a field's observations (y, x; arcsec) with errors, empty where nothing could be compared.

    key: of the run.
    """

    key: str
    reference: str = ""
    bands: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    shifts: tuple[tuple[float, float], ...] = ()
    errors: tuple[tuple[float, float], ...] = ()

    @classmethod
    def of(cls, key: str, found: Alignment | None) -> "Note":
        if found is None:
            return cls(key)
        shifts, errors = (tuple((y, x) for y, x in t[0].tolist()) for t in (found.shifts.value, found.shifts.error))
        return cls(key, found.reference, found.bands, found.numbers, shifts, errors)

    @property
    def alignment(self) -> Alignment | None:
        """What was found of the shifts; None where nothing could be compared."""
        if not self.bands:
            return None
        shifts = Shifts(*(torch.tensor(pairs, dtype=torch.float64)[None] for pairs in (self.shifts, self.errors)))
        return Alignment(self.reference, self.bands, shifts, self.numbers)


class TileStore:
    """The samples of a field on its padded grid, nJy per pixel: files of tiles in a folder, of one key (key_of)."""

    def __init__(self, folder: Path, key: str, tiling: Tiling):
        self._folder, self._key, self._tiling = folder, key, tiling

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _ours(self, name: str) -> bool:
        """Whether a file is there, whole and of this key."""
        try:
            with safe_open(self._path(name), "pt") as file:
                return (file.metadata() or {}).get("key") == self._key
        except (OSError, SafetensorError):
            return False

    def _save(self, name: str, tensors: dict[str, Tensor], **words: str) -> None:
        with atomic_path(self._path(name)) as temporary:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, temporary, words | {"key": self._key}
            )

    def missing(self) -> list[Tile]:
        """Tiles that are still to be drawn."""
        return [tile for tile in self._tiling.tiles if not self._ours(tile.name)]

    def write(self, tile: Tile, draws: Draws) -> None:
        """Keep what was drawn of a tile, as float32."""
        samples = draws.samples.cpu().float()
        replaced = torch.zeros(tile.shape) if draws.replaced is None else draws.replaced.cpu().float()
        cubes = {"mean": draws.mean.cpu().float(), "std": samples.std(0), "samples": samples, REPLACED: replaced}
        self._save(tile.name, cubes, converged=str(draws.converged))

    def note(self) -> Note | None:
        """What was written for all tiles; None where nothing, or something of another run, was."""
        path = self._folder / "field.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if content.get("key") != self._key or not self._ours(_SHARED):
            return None
        pairs = {name: tuple(map(tuple, content[name])) for name in ("shifts", "errors")}
        return Note(**content | pairs | {name: tuple(content[name]) for name in ("bands", "numbers")})

    def write_note(self, note: Note, shared: Shared) -> None:
        """Keep what all tiles share; shared: with the mean on the padded grid."""
        tensors = {name: getattr(shared, name) for name in ("amplitude", "weights", "mean")}
        if shared.belief is not None:
            tensors |= {f"belief.{name}": tensor for name, tensor in vars(shared.belief).items()}
        self._save(_SHARED, {name: tensor.cpu() for name, tensor in tensors.items()})
        with atomic_path(self._folder / "field.json") as temporary:
            temporary.write_text(json.dumps(asdict(note)), encoding="utf-8")

    def shared(self, part: Tile) -> Shared:
        """What the tiles share, its mean on a part of the padded grid and 0 beyond it; on the CPU."""
        with safe_open(self._path(_SHARED), "pt") as file:
            told = {name: file.get_tensor(name) for name in file.keys() if name != "mean"}  # noqa: SIM118
            there = file.get_slice("mean")
            lead, (height, width) = there.get_shape()[:-2], there.get_shape()[-2:]
            inside = part.grown(0, (height, width))
            mean = torch.zeros(*lead, *part.shape)
            mean[..., *inside.within(part.rows.start, part.columns.start)] = there[..., *inside.within(0, 0)]
        belief = {name.removeprefix("belief."): told.pop(name) for name in list(told) if name.startswith("belief.")}
        return Shared(mean=mean, belief=Belief(**belief) if belief else None, **told)

    @property
    def converged(self) -> bool:
        """As Draws has it, of all tiles."""
        for tile in self._tiling.tiles:
            with safe_open(self._path(tile.name), "pt") as file:
                if file.metadata()["converged"] != "True":
                    return False
        return True

    def read(self, cube: str, part: Tile) -> Tensor:
        """One of CUBES, or REPLACED, on a part of the padded grid, (…, h, w), on the CPU; 0 beyond the grid."""
        out: Tensor | None = None
        for tile in self._tiling.tiles:
            rows, columns = (
                range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(tile.spans, part.spans, strict=True)
            )
            if not (rows and columns):
                continue
            met = Tile(tile.place, rows, columns)
            with safe_open(self._path(tile.name), "pt") as file:
                there = file.get_slice(cube)
                if out is None:
                    out = torch.zeros(*there.get_shape()[:-2], *part.shape)
                inside = met.within(tile.rows.start, tile.columns.start)
                out[..., *met.within(part.rows.start, part.columns.start)] = there[..., inside[0], inside[1]]
        assert out is not None, "a part outside the field"
        return out

    def planes(self, cube: str, rows: range, columns: range) -> Iterator[np.ndarray]:
        """The planes (h, w) of a cube on so many rows and columns, in the order of a FITS file, one at a time."""
        cut = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        files = [safe_open(self._path(tile.name), "pt").__enter__() for tile in self._tiling.tiles]
        slices = [file.get_slice(cube) for file in files]
        lead = slices[0].get_shape()[:-2]
        plane = np.empty(self._tiling.field.grid.shape, np.float32)
        for index in np.ndindex(*lead):
            for tile, there in zip(self._tiling.tiles, slices, strict=True):
                plane[tile.within(0, 0)] = there[*(slice(i, i + 1) for i in index)].reshape(tile.shape).numpy()
            yield plane[cut]

    def remove(self) -> None:
        """Delete the tiles and the folder, if nothing else is in it."""
        for name in [_SHARED, *(tile.name for tile in self._tiling.tiles)]:
            self._path(name).unlink(missing_ok=True)
        (self._folder / "field.json").unlink(missing_ok=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def key_of(observations: Sequence[Observation], grid: Grid, settings: dict[str, object]) -> str:
    """sha256 of all that samples depend on: code, observations as they were served, grid, and settings by name."""
    digest = hashlib.sha256(json.dumps([FORMAT, code_digest(), repr(grid), settings], sort_keys=True).encode())
    for o in observations:
        digest.update(repr((o.band, o.frame.grid, o.frame.psf_scale)).encode())
        height, width = o.frame.grid.shape
        strips = (o.pixels(range(top, min(top + _STRIP, height)), range(width)) for top in range(0, height, _STRIP))
        for tensor in itertools.chain((o.frame.psf, o.frame.shift, o.correlation), *strips):
            digest.update(b"none" if tensor is None else np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()
