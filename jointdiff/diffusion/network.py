"""The network F: a small periodic U-Net on a pixel-unshuffled scene.

Convolutions wrap, like the scene; normalisation is per pixel over channels, so that what a pixel sees does not depend
on how large the image around it is.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

UNSHUFFLE = 2
"""Scene pixels per network pixel along an axis: four times cheaper than full resolution."""


class Convolution(nn.Conv2d):
    """A periodic 3 x 3 convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1, padding_mode="circular")


class Block(nn.Module):
    """A residual block whose gain and offset follow the conditioning (FiLM, Perez et al. 2018, arXiv 1709.07871)."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.first, self.second = Convolution(channels, channels), Convolution(channels, channels)
        self.modulation = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        gain, offset = rearrange(self.modulation(embedding), "b (two c) -> two b c 1 1", two=2)
        hidden = self.first(functional.silu(pixel_norm(x)))
        hidden = pixel_norm(hidden) * (1 + gain) + offset
        return x + self.second(functional.silu(hidden))


def pixel_norm(x: Tensor) -> Tensor:
    """Each pixel divided by its rms over channels."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)


class UNet(nn.Module):
    """(B, inputs, H, W) and scalars (B, scalars) to (B, outputs, H, W).

    widths: channels at each resolution, from half the scene's down; H and W must be multiples of ``stride``.
    """

    def __init__(self, inputs: int, outputs: int, scalars: int, widths: Sequence[int], blocks: int):
        super().__init__()
        cells = UNSHUFFLE**2
        embedding = 4 * widths[0]
        self.stride = UNSHUFFLE * 2 ** (len(widths) - 1)
        self.embed = nn.Sequential(nn.Linear(scalars, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.entry = Convolution(inputs * cells, widths[0])
        self.down = nn.ModuleList(self._blocks(w, blocks, embedding) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(self._blocks(w, blocks, embedding) for w in widths[:-1])
        self.exit = Convolution(widths[0], outputs * cells)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    @staticmethod
    def _blocks(width: int, count: int, embedding: int) -> nn.ModuleList:
        return nn.ModuleList(Block(width, embedding) for _ in range(count))

    def forward(self, features: Tensor, scalars: Tensor) -> Tensor:
        embedding = self.embed(scalars)
        x = self.entry(functional.pixel_unshuffle(features, UNSHUFFLE))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, embedding)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        for grow, blocks in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = grow(x) + skips.pop()
            for block in blocks:
                x = block(x, embedding)
        with torch.autocast(x.device.type, enabled=False):  # the output keeps full precision
            return functional.pixel_shuffle(self.exit(functional.silu(x.to(self.exit.weight.dtype))), UNSHUFFLE)
