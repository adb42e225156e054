"""scene.yaml: the observations of one field, read from FITS files and written as them (METHOD section 9, format 1)."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from jointdiff.correlation import correlation_function
from jointdiff.errors import InputError, closest
from jointdiff.io.atomic import atomic_path
from jointdiff.io.fits import one_line, write_fits
from jointdiff.io.observations import NOISE, Entry, Exposure, place_on_sky, read_exposure
from jointdiff.io.wcs import finer, tangent_wcs
from jointdiff.scene import Band, Grid, Observation
from jointdiff.survey import BANDS, FILTERS

FORMAT = 1

_FIELD_KEYS = ("name", "reference", "observations")
_ENTRY_KEYS = ("band", "image", *NOISE, "mask", "noise", "noise_measured", "psf", "filter", "zeropoint", "note")

MAX_LAG = 15
"""Largest lag of correlated noise that is written, pixels."""

_RESERVED = ("catalog.fits", "catalog.ecsv", "catalog.reg", "reconstruct.yaml")
"""Files that a reconstruction writes beside its scenes' folders, so no scene may be named like one."""

_MAX_BYTES = 1_000_000
"""Largest scene.yaml that is read: a real one has under 2,000 bytes."""

_DEFAULT_FILTERS = {"VIS": "VIS"}


@dataclass(frozen=True, eq=False)
class Field:
    """One field as it was observed.

    grid: the scored core: the reference image's pixels or, where the file gives a pixel_scale, square ones of that
        size inside it. Its sky is the tangent plane about the middle of that image, axes (y = north, x = east), arcsec.
    wcs: the world coordinates of the grid, the reference image's own where the pixels are.
    observations: one per band, in the order of survey.BANDS; one scene (B = 1), float32, on the CPU. A Band's filter
        is "" where the file names none: the scene band's own.
    sources: file or file[HDU] of each band's image, for messages.
    path: of scene.yaml.
    noise_measured: bands whose noise the file says was found correlated on their own sky.
    """

    name: str
    reference: str
    grid: Grid
    wcs: WCS
    observations: tuple[Observation, ...]
    sources: dict[str, str]
    path: Path
    noise_measured: tuple[str, ...] = ()


def read_fields(paths: Iterable[str | Path], most: int | None = None) -> tuple[Field, ...]:
    """Read several scene files. Raises InputError where two have the same name, before any image is read.

    most: pixels above which an image stays on disk (OnDisk); None for no bound.
    """
    files = [Path(path) for path in paths]
    seen: dict[str, Path] = {}
    for path in files:
        name = _read_yaml(path).name
        if name in seen:
            raise InputError(f"two scenes are named {name!r} ({seen[name]}, {path})")
        seen[name] = path
    return tuple(read_field(path, most) for path in files)


def read_field(path: str | Path, most: int | None = None) -> Field:
    """Read a scene file and every image that it names, in nJy per pixel. most: as of read_fields.

    Raises InputError, in one line that names the file, band and number, for anything missing or not physical.
    """
    path = Path(path)
    text = _read_yaml(path)
    exposures = {entry.band.name: read_exposure(entry, path.parent, most) for entry in text.entries}
    base = exposures[text.reference]
    grid, wcs = base.grid(base.centre), base.wcs
    if text.pixel_scale is not None:
        grid = finer(grid, text.pixel_scale)
        wcs = tangent_wcs(grid, base.centre)
    return Field(
        name=text.name,
        reference=text.reference,
        grid=grid,
        wcs=wcs,
        observations=tuple(place_on_sky(exposures[band], base) for band in BANDS if band in exposures),
        sources={band: exposure.place for band, exposure in exposures.items()},
        path=path,
        noise_measured=tuple(band for band in BANDS if band in exposures and exposures[band].noise_measured),
    )


