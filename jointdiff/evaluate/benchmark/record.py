"""What is kept of one method on one lot of scenes: small arrays in one file, so that a killed benchmark goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from jointdiff.errors import InputError
from jointdiff.evaluate.sources import Measured, Places
from jointdiff.io.atomic import atomic_path
from jointdiff.measure.detection import Segments


@dataclass(frozen=True)
class Cost:
    """Of one scene's samples.

    seconds: of all cores together. wall: on the clock. evaluations: of the network, per sample. memory: MiB that the
    process came to hold beyond what it held before the lot's first scene.
    """

    seconds: float
    wall: float
    evaluations: float
    memory: float


@dataclass(frozen=True)
class Record:
    """One method on one scene.

    r50: (K,), arcsec, as the method has it: the mean over samples or, of one estimate of the sky, that of the estimate.
    places: of the K sources. truth, measured: what they are, and what the method says. spectra: (3, C, k) as
    examine.spectra has them. pictures: (3, C, H, W), of a scene that is shown: the mean, a sample and the truth.
    """

    scene: str
    places: Places
    truth: Measured
    measured: Measured
    r50: np.ndarray
    spectra: np.ndarray
    cost: Cost
    pictures: np.ndarray | None = None


_PARTS = tuple(field.name for field in fields(Measured))
_COSTS = tuple(field.name for field in fields(Cost))


def write_records(path: Path, key: str, records: Sequence[Record]) -> None:
    """All scenes of a lot; whole or not at all. key: what they depend on."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    for number, record in enumerate(records):
        places = record.places
        named = {"labels": places.segments.labels.astype(np.int32), "x": places.segments.x, "y": places.segments.y}
        named |= {"sizes": places.sizes, "edge": places.edge, "r50": record.r50, "spectra": record.spectra}
        named |= {f"truth.{part}": getattr(record.truth, part) for part in _PARTS}
        named |= {f"measured.{part}": getattr(record.measured, part) for part in _PARTS}
        named["cost"] = np.array([getattr(record.cost, name) for name in _COSTS])
        if record.pictures is not None:
            named["pictures"] = record.pictures.astype(np.float32)
        arrays |= {f"{number}.{name}": np.ascontiguousarray(array) for name, array in named.items()}
    head = {"key": key, "scenes": json.dumps([record.scene for record in records])}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, head)


def read_records(path: Path, key: str) -> list[Record] | None:
    """The records of a file; None where there is none of this key. Raises InputError for a broken one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            head = file.metadata() or {}
            if head.get("key") != key:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not the records of a benchmark; remove it") from error
    return [_record(scene, f"{number}.", arrays) for number, scene in enumerate(json.loads(head["scenes"]))]


def _record(scene: str, prefix: str, arrays: dict[str, np.ndarray]) -> Record:
    def measured(name: str) -> Measured:
        return Measured(**{part: arrays[f"{prefix}{name}.{part}"] for part in _PARTS})

    names = ("labels", "x", "y", "sizes", "edge", "r50", "spectra")
    labels, x, y, sizes, edge, r50, spectra = (arrays[f"{prefix}{name}"] for name in names)
    places, cost = Places(Segments(labels, x, y), sizes, edge), Cost(*map(float, arrays[f"{prefix}cost"]))
    told = measured("truth"), measured("measured")
    return Record(scene, places, *told, r50, spectra, cost, arrays.get(f"{prefix}pictures"))


def has_records(path: Path, key: str) -> bool:
    """Whether a file holds records of this key: its head alone is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("key") == key
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not the records of a benchmark; remove it") from error
