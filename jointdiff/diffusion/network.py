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


class Convolution(nn.Linear):
    """A periodic 3 x 3 convolution; its weight (outputs, 9 inputs) is a matrix, as Muon takes them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(9 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.view(len(self.weight), -1, 3, 3)
        return functional.conv2d(wrapped(x), kernel, self.bias)


def wrapped(x: Tensor) -> Tensor:
    """The image with its opposite rows and columns around it; on CPU twice as fast as functional.pad."""
    x = torch.cat([x[..., -1:, :], x, x[..., :1, :]], -2)
    return torch.cat([x[..., -1:], x, x[..., :1]], -1)


class Block(nn.Module):
    """A residual block whose gain and offset follow the conditioning (FiLM, Perez et al. 2018, arXiv 1709.07871)."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.first, self.second = Convolution(channels, channels), zeroed(Convolution(channels, channels))
        self.modulation = nn.Linear(embedding, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        gain, offset = rearrange(self.modulation(embedding), "b (two c) -> two b c 1 1", two=2)
        hidden = self.first(functional.silu(pixel_norm(x)))
        hidden = pixel_norm(hidden) * (1 + gain) + offset
        return x + self.second(functional.silu(hidden))


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero: a residual branch, or a network, that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def pixel_norm(x: Tensor) -> Tensor:
    """Each pixel divided by its rms over channels."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)


class Stage(nn.Module):
    """Blocks at one resolution."""

    def __init__(self, channels: int, embedding: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, embedding) for _ in range(blocks))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        return x


class UNet(nn.Module):
    """(B, inputs, H, W) and scalars (B, scalars) to (B, outputs, H, W).

    widths: channels at each resolution, from half the scene's down; H and W must be multiples of ``stride``.
    """

    def __init__(self, inputs: int, outputs: int, scalars: int, widths: Sequence[int], blocks: int):
        super().__init__()
        cells, embedding = UNSHUFFLE**2, 4 * widths[0]
        self.stride = UNSHUFFLE * 2 ** (len(widths) - 1)
        self.embed = nn.Sequential(nn.Linear(scalars, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.entry = Convolution(inputs * cells, widths[0])
        self.down = nn.ModuleList(Stage(width, embedding, blocks) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(Stage(width, embedding, blocks) for width in widths[:-1])
        self.exit = zeroed(Convolution(widths[0], outputs * cells))

    @property
    def matrices(self) -> list[nn.Parameter]:
        """The weights of the convolutions in the blocks."""
        blocks = [block for stage in (*self.down, *self.up) for block in stage.blocks]
        return [layer.weight for block in blocks for layer in (block.first, block.second)]

    def forward(self, features: Tensor, scalars: Tensor) -> Tensor:
        embedding = self.embed(scalars)
        x = self.entry(functional.pixel_unshuffle(features, UNSHUFFLE))
        skips = []
        for stage, shrink in zip(self.down, self.shrink, strict=False):
            skips.append(stage(x, embedding))
            x = shrink(skips[-1])
        x = self.down[-1](x, embedding)
        for grow, stage in zip(reversed(self.grow), reversed(self.up), strict=True):
            x = stage(grow(x) + skips.pop(), embedding)
        with torch.autocast(x.device.type, enabled=False):  # the output keeps full precision
            return functional.pixel_shuffle(self.exit(functional.silu(x.to(self.exit.weight.dtype))), UNSHUFFLE)
