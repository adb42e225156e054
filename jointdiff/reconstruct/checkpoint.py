"""Checkpoints: a folder with model.safetensors (weights and Γ) and config.json (all else). Nothing is a pickle."""

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.io.atomic import atomic_path
from jointdiff.settings import Precision

WEIGHTS, CONFIG = "model.safetensors", "config.json"

FORMAT = 1
"""Of a checkpoint: raised whenever the same weights would mean another denoiser."""

_MAX_CONFIG = 1_000_000
"""Largest config.json that is read, bytes."""


def save_denoiser(denoiser: Denoiser, folder: str | Path) -> None:
    """Write a checkpoint folder, whole or not at all; one that is there is replaced."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{tag}") for tag in ("new", "old"))
    try:
        denoiser.save_pretrained(new)
        described = json.loads((new / CONFIG).read_text(encoding="utf-8")) | {"format": FORMAT}
        (new / CONFIG).write_text(json.dumps(described, indent=2), encoding="utf-8")
        (new / "README.md").unlink(missing_ok=True)  # the hub's template, of no use here
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def state_network_errors(errors: Sequence[float], folder: str | Path) -> None:
    """Write network_errors, found since a denoiser was saved, into the config.json of its checkpoint."""
    file = Path(folder) / CONFIG
    content = json.loads(file.read_text(encoding="utf-8")) | {"network_errors": list(errors)}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")


def network_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that the network computes in, None for float32; auto is bf16 where the device is fast at it."""
    if precision == "auto":
        fast = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else torch.cuda.is_bf16_supported()
        precision = "bf16" if fast else "no"
    return torch.bfloat16 if precision == "bf16" else None


def load_denoiser(
    folder: str | Path, device: str | torch.device | None = None, precision: Precision = "auto"
) -> Denoiser:
    """The denoiser of a checkpoint folder, as the command line samples and scores it.

    device: None takes the GPU where there is one. precision: of the network alone, "no" for float32; chosen for the
    device, so load again for another. Raises InputError for a file that is missing, truncated, of another network, or
    whose weights are not finite.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"checkpoint: no such folder ({path})")
    denoiser = _from_config(path / CONFIG)
    file = path / WEIGHTS
    if not file.is_file():
        raise InputError(f"checkpoint: no {WEIGHTS} ({path})")
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        told = f"truncated, or no safetensors: {_first_line(error)}; {file.stat().st_size} bytes found"
        raise InputError(f"checkpoint: {told} ({file})") from error
    expected = denoiser.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        wanted, found = (tuple(d[name].shape) if name in d else "none" for d in (expected, weights))
        if wanted != found:
            raise InputError(f"checkpoint: {name} is {found}, {CONFIG} says {wanted} ({file})")
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"checkpoint: {name} is not finite ({file})")
    denoiser.load_state_dict(weights)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    denoiser.network_dtype = network_dtype(precision, device)
    return denoiser.to(device).eval()


def fingerprint(folder: str | Path) -> str:
    """sha256 of the checkpoint's weights."""
    with open(Path(folder) / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_folder(given: str | None) -> Path:
    """The folder given, or the weights packaged with jointdiff. Raises InputError where there are none."""
    if given is not None:
        return Path(given)
    packaged = Path(str(files("jointdiff") / "weights"))
    if not (packaged / WEIGHTS).is_file():
        raise InputError(
            "checkpoint: no weights come with this jointdiff; give --checkpoint FOLDER (make demo: runs/demo/model)"
        )
    return packaged


def _from_config(file: Path) -> Denoiser:
    """An untrained denoiser as config.json describes it."""
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise InputError(f"checkpoint: {file.stat().st_size} bytes, at most {_MAX_CONFIG} are read ({file})")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"checkpoint: {_first_line(error)} ({file})") from error
    parameters = inspect.signature(Denoiser).parameters
    keys = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        missing = set(keys) - set(content) if isinstance(content, dict) else keys
        raise InputError(f"checkpoint: missing {', '.join(sorted(missing))} ({file})")
    if content.get("format") != FORMAT:
        raise InputError(f"checkpoint: format is {content.get('format')}, this version reads {FORMAT} ({file})")
    try:
        return Denoiser(**{key: content[key] for key in parameters if key in content})
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"checkpoint: not a denoiser: {_first_line(error)} ({file})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
