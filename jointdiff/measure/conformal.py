"""calibration.json beside the weights: factors for the stated errors, and what both modes may differ by.

The factors are fitted on simulated scenes that neither training nor tests see (evaluate/conformal.py); here they are
read, looked up and applied to catalogs. Raw errors stay beside the scaled ones.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.table import Column, Table

from jointdiff.errors import InputError
from jointdiff.io.atomic import atomic_path
from jointdiff.measure.modes import ModeCheck
from jointdiff.reconstruct.checkpoint import fingerprint

FILE = "calibration.json"
FORMAT = 1

_MAX_SIZE = 1_000_000
"""Largest calibration.json that is read, bytes."""


class Quantity(NamedTuple):
    """A column with an error to scale: its name, its error's, that of the raw error, and of the flux that bins it."""

    column: str
    error: str
    raw: str
    light: str


def quantities(names: Sequence[str]) -> Iterator[Quantity]:
    """All columns whose errors are scaled, of a catalog in these bands; shapes go by the significance of VIS."""
    for kind in ("flux", "aper_flux", "gauss_flux"):
        for name in names:
            column = f"{kind}_{name}"
            yield Quantity(column, f"{kind}_err_{name}", f"{kind}_err_raw_{name}", column)
    light = f"aper_flux_{'VIS' if 'VIS' in names else names[0]}"
    for column in ("r50", "e1", "e2"):
        yield Quantity(column, f"{column}_err", f"{column}_err_raw", light)


def significance(table: Table, names: Sequence[str], column: str) -> np.ndarray:
    """Observed signal to noise (K,) that a column is binned by: a flux of the catalog over its own raw error."""
    known = {q.column: q for q in quantities(names)}
    light = known[known[column].light]
    return np.asarray(table[light.column]) / np.asarray(table[light.raw])


@dataclass(frozen=True)
class ErrorScales:
    """Factors of stated errors, by column and bin of observed signal to noise.

    edges: between the E + 1 bins, the first and last of which are open. scales, sources: column → factors, and numbers
    of sources that they are fitted on, in each bin. level: of the intervals that the factors make true. scenes,
    samples: simulated scenes they are fitted on, and posterior samples of each.
    """

    edges: tuple[float, ...]
    scales: Mapping[str, tuple[float, ...]]
    sources: Mapping[str, tuple[int, ...]]
    level: float
    scenes: int
    samples: int

    def of(self, column: str, snr: np.ndarray) -> np.ndarray:
        """The factor of each error of a column, for sources of this observed signal to noise."""
        return np.asarray(self.scales[column])[np.digitize(snr, self.edges)]


@dataclass(frozen=True)
class Calibration:
    """What was measured of one checkpoint's errors.

    weights: sha256 of the weights it belongs to. mode, evaluations: how they sampled. errors, modes: None if not
    fitted. network_errors: that the samples allowed for (Denoiser.network_errors); None where nobody measured them.
    """

    weights: str
    mode: str
    evaluations: int
    seed: int
    errors: ErrorScales | None = None
    modes: ModeCheck | None = None
    network_errors: tuple[float, ...] | None = None

    def suits(self, mode: str | None, evaluations: int | None, network_errors: Sequence[float]) -> bool:
        """Whether it is of samples drawn so."""
        return (self.mode, self.evaluations, self.network_errors or ()) == (mode, evaluations, tuple(network_errors))

    @property
    def drawn(self) -> str:
        """How its samples were, in words."""
        return drawn_by(self.evaluations, self.network_errors or ())

    @property
    def text(self) -> str:
        """The file's content."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1)

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def write(self, folder: str | Path) -> Path:
        """Write calibration.json into a checkpoint folder; returns its path."""
        path = Path(folder) / FILE
        with atomic_path(path) as temporary:
            temporary.write_text(self.text, encoding="utf-8")
        return path


def drawn_by(evaluations: int | None, network_errors: Sequence[float]) -> str:
    """How samples are drawn, in words."""
    errors = f"network errors {' '.join(f'{error:g}' for error in network_errors)}"
    return f"{evaluations} evaluations" + (f" and {errors}" if network_errors else "")


def read_calibration(folder: str | Path) -> Calibration | None:
    """The calibration of a checkpoint folder, None where it has none.

    Raises InputError for a file that is broken, of another format, or of other weights.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_SIZE:
            raise ValueError(f"{path.stat().st_size} bytes, at most {_MAX_SIZE} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"format is {found}, this version reads {FORMAT}")
        errors, modes = content.pop("errors"), content.pop("modes")
        modes = modes and ModeCheck(**modes | {"samples": tuple(modes["samples"])})
        if content.get("network_errors") is not None:
            content["network_errors"] = tuple(map(float, content["network_errors"]))
        calibration = Calibration(**content, errors=errors and _scales(errors), modes=modes)
        if modes and not 0 < modes.threshold < math.inf:
            raise ValueError(f"modes.threshold is {modes.threshold}, expected more than 0")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise InputError(f"calibration: {told} ({path})") from error
    if calibration.weights != fingerprint(folder):
        told = (
            f"belongs to weights {str(calibration.weights)[:12]}…, not to those beside it; remove it, or evaluate again"
        )
        raise InputError(f"calibration: {told} ({path})")
    return calibration


def _scales(content: dict) -> ErrorScales:
    edges = tuple(map(float, content["edges"]))
    if not edges or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"errors.edges are {list(edges)}, expected to rise")
    for column, values in content["scales"].items():
        if len(values) != len(edges) + 1 or not all(0 < value < math.inf for value in values):
            raise ValueError(f"errors.scales of {column} are {values}, expected {len(edges) + 1} positive numbers")
    tables = {key: {c: tuple(v) for c, v in content[key].items()} for key in ("scales", "sources")}
    return ErrorScales(**content | tables | {"edges": edges})


def scale_errors(table: Table, names: Sequence[str], calibration: Calibration | None) -> None:
    """Multiply a catalog's errors and covariances by their factors, in place; the raw ones get columns beside them.

    Without a calibration of errors both are the same. The header says which (ERRSCALE), and of which file (CALSHA).
    mag_err goes with flux_err. Errors of gauss_flux stay as sampled, and their description says so, where an earlier
    version fitted no factors of them. Raises InputError for a calibration of other bands.
    """
    every = list(quantities(names))
    for _, error, raw, _ in every:
        unscaled = table[error]
        text = f"{unscaled.description}, as sampled"
        behind = table.colnames.index(error) + 1
        table.add_column(Column(unscaled, description=text, meta=unscaled.meta), behind, raw)
    errors = calibration.errors if calibration else None
    table.meta["ERRSCALE"] = "conformal" if errors else "none"
    if calibration is None or errors is None:
        return
    table.meta.update(ERRLEVEL=errors.level, CALSHA=calibration.sha256)
    factors = {}
    for column, error, *_ in every:
        if column not in errors.scales and column.startswith("gauss_flux_"):
            table[error].description += ", as sampled: calibration.json has no factors of it"
            continue
        if column not in errors.scales:
            raise InputError(f"calibration: no {column}, which the catalog has")
        factors[column] = errors.of(column, significance(table, names, column))
        table[error] *= factors[column]
    for name in names:
        table[f"mag_err_{name}"] *= factors[f"flux_{name}"]
    scales = np.stack([factors[f"flux_{name}"] for name in names], 1)
    table["flux_cov"] *= scales[:, :, None] * scales[:, None, :]
