"""HSC alone, mock VIS + HSC, and HST: python examples/hst_hsc.py FOLDER CHECKPOINT OUTPUT.

FOLDER holds the fields of data_manifest/hst_hsc.yaml. VIS is made from HST at its own resolution and noise, so the real
sky, sharper than either, is known. Leaves OUTPUT/hst_hsc.png, and scenes, samples and catalogs beside it.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jointdiff import cli
from jointdiff.io.products import read_reconstruction
from jointdiff.io.surveys.hst import read_hst_hsc
from jointdiff.scene import Grid

SAMPLES = "16"
SIDE = 4.0
"""Half the side of a panel, arcsec."""


def panels(field: Path, output: Path) -> list[tuple[np.ndarray, Grid]]:
    """The i band of the two reconstructions, and F814W, each in nJy per square arcsec about the field's middle."""
    hst = read_hst_hsc([field], None)[0].exposure
    shown = []
    for kind in ("hsc", "joint"):
        result = read_reconstruction(output / f"{field.name}_{kind}" / "reconstruction.fits")
        x, y = result.wcs.world_to_pixel_values(*hst.centre)
        scale = 3600 * float(np.sqrt(abs(np.linalg.det(result.wcs.pixel_scale_matrix))))
        image = np.asarray(result.mean[[band.name for band in result.bands].index("i")]) / scale**2
        shown.append((image, Grid(image.shape, ((scale, 0), (0, scale)), (-scale * y, -scale * x))))
    scale = hst.grid(hst.centre).scale
    return [*shown, (hst.image / scale**2, Grid.centred(hst.image.shape, scale))]


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
    figure = Figure(figsize=(9, 3 * len(fields) + 0.3), layout="constrained")
    axes = figure.subplots(len(fields), 3, squeeze=False)
    for row, field in zip(axes, fields, strict=True):
        shown = panels(field, output)
        bright = np.percentile(shown[-1][0], 99.8)
        for axis, (image, grid), title in zip(row, shown, ("HSC alone", "mock VIS + HSC", "HST F814W"), strict=True):
            (y, x), (h, w) = grid.origin, grid.shape
            half = grid.scale / 2
            extent = (x - half, x + w * grid.scale - half, y - half, y + h * grid.scale - half)
            stretched = np.arcsinh(image / (0.03 * bright))
            axis.imshow(stretched, origin="lower", extent=extent, vmin=-1, vmax=np.arcsinh(1 / 0.03), cmap="gray")
            axis.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=(), yticks=(), title=title)
        row[0].set_ylabel(field.name)
    figure.savefig(output / "hst_hsc.png", dpi=110)
    print(f"{output / 'hst_hsc.png'}: panels of {2 * SIDE:g} arcsec, asinh stretch, one scale a row")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
