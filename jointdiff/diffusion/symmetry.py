"""Symmetries of the periodic grid: the network has learnt each of them only nearly, so every sample takes its own.

A shifted, mirrored or rotated sky is as likely as the sky itself, and training shows all of them. Networks that see a
scene through different symmetries differ in what they have failed to learn: the mean of samples averages it out, as an
ensemble's does, and their spread holds it. It costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jointdiff.scene import Grid
from jointdiff.seeds import seed_of


@dataclass(frozen=True)
class Symmetry:
    """A shift by whole pixels (y, x), a mirror image, and a rotation by quarter turns, in this order."""

    shift: tuple[int, int]
    mirrored: bool
    turns: int

    @classmethod
    def numbered(cls, number: int, grid: Grid, stride: int) -> "Symmetry":
        """The symmetry of sample ``number`` on a grid, sides multiples of ``stride``: of mirror and turns each in turn.

        stride: by as many pixels the network is periodic, so shifts stay below; they are told by a pixel's place on the
        sky, so that on all cuts of one grid the network sees it alike. Only square grids bear odd turns.
        """
        generator = torch.Generator().manual_seed(seed_of("symmetry", number))
        drawn = torch.randint(stride, (2,), generator=generator).tolist()
        y, x = ((shift + first) % stride for shift, first in zip(drawn, grid.lattice, strict=True))
        mirrored, turns = divmod(number % 8, 4)
        return cls((y, x), bool(mirrored), turns if grid.shape[0] == grid.shape[1] else 2 * (turns % 2))

    def __call__(self, image: Tensor) -> Tensor:
        """An image (…, H, W) seen through this symmetry."""
        shifted = torch.roll(image, self.shift, (-2, -1))
        return torch.rot90(shifted.flip(-1) if self.mirrored else shifted, self.turns, (-2, -1))

    def inverse(self, image: Tensor) -> Tensor:
        """The image that is seen as this one."""
        turned = torch.rot90(image, -self.turns, (-2, -1))
        return torch.roll(turned.flip(-1) if self.mirrored else turned, [-s for s in self.shift], (-2, -1))


def seen_through(symmetries: Sequence[Symmetry], network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network makes of images (B, …, H, W) that it sees each through its own symmetry, turned back."""
    seen = torch.stack([symmetry(image) for symmetry, image in zip(symmetries, images, strict=True)])
    return torch.stack([symmetry.inverse(image) for symmetry, image in zip(symmetries, network(seen), strict=True)])