def write_field(
    folder: str | Path, name: str, observations: Sequence[Observation], reference: str, centre: tuple[float, float]
) -> Path:
    """Write a scene folder that read_field reads back: scene.yaml and a FITS file a band (image, WEIGHT, PSF, and
    NOISE, its correlation function, where it is not white).

    observations: one scene each (B = 1), sky origin at ``centre`` = ICRS (ra, dec), degrees; a band without a good
    pixel is left out. scene.yaml comes last, so that where it is the folder is whole. Returns its path. Images,
    weights and normalised PSFs come back bit for bit, grids to 1e-10 arcsec a pixel (about the reference's middle).
    """
    folder = Path(folder)
    entries = []
    for observation in observations:
        assert len(observation.image) == 1, f"{len(observation.image)} scenes in one folder"
        if observation.present.any():
            entries.append(_write_observation(folder, observation, centre))
    return write_scene(folder, name, reference, entries)


def write_scene(
    folder: Path, name: str, reference: str, entries: Sequence[dict[str, object]], pixel_scale: float | None = None
) -> Path:
    """Write scene.yaml over the entries that write_band gave; returns its path."""
    assert reference in [entry["band"] for entry in entries], f"no reference {reference}"
    path = folder / "scene.yaml"
    content: dict[str, object] = {"format": FORMAT, "name": name, "reference": reference}
    content |= {} if pixel_scale is None else {"pixel_scale": pixel_scale}
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(content | {"observations": list(entries)}, sort_keys=False, allow_unicode=True, width=110)
        temporary.write_text(text, encoding="utf-8")
    return path


def write_band(folder: Path, exposure: Exposure, note: str = "") -> dict[str, object]:
    """Write <band>.fits, float32; returns its entry in scene.yaml, a ``note`` for its reader included."""
    band = exposure.band
    image = fits.PrimaryHDU(exposure.image.astype(np.float32), exposure.wcs.to_header(relax=True))
    image.header["BUNIT"] = "nJy"
    image.header["FILTER"] = band.filter
    weight = fits.ImageHDU(exposure.ivar.astype(np.float32), name="WEIGHT")
    weight.header["BUNIT"] = "nJy-2"
    psf = fits.ImageHDU(exposure.psf.astype(np.float32), name="PSF")
    if exposure.psf_pixel is not None:
        psf.header["PIXSCALE"] = (exposure.psf_pixel, "arcsec")
    file = f"{band.name}.fits"
    hdus = [image, weight, psf]
    entry: dict[str, object] = {"band": band.name, "image": file, "weight": f"{file}[WEIGHT]", "psf": f"{file}[PSF]"}
    if exposure.correlation is not None:
        hdus.append(fits.ImageHDU(exposure.correlation.astype(np.float32), name="NOISE"))
        entry["noise"] = f"{file}[NOISE]"
    entry |= {"noise_measured": True} if exposure.noise_measured else {}
    write_fits(folder / file, hdus)
    return entry | ({"filter": band.filter} if band.filter else {}) | ({"note": note} if note else {})


def _write_observation(folder: Path, observation: Observation, centre: tuple[float, float]) -> dict[str, object]:
    """Write <band>.fits; returns its entry in scene.yaml."""
    frame = observation.frame
    sky = np.asarray(frame.grid.origin) + (0 if frame.shift is None else frame.shift[0].double().cpu().numpy())
    grid = Grid(frame.grid.shape, frame.grid.matrix, (float(sky[0]), float(sky[1])))
    image, ivar, psf = (t[0].detach().cpu().numpy() for t in (observation.image, observation.ivar, frame.psf))
    pixel, wcs, lags = frame.psf_scale * grid.scale, tangent_wcs(grid, centre), None
    if observation.correlation is not None:
        lags = correlation_function(observation.correlation, grid.shape, MAX_LAG)[0].detach().cpu().numpy()
    return write_band(folder, Exposure(observation.band, image, ivar, psf, pixel, wcs, str(folder), lags))


@dataclass(frozen=True)
class SceneText:
    """What scene.yaml says, checked in all but the images; pixel_scale in arcsec, None for the reference's pixels."""

    name: str
    reference: str
    entries: tuple[Entry, ...]
    pixel_scale: float | None


