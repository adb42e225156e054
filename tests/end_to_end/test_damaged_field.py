"""A field as archives serve them, with NaN pixels, masks and a band missing, from its scene file to its catalog."""

from pathlib import Path

import numpy as np
import pytest

from jointdiff import cli
from jointdiff.io.products import read_catalog, read_reconstruction
from jointdiff.reconstruct.checkpoint import save_denoiser
from jointdiff.units import njy_per_count
from tests.denoisers import DEMO_BANDS, untrained
from tests.scene_folders import SCALE, SIZE, ZEROPOINT, edit_pixels, write_good_scene

COUNTS = {"VIS": 4000.0, "g": 50_000.0}
PLACE = (22, 18)
"""The star's VIS pixel (y, x)."""

CORE = np.s_[21:24, 17:20]
"""The VIS pixels that are lost: the nine brightest of the star."""


def star(band: str) -> np.ndarray:
    """In counts: the PSF of write_good_scene, a Gaussian of sigma 2 pixels, at the same sky position in every band."""
    y, x = (
        np.arange(SIZE[band]) - (SIZE[band] - 1) / 2 - (at - (SIZE["VIS"] - 1) / 2) * SCALE["VIS"] / SCALE[band]
        for at in PLACE
    )
    return COUNTS[band] * np.exp(-(y[:, None] ** 2 + x**2) / 8) / (8 * np.pi)


def lost(value: float):
    def edit(pixels: np.ndarray) -> np.ndarray:
        pixels[CORE] = value
        return pixels

    return edit


def reconstruct(folder: Path, model: Path, method: str, damage) -> Path:
    """Products of a good scene with the star, after ``damage(folder)``."""
    scene = write_good_scene(folder / "scene")
    for band in SIZE:
        edit_pixels(scene.parent / f"{band}.fits", lambda pixels, band=band: pixels + star(band))
    edit_pixels(scene.parent / "g_mask.fits", lambda mask: mask + (np.arange(24) < 4))  # a dead edge
    damage(scene.parent)
    options = f"--checkpoint {model} --method {method} --num_samples 8 --evaluations 4 --stars false".split()
    assert cli.main(["reconstruct", "--scene", str(scene), "--output", str(folder / "out"), *options]) == 0
    return folder / "out" / "good"


def brightest(output: Path):
    catalog = read_catalog(output / "catalog.fits")
    return catalog[np.argmax(catalog["flux_g"])]


@pytest.mark.parametrize("method", ["wiener", "diffusion"])
def test_a_damaged_field_gives_a_catalog(method, tmp_path):
    """r was never observed, a side of g is masked, and VIS has no number where the star is brightest."""
    model = tmp_path / "model"
    save_denoiser(untrained(DEMO_BANDS[:3]), model)

    def mask(folder: Path) -> None:
        edit_pixels(folder / "VIS.fits", lost(1e6))
        edit_pixels(folder / "VIS_mask.fits", lost(1))

    output = reconstruct(tmp_path / "nan", model, method, lambda f: edit_pixels(f / "VIS.fits", lost(np.nan)))
    masked = reconstruct(tmp_path / "mask", model, method, mask)
    whole = brightest(reconstruct(tmp_path / "whole", model, method, lambda _: None))
    sky, same = (read_reconstruction(path / "reconstruction.fits") for path in (output, masked))
    assert sky.samples.shape == (8, 3, 40, 40)
    assert all(np.isfinite(cube).all() for cube in (sky.mean, sky.std, sky.samples))
    np.testing.assert_array_equal(same.samples, sky.samples)
    source = brightest(output)
    assert (source["y"], source["x"]) == pytest.approx(PLACE, abs=0.1)
    # A third of its VIS light is lost. The prior fills nearly all of it in, and the catalog says that it did.
    assert source["flux_VIS"] / whole["flux_VIS"] == pytest.approx(1, abs=0.1)
    assert source["flux_ml_VIS"] == pytest.approx(COUNTS["VIS"] * njy_per_count(ZEROPOINT["VIS"]), rel=0.15)
    assert (source["flags"], whole["flags"]) == (4 + 8, 4)
    assert np.isnan(source["flux_ml_r"]) and np.isfinite(source["flux_r"])
