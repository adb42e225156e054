"""Shards: files of at most a few hundred stamps, and the index that says what is in them. FORMAT = 1.

A library is a folder of `shard_00000.safetensors` … and `index.json`. A shard holds, for each stamp side n in it,
`stamps_n` (N, C, n, n) float16, `scales_n` (N,) float32 and `flux_n` (N, C) float32: stamp × scale is nJy per pixel.
Stamps are divided by a 1024th of their peak, so that wings a millionth as bright are still normal float16 numbers.
Its header holds the recipe's key and one entry (a dict with at least `size`) a stamp, in order within each side.
Arrays and dicts only: what a source is, `jointdiff.simulate` knows.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from jointdiff.errors import InputError
from jointdiff.io.atomic import atomic_path

FORMAT = 1
INDEX = "index.json"

_PEAK = 1024.0
_MAX_HEADER = 100_000_000  # bytes; safetensors' own bound
_MAX_INDEX = 1_000_000_000  # bytes


def write_shard(path: Path, key: str, stamps: list[np.ndarray], entries: list[dict]) -> None:
    """Write stamps (C, n, n) in nJy per pixel, of any sides n, and what each is; whole or not at all."""
    from safetensors.numpy import save

    assert len(stamps) == len(entries)
    arrays = {}
    for n in sorted({stamp.shape[-1] for stamp in stamps}):
        group = np.stack([stamp for stamp in stamps if stamp.shape[-1] == n])
        scales = (np.abs(group).max((1, 2, 3)) / _PEAK).astype(np.float32)
        arrays[f"stamps_{n}"] = (group / scales[:, None, None, None]).astype(np.float16)
        arrays[f"scales_{n}"] = scales
        arrays[f"flux_{n}"] = group.sum((2, 3), dtype=float).astype(np.float32)
    entries = [entry | {"size": stamp.shape[-1]} for entry, stamp in zip(entries, stamps, strict=True)]
    # One item: safetensors writes several in any order, and equal shards would differ in bytes.
    header = {"shard": json.dumps({"format": FORMAT, "key": key, "entries": entries})}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, metadata=header))  # save_file's files only their owner may read


def read_header(path: Path) -> tuple[str, list[dict]]:
    """Key and entries of a shard, whose length has been checked.

    Raises InputError, naming the file and both lengths, for a truncated shard, and for anything else that is no shard.
    """
    held = os.path.getsize(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise InputError(f"{path}: header of {length} bytes, expected at most {_MAX_HEADER}: not a shard")
            if 8 + length > held:
                raise InputError(f"{path}: truncated: {held} bytes, expected at least {8 + length}")
            header = json.loads(file.read(length))
        shard = json.loads(header.pop("__metadata__")["shard"])
        expected = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
        form, key, entries = shard["format"], shard["key"], shard["entries"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a shard of format {FORMAT}") from error
    if form != FORMAT:
        raise InputError(f"{path}: shard format {form}, expected {FORMAT}")
    if held != expected:
        raise InputError(f"{path}: truncated or corrupt: {held} bytes, expected {expected}")
    return key, entries


def shard_record(path: Path) -> dict:
    """What the index says of a whole shard: file, bytes, sha256, entries."""
    _, entries = read_header(path)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path), "entries": entries}


def read_shard(folder: Path, record: dict) -> dict[str, np.ndarray]:
    """The arrays of a shard that the index records.

    Raises InputError for a shard that is missing, truncated, or does not hold what the index says.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / record["file"]
    _check_length(path, record)
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: corrupt: {error}") from error
    sizes = [entry["size"] for entry in record["entries"]]
    for n in set(sizes):
        stamps = arrays.get(f"stamps_{n}")
        if stamps is None or len(stamps) != sizes.count(n) or stamps.shape[2:] != (n, n):
            shape = "none" if stamps is None else stamps.shape
            raise InputError(f"{path}: stamps of side {n}: {shape}, but the index has {sizes.count(n)}")
    return arrays


def verify_library(folder: str | Path) -> int:
    """Number of sources in a library, every byte of which has been checked.

    Raises InputError naming the first file that differs from the index.
    """
    folder = Path(folder)
    shards = read_index(folder)["shards"]
    for record in shards:
        path = folder / record["file"]
        _check_length(path, record)
        if (found := _sha256(path)) != record["sha256"]:
            raise InputError(f"{path}: corrupt: sha256 {found[:12]}…, expected {record['sha256'][:12]}…")
    return sum(len(record["entries"]) for record in shards)


def write_index(folder: Path, index: dict) -> None:
    """Write a library's index: last of all, so that a library with an index is complete."""
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT} | index))


def read_index(folder: str | Path) -> dict:
    """The index of a library: format, version, key, seed, bands, settings, shards.

    Raises InputError where there is none, or none of this format.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise InputError(f"{path}: no such file: not a galaxy library, or an unfinished one")
    if (length := path.stat().st_size) > _MAX_INDEX:
        raise InputError(f"{path}: {length} bytes, expected at most {_MAX_INDEX}")
    try:
        index = json.loads(path.read_text())
        form = index["format"]
        missing = {"version", "key", "seed", "bands", "settings", "shards"} - set(index)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the index of a galaxy library") from error
    if form != FORMAT:
        raise InputError(f"{path}: library format {form}, expected {FORMAT}")
    if missing:
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}")
    return index


def _check_length(path: Path, record: dict) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file, but the index lists it")
    if (held := path.stat().st_size) != record["bytes"]:
        raise InputError(f"{path}: truncated or corrupt: {held} bytes, expected {record['bytes']}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
