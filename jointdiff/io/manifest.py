"""data_manifest/*.yaml: the data sets that jointdiff knows, and the check that files on disk are theirs.

Nothing here downloads: a set says in words how to get it.
"""

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from jointdiff.errors import InputError, closest
from jointdiff.io.fits import one_line


@dataclass(frozen=True)
class DataFile:
    """A file of a data set: path below the set's folder, bytes, and sha256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One data set: what its YAML file says.

    folder: where it lies, below the folder of all data sets. size: of the whole set, in words. pixel_scale: in words,
    for several instruments. get: steps, in order. use: the command that reads it. files: those whose sums are known;
    none where the archive makes them on request, or cannot be reached without an account.
    """

    name: str
    title: str
    version: str
    page: str
    licence: str
    size: str
    bands: tuple[str, ...]
    pixel_scale: str
    folder: str
    get: tuple[str, ...]
    cite: tuple[str, ...]
    use: str
    note: str = ""
    files: tuple[DataFile, ...] = ()

    def describe(self) -> str:
        """Some lines for the console."""
        lines = [f"{self.name}: {self.title}, {self.version}; {self.size}; {self.licence}", f"  {self.page}"]
        lines += [f"  {number}. {step}" for number, step in enumerate(self.get, 1)]
        return "\n".join([*lines, f"  use: {self.use}", f"  cite: {'; '.join(self.cite)}"])


def read_manifest(folder: Path) -> tuple[DataSet, ...]:
    """The data sets of a folder of YAML files, by name. Raises InputError for none, and for mistakes."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise InputError(f"manifest: no *.yaml in {folder}/: run from the repository, or give --manifest FOLDER")
    return tuple(_read(path) for path in paths)


def verify(data: DataSet, root: Path) -> str:
    """One line on the files of a data set below ``root``: absent, or how many are whole.

    Raises InputError for a set of which some files are missing, and for one whose bytes are not those of the manifest.
    """
    folder = root / data.folder
    if not root.is_dir():
        raise InputError(f"no such folder ({root})")
    if not folder.is_dir():
        return f"{data.name}: absent ({folder})"
    if not data.files:
        return f"{data.name}: there, but its archive publishes no checksums ({folder})"
    present = [file for file in data.files if (folder / file.path).is_file()]
    if not present:
        return f"{data.name}: absent ({folder} holds none of its {len(data.files)} files)"
    if len(present) < len(data.files):
        missing = next(file.path for file in data.files if file not in present)
        raise InputError(
            f"{data.name}: {len(data.files) - len(present)} of {len(data.files)} files are missing ({folder / missing})"
        )
    for file in data.files:
        path = folder / file.path
        if (held := path.stat().st_size) != file.bytes:
            raise InputError(f"{data.name}: {held} bytes, expected {file.bytes} ({path})")
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            raise InputError(f"{data.name}: sha256 {found[:12]}…, expected {file.sha256[:12]}… ({path})")
    return f"{data.name}: {len(present)} file{'s' * (len(present) > 1)} whole ({folder})"


def _read(path: Path) -> DataSet:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"manifest: not valid YAML: {one_line(error)} ({path})") from error
    if not isinstance(content, dict):
        raise InputError(f"manifest: expected keys such as name and page, found {type(content).__name__} ({path})")
    keys = [field.name for field in fields(DataSet)]
    for key in content:
        if key not in keys:
            raise InputError(f"manifest: unknown key {key!r}; did you mean {closest(str(key), keys)!r}? ({path})")
    missing = [key for key in keys if key not in content and key not in ("note", "files")]
    if missing:
        raise InputError(f"manifest: missing {', '.join(missing)} ({path})")
    for key in ("bands", "get", "cite"):
        if not (isinstance(content[key], list) and content[key] and all(isinstance(v, str) for v in content[key])):
            raise InputError(f"manifest: {key} is {content[key]!r}, expected a list of texts ({path})")
    for key in set(keys) - {"bands", "get", "cite", "files"}:
        if not isinstance(content.get(key, ""), str):
            raise InputError(f"manifest: {key} is {content[key]!r}, expected text, in quotes ({path})")
    content["files"] = [_file(item, path) for item in content.get("files") or []]
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
    return DataSet(**values)


def _file(item, path: Path) -> DataFile:
    """Paths stay below the set's folder: a manifest may come from elsewhere."""
    whole = isinstance(item, dict) and item.keys() == {"path", "bytes", "sha256"}
    good = whole and isinstance(item["path"], str) and type(item["bytes"]) is int and isinstance(item["sha256"], str)
    if not good or not re.fullmatch("[0-9a-f]{64}", item["sha256"]):
        raise InputError(f"manifest: {item!r} is not a file of path, bytes and sha256 ({path})")
    if Path(item["path"]).is_absolute() or ".." in Path(item["path"]).parts:
        raise InputError(f"manifest: {item['path']!r} leaves the set's folder ({path})")
    return DataFile(**item)
