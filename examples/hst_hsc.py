"""HSC alone, mock VIS + HSC, and HST: python examples/hst_hsc.py FOLDER CHECKPOINT OUTPUT.

FOLDER holds the fields of data_manifest/hst_hsc.yaml. VIS is made from HST at its own resolution and noise, so the real
sky, sharper than either, is known. Leaves OUTPUT/hst_hsc.png, and scenes, samples and catalogs beside it.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from jointdiff import cli
from jointdiff.io.products import read_reconstruction
from jointdiff.io.surveys.hst import read_hst_hsc
from jointdiff.scene import Grid

SAMPLES = "16"
SIDE = 4.0
"""Half the side of a panel, arcsec."""
SMOOTH = 0.03
"""Standard deviation (arcsec) of the Gaussian that HST is smoothed by: its PSF goes from 0.10 to 0.12 arcsec, and its
noise to a third."""
FAINT = 0.04
"""Brightness at which the stretch turns from linear to logarithmic, over that of the brightest pixels; it is two
deviations of HST's noise at least."""
TITLES = ("HSC alone: i at 0.2″", "mock VIS + HSC: i at 0.2″", "HST F814W at 0.12″")


def panels(field: Path, output: Path) -> list[tuple[np.ndarray, Grid]]:
    """The i band of the two reconstructions, and F814W, each in nJy per square arcsec about the field's middle."""
    with warnings.catch_warnings(action="ignore"):  # told when the scenes were made
        hst = read_hst_hsc([field], None)[0].exposure
    shown = []
    for kind in ("hsc", "joint"):
        result = read_reconstruction(output / f"{field.name}_{kind}" / "reconstruction.fits")
        x, y = result.wcs.world_to_pixel_values(*hst.centre)
        scale = 3600 * float(np.sqrt(abs(np.linalg.det(result.wcs.pixel_scale_matrix))))
        image = np.asarray(result.mean[[band.name for band in result.bands].index("i")]) / scale**2
        shown.append((image, Grid(image.shape, ((scale, 0), (0, scale)), (-scale * y, -scale * x))))
    scale = hst.grid(hst.centre).scale
    smooth = gaussian_filter(hst.image, SMOOTH / scale)
    return [*shown, (smooth / scale**2, Grid.centred(hst.image.shape, scale))]


def draw(fields: list[Path], output: Path) -> Figure:
    """A row a field, its three panels of one sky, north up and east to the left, in one stretch."""
    figure = Figure(figsize=(9, 3 * len(fields) + 0.4), layout="constrained")
    axes = figure.subplots(len(fields), 3, squeeze=False)
    for row, field in zip(axes, fields, strict=True):
        shown = panels(field, output)
        hst = shown[-1][0]
        bright = np.percentile(hst, 99.8)
        knee = max(FAINT * bright, 2 * 1.48 * np.median(np.abs(hst - np.median(hst))))
        for axis, (image, grid) in zip(row, shown, strict=True):
            (y, x), (h, w) = grid.origin, grid.shape
            half = grid.scale / 2
            extent = (x - half, x + w * grid.scale - half, y - half, y + h * grid.scale - half)
            stretched = np.arcsinh(image / knee)
            top = float(np.arcsinh(bright / knee))
            axis.imshow(
                stretched,
                origin="lower",
                extent=extent,
                vmin=-0.05 * top,
                vmax=top,
                cmap="magma",
                interpolation="bicubic",
            )
            axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=(), yticks=(), facecolor="black")
        row[0].set_ylabel(field.name.replace("_-", ", −").replace("_", ", +"))
        row[0].plot([SIDE - 1.4, SIDE - 0.4], 2 * [0.4 - SIDE], color="white", linewidth=2)
        row[0].text(SIDE - 0.9, 0.55 - SIDE, "1″", color="white", ha="center", va="bottom")
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    arrow = {"arrowstyle": "-", "color": "white"}
    for end, place in (("N", (0.16, 0.95)), ("E", (0.04, 0.83))):
        axes[0, 0].annotate(
            end, (0.16, 0.83), place, *2 * ["axes fraction"], arrowprops=arrow, color="white", ha="center", va="center"
        )
    return figure


def main(folder: Path, checkpoint: str, output: Path) -> int:
    fields = sorted(path for path in folder.iterdir() if (path / "hst.fits").is_file())
    scenes = []
    for field in fields:
        for kind, bands in (("joint", "[VIS,g,r,i,z,y]"), ("hsc", "[g,r,i,z,y]")):
            scene = output / "scenes" / f"{field.name}_{kind}"
            if not (scene / "scene.yaml").is_file():
                cli.main(["ingest", "hst-hsc", str(field), "--bands", bands, "--output", str(scene)])
            scenes += ["--scene", str(scene / "scene.yaml")]
    options = ["--checkpoint", checkpoint, "--num_samples", SAMPLES, "--output", str(output)]
    if status := cli.main(["reconstruct", *scenes, *options]):
        return status
    draw(fields, output).savefig(output / "hst_hsc.png", dpi=150)
    print(f"{output / 'hst_hsc.png'}: panels of {2 * SIDE:g} arcsec, asinh stretch, one scale a row")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
