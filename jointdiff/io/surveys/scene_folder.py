"""Products to a scene folder that read_field reads."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from jointdiff.errors import InputError
from jointdiff.io.scene_files import read_field, write_band, write_scene
from jointdiff.io.surveys.product import Product
from jointdiff.units import ARCSEC_PER_DEGREE

PIXEL_SCALE = 0.1
"""Scene pixels (arcsec) of a field without VIS: those of VIS."""


def write_products(folder: Path, name: str, products: Sequence[Product], add: bool = False) -> Path:
    """Write products, in nJy, as a scene folder, or add them to the one that is there; returns scene.yaml's path.

    VIS is the reference; without it the band of the smallest pixels is, and the scene gets pixels of PIXEL_SCALE. What
    was written is read back, so that what no scene may hold (bands that share no sky) is told here. Raises InputError
    for that, for a band that the scene has, and for a scene that is there and was not to be added to.
    """
    path = folder / "scene.yaml"
    held: dict = {"reference": None, "observations": []}
    if path.exists():
        if not add:
            raise InputError(f"{path}: there is a scene already: --add puts more bands into it, or take another folder")
        read_field(path)  # checks it
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    elif add:
        raise InputError(f"{path}: no scene to add to")
    old = [entry["band"] for entry in held["observations"]]
    for product in products:
        band = product.exposure.band.name
        if band in old:
            raise InputError(f"{band}: the scene has it already ({path})")
    entries = [write_band(folder, product.exposure, "; ".join(product.told)) for product in products]
    bands = [*old, *(product.exposure.band.name for product in products)]
    finest = min(products, key=lambda product: _pixel(product)).exposure.band.name
    reference = "VIS" if "VIS" in bands else held["reference"] or finest
    scale = None if reference == "VIS" else held.get("pixel_scale", PIXEL_SCALE)
    entries = [*held["observations"], *entries]
    write_scene(folder, held.get("name", name), reference, entries, scale)
    with warnings.catch_warnings():  # told when it was read, with the archive's own file
        warnings.filterwarnings("ignore", ".*from the middle of its stamp")
        read_field(path)
    return path


def _pixel(product: Product) -> float:
    """Pixel of an image, arcsec."""
    return float(np.sqrt(abs(np.linalg.det(product.exposure.wcs.pixel_scale_matrix)))) * ARCSEC_PER_DEGREE