def _read_yaml(path: Path) -> SceneText:
    """A scene file, checked in all but the images."""
    content = _load(path)
    form = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if type(form) is not int or form != FORMAT:  # first: another format may well have other keys. True == 1
        raise InputError(f"scene: format is {form!r}, this version reads {FORMAT} ({path})")
    _check_keys(content, ("format", *_FIELD_KEYS, "pixel_scale"), _FIELD_KEYS, "scene", path)
    name, reference, items = (content[key] for key in _FIELD_KEYS)
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise InputError(f"name: {name!r} cannot name a folder: use letters, digits and ._+-, in quotes ({path})")
    if name.lower() in _RESERVED:
        raise InputError(f"name: {name!r} is a file of the output folder: choose another name ({path})")
    if not isinstance(items, list) or not items:
        raise InputError(f"observations: expected a list of at least one ({path})")
    entries: list[Entry] = []
    for number, item in enumerate(items, 1):
        entry = _parse_entry(item, number, path)
        bands = [other.band.name for other in entries]
        if entry.band.name in bands:
            first = bands.index(entry.band.name) + 1
            raise InputError(
                f"{entry.band.name}: the band is given twice, in observations {first} and {number} ({path})"
            )
        entries.append(entry)
    bands = [entry.band.name for entry in entries]
    if reference not in bands:
        raise InputError(f"reference: {reference!r} is not among the bands {', '.join(bands)} ({path})")
    scale = content.get("pixel_scale")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 5):
        raise InputError(f"pixel_scale: {scale!r}, expected arcsec above 0, at most 5 ({path})")
    return SceneText(name, reference, tuple(entries), scale)


def _load(path: Path):
    """The content of a YAML file."""
    if not path.is_file():
        raise InputError(f"no such scene file ({path})")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"scene file of {path.stat().st_size} bytes, at most {_MAX_BYTES} are read ({path})")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"not valid YAML: {one_line(error)} ({path})") from error


def _parse_entry(item, number: int, path: Path) -> Entry:
    """The ``number``-th observation of a scene file (from 1)."""
    label = str(item["band"]) if isinstance(item, dict) and item.get("band") in BANDS else f"observation {number}"
    _check_keys(item, _ENTRY_KEYS, ("band", "image", "psf"), label, path)
    name, kinds = item["band"], [kind for kind in NOISE if kind in item]
    if name not in BANDS:
        raise InputError(f"{label}: unknown band {name!r}, expected one of {', '.join(BANDS)} ({path})")
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise InputError(f"{label}: expected one of variance, weight and rms, found {found} ({path})")
    for key in ("image", kinds[0], "psf", "mask", "noise", "filter", "note"):
        if key in item and not (isinstance(item[key], str) and item[key]):
            raise InputError(f"{label}: {key} is {item[key]!r}, expected text ({path})")
    if type(measured := item.get("noise_measured", False)) is not bool:
        raise InputError(f"{label}: noise_measured is {measured!r}, expected true or false ({path})")
    curve = item.get("filter", _DEFAULT_FILTERS.get(name, ""))
    if curve and curve not in FILTERS:
        raise InputError(f"{label}: {_unknown('filter', curve, FILTERS)} ({path})")
    zeropoint = _zeropoint(item["zeropoint"], label, path) if "zeropoint" in item else None
    optional = (item.get("mask"), zeropoint, item.get("noise"), measured)
    return Entry(Band(name, curve), item["image"], kinds[0], item[kinds[0]], item["psf"], *optional)


def _zeropoint(value, label: str, path: Path) -> float:
    """An AB zero point: -48.6 (erg s⁻¹ cm⁻² Hz⁻¹) to 31.4 (nJy), with room."""
    try:  # YAML reads 2.5e1 as text
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not -50 <= number <= 50:
        raise InputError(f"{label}: zeropoint is {value!r}, expected an AB magnitude from -50 to 50 ({path})")
    return number


def _check_keys(content, valid: Sequence[str], required: Sequence[str], label: str, path: Path) -> None:
    """Refuse anything but a mapping with the required keys and no others than the valid."""
    if not isinstance(content, dict):
        raise InputError(f"{label}: expected keys {', '.join(required)}, found {type(content).__name__} ({path})")
    for key in content:
        if key not in valid:
            raise InputError(f"{label}: {_unknown('key', str(key), valid)} ({path})")
    missing = [key for key in required if key not in content]
    if missing:
        raise InputError(f"{label}: missing {', '.join(missing)} ({path})")


def _unknown(kind: str, word: str, valid: Iterable[str]) -> str:
    return f"unknown {kind} {word!r}, expected one of {', '.join(valid)}; did you mean {closest(word, valid)!r}?"
