"""The commands that deal with archives' files: ingest makes scenes of them, data checks that they are whole.

Only the standard library is imported at the top: ``--help`` must not wait for numpy.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jointdiff.settings import require


@dataclass(frozen=True)
class IngestConfig:
    """One field from an archive's files to a scene folder.

    Attributes:
        survey: Where the files come from.
        files: The archive's files of one field, or for hst-hsc its folder.
        output: Scene folder to write: scene.yaml and a FITS file a band.
        name: Name of the scene; by default that of its folder.
        centre: Right ascension and declination (ICRS, degrees) of the part to cut out; by default all is taken.
        size: Side of that part, arcsec.
        bands: Bands to keep; by default all that a scene can hold.
        add: Add the bands to the scene that is in the folder.
        seed: Seed of the noise of a mock VIS image (hst-cosmos, hst-hsc).
    """

    survey: Literal["euclid-q1", "hsc-pdr3", "lsst", "hst-cosmos", "hst-hsc"] = "euclid-q1"
    files: tuple[str, ...] = ()
    output: str = ""
    name: str = ""
    centre: tuple[float, ...] = ()
    size: float = 20.0
    bands: tuple[str, ...] = ()
    add: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.files), "files", "missing", "SURVEY FILE …")
        require(bool(self.output), "output", "missing", "--output FOLDER")
        require(len(self.centre) in (0, 2), "centre", list(self.centre), "[ra,dec] in degrees")
        if self.centre:
            require(0 <= self.centre[0] <= 360 and -90 <= self.centre[1] <= 90, "centre", list(self.centre), "degrees")
        require(0 < self.size < 36000, "size", self.size, "arcsec above 0")
        require(self.seed >= 0, "seed", self.seed, "at least 0")


@dataclass(frozen=True)
class DataConfig:
    """The data sets that jointdiff knows, as data_manifest/ describes them.

    Attributes:
        action: verify checks the files in a folder; list tells what there is and how to get it.
        folder: Folder of the data sets, one folder each.
        manifest: Folder of the descriptions.
    """

    action: Literal["verify", "list"] = "list"
    folder: str = ""
    manifest: str = "data_manifest"

    def __post_init__(self) -> None:
        require(self.action == "list" or bool(self.folder), "folder", "missing", "verify FOLDER")


NOISE_SIDE = 60.0
"""Side (arcsec) of the part of a mosaic, at least, on which the noise of a small field is measured."""


def ingest(config: IngestConfig) -> None:
    """Make a scene of an archive's files: units, noise, masks, WCS and PSFs as reconstruct needs them."""
    from jointdiff.io.surveys.afw import read_hsc, read_lsst
    from jointdiff.io.surveys.euclid import read_euclid
    from jointdiff.io.surveys.hst import F814W, read_cosmos, read_hst_hsc
    from jointdiff.io.surveys.product import Wanted, cut
    from jointdiff.io.surveys.scene_folder import PIXEL_SCALE, write_products
    from jointdiff.reconstruct.noise import with_noise
    from jointdiff.simulate.mock_vis import mock_vis

    readers = {
        "euclid-q1": read_euclid,
        "hsc-pdr3": read_hsc,
        "lsst": read_lsst,
        "hst-cosmos": read_cosmos,
        "hst-hsc": read_hst_hsc,
    }
    wanted = Wanted((config.centre[0], config.centre[1]), config.size) if config.centre else None
    around = replace(wanted, side=max(wanted.side, NOISE_SIDE)) if wanted else None
    products = readers[config.survey]([Path(file) for file in config.files], around)
    # F814W is no band of a scene, and mock_vis knows the noise of its pixels.
    products = tuple(p if p.exposure.band == F814W else with_noise(p, PIXEL_SCALE) for p in products)
    products = tuple(cut(p, wanted) for p in products) if wanted else products
    products = tuple(mock_vis(p, config.seed) if p.exposure.band == F814W else p for p in products)
    found = [product.exposure.band.name for product in products]
    for band in config.bands:
        require(band in found, "bands", list(config.bands), f"some of {', '.join(found)}, which the files have")
    products = tuple(p for p in products if not config.bands or p.exposure.band.name in config.bands)
    output = Path(config.output)
    path = write_products(output, config.name or output.resolve().name, products, config.add)
    for product in products:
        print(product.describe())
    print(f"{len(products)} band{'s' * (len(products) > 1)}: {path}")


def data(config: DataConfig) -> None:
    """List the data sets that jointdiff knows, or check those in a folder, file by file; nothing is downloaded."""
    from jointdiff.io.manifest import read_manifest, verify

    sets = read_manifest(Path(config.manifest))
    for known in sets:
        print(known.describe() if config.action == "list" else verify(known, Path(config.folder)), flush=True)
