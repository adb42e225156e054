"""What lies beside a catalog.fits: the same as ECSV on request, regions for DS9, a colour picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table

from jointdiff.evaluate.figures import colour_picture, rgb_bands, save_picture
from jointdiff.io.atomic import atomic_path
from jointdiff.io.products import write_catalog
from jointdiff.measure.shapes import axis_ratio


@dataclass(frozen=True)
class Extras:
    """What a catalog holds on request. aliases: none, or one of aliases.CONVENTIONS; ecsv: write it as text, too;
    morphology: number of samples that statmorph measures.
    """

    aliases: str = "none"
    ecsv: bool = False
    morphology: int = 0


CATALOG, ECSV, REGIONS, PICTURE = "catalog.fits", "catalog.ecsv", "catalog.reg", "rgb.png"

UNEXPLAINED = "unexplained"
"""The stem of the files of what no sample explains."""

ZOOM, WIDEST = 4, 1024
"""Pixels of a picture on a side of a scene pixel, at most; fewer where its longer side would exceed WIDEST."""

LARGEST = 2048
"""Longer side of a picture, pixels: a larger field is binned."""


def export(folder: Path, table: Table, provenance: Mapping[str, object], ecsv: bool = False) -> None:
    """Write a catalog into ``folder``: catalog.fits, catalog.reg and, if asked for, catalog.ecsv."""
    write_catalog(folder / CATALOG, table, provenance)
    with atomic_path(folder / REGIONS) as temporary:
        temporary.write_text(regions(table), encoding="utf-8")
    if ecsv:
        told = table.copy()
        told.meta.update({key: value for key, value in provenance.items() if value is not None})
        with atomic_path(folder / ECSV) as temporary:
            told.write(temporary, format="ascii.ecsv", overwrite=True)


def write_unexplained(folder: Path, table: Table) -> None:
    """Write a ``peak_table`` as unexplained.ecsv and, for DS9, as circles in unexplained.reg."""
    with atomic_path(folder / f"{UNEXPLAINED}.ecsv") as temporary:
        table.write(temporary, format="ascii.ecsv", overwrite=True)
    lines = ["# Region file format: DS9 version 4.1", "global color=red width=2", "icrs"]
    for row in table:
        label = f"{row['sigma']:.1f} sigma, {row['shape']}, {row['band']}"
        lines.append(f'circle({row["ra"]:.8f},{row["dec"]:.8f},{row["size"]:.4f}") # text={{{label}}}')
    with atomic_path(folder / f"{UNEXPLAINED}.reg") as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_picture(folder: Path, names: Sequence[str], seen: Sequence[str], mean: np.ndarray, scale: float) -> None:
    """rgb.png of a posterior mean (C, H, W) in bands ``names``: in i r g, or what else of the bands ``seen`` will do.

    scale: arcsec per pixel.
    """
    zoom = max(1, min(ZOOM, WIDEST // max(mean.shape[-2:])))
    save_picture(colour_picture(names, rgb_bands(seen), mean, scale, zoom), folder / PICTURE)


def write_large_picture(
    folder: Path, names: Sequence[str], seen: Sequence[str], planes: Iterable[np.ndarray], scale: float
) -> None:
    """write_picture of the planes (H, W) of a mean one after the other, summed over n × n pixels until they fit.

    A strip of fewer pixels across than n is summed over as many as it has.
    """
    small, times = [], 1
    for plane in planes:
        times = min(math.ceil(max(plane.shape) / LARGEST), *plane.shape)
        height, width = (side // times for side in plane.shape)
        blocks = plane[: height * times, : width * times].reshape(height, times, width, times)
        small.append(blocks.sum((1, 3)))
    write_picture(folder, names, seen, np.stack(small), times * scale)


def regions(table: Table) -> str:
    """A DS9 region file: ellipses of the area that holds half the light, circles of APERRAD where that is undefined.

    In ICRS: FK5 is some 20 mas off. DS9 counts the angles of ellipses from west to north, so from the position angle
    they are 90 degrees on. Sources without a sky position are left out.
    """
    lines = ["# Region file format: DS9 version 4.1", "global color=green width=1", "icrs"]
    ratio = axis_ratio(np.column_stack([table["e1"], table["e2"]]))
    for row, q in zip(table, ratio, strict=True):
        if not np.isfinite([row["ra"], row["dec"]]).all():
            continue
        place, label = f"{row['ra']:.8f},{row['dec']:.8f}", f"# text={{{row['object_id']}}}"
        if np.isfinite([row["r50"], q, row["position_angle"]]).all():
            a, b, angle = row["r50"] / np.sqrt(q), row["r50"] * np.sqrt(q), (row["position_angle"] + 90) % 360
            lines.append(f'ellipse({place},{a:.4f}",{b:.4f}",{angle:.2f}) {label}')
        else:
            lines.append(f'circle({place},{table.meta["APERRAD"]:.4f}") {label} dash=1')
    return "\n".join([*lines, ""])
