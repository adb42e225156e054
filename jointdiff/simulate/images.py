"""Sets of pictured galaxies, simulated (SKIRT) or real (HST): which there are, how they are split, how one is drawn.

Splits go by what was pictured, never by picture: cameras, snapshots and rotations of one galaxy are on one side.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jointdiff.errors import InputError
from jointdiff.simulate.galaxies import Component, SourceSettings

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Share of the sources in each split."""


@dataclass(frozen=True)
class ImageSet:
    """A folder of images of galaxies.

    kind: tng or cosmos. fraction: of the galaxies of a library that are drawn from it, the others are GalSim's models.
    redshifts: between which simulated galaxies are placed. groups: the galaxies, in the order of a hash. fingerprint:
    of the files' names and sizes.
    """

    kind: str
    folder: str
    fraction: float
    redshifts: tuple[float, float]
    groups: tuple[str, ...]
    fingerprint: str

    @property
    def recipe(self) -> dict:
        """What a library made of it depends on: wherever the folder lies."""
        return {
            "kind": self.kind,
            "fraction": self.fraction,
            "redshifts": list(self.redshifts),
            "fingerprint": self.fingerprint,
        }

    def holds(self, magnitude: float) -> bool:
        """Whether a galaxy of this VIS magnitude can be drawn; simulated ones bring magnitudes of their own."""
        if self.kind == "tng":
            return True
        from jointdiff.simulate.cosmos import holds

        return holds(Path(self.folder), magnitude)

    def draw(
        self, rng: np.random.Generator, magnitude: float, filters: tuple[str, ...], settings: SourceSettings
    ) -> tuple[list[Component], dict]:
        """The components of a galaxy drawn at random and what it is, with its ``group`` (galaxies.Images)."""
        if self.kind == "cosmos":
            from jointdiff.simulate.cosmos import draw_cosmos

            return draw_cosmos(Path(self.folder), rng, magnitude, filters, settings)
        from jointdiff.simulate.skirt import draw_skirt

        return draw_skirt(Path(self.folder), self.redshifts, rng, filters, settings)

    def split_of(self, group: str) -> str:
        """The split of a galaxy. Each has its share of them, and one at least where there are three."""
        place, total = self.groups.index(group), len(self.groups)
        if total < len(SPLITS):
            return "train"
        end = total
        for name in ("test", "validation"):
            end -= max(1, round(SPLITS[name] * total))
            if place >= end:
                return name
        return "train"


def find_images(kind: str, folder: Path, fraction: float, redshifts: tuple[float, float]) -> ImageSet:
    """The images in a folder, each header read and checked.

    Raises InputError for a missing folder, files that are something else, and too few galaxies to be split in three
    where nothing else is drawn.
    """
    if not folder.is_dir():
        raise InputError(f"library.images: no such folder ({folder})")
    if kind == "cosmos":
        from jointdiff.simulate.cosmos import galaxies_of
    else:
        from jointdiff.simulate.skirt import galaxies_of
    groups = sorted(set(galaxies_of(folder)), key=lambda group: hashlib.sha256(group.encode()).digest())
    if len(groups) < len(SPLITS) and fraction == 1:
        raise InputError(
            f"library.images: {len(groups)} galaxies are pictured, and each split needs its own: add images, or draw "
            f"others by --library.image_fraction below 1 ({folder})"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    fingerprint = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return ImageSet(kind, str(folder), fraction, redshifts, tuple(groups), fingerprint)
