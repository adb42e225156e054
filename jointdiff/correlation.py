"""Noise that pixels share: N = D^{1/2} C D^{1/2}, with D the variances of the pixels and C stationary.

C is described on the image's own periodic grid by its power spectrum ρ(q), (B, h, w//2 + 1) at the frequencies of
``torch.fft.rfft2``, of mean 1; or by its correlation function c(l) of lags in pixels, (B, n, n) with lag zero, where it
is 1, in the middle of an odd side. The two are each other's Fourier transforms (METHOD section 5).
"""

import numpy as np
import torch
from torch import Tensor

from jointdiff.linear import conjugate_gradient

FLOOR = 0.05
"""Least power, over the median: a power that was never measured well must not make a frequency noiseless."""

_TOLERANCE = 1e-4
"""Error of the noise behind a mask, over the rms of what is weighed: less than float32 loses elsewhere."""

_STEPS = 40


def power_spectrum(function: Tensor, shape: tuple[int, int]) -> Tensor:
    """ρ (B, h, w//2 + 1) on images of ``shape``, of a correlation function (B, n, m), n and m odd; floored, of mean 1.

    Lags beyond half the image are left out: around a periodic image they would be others.
    """
    rows, columns = (_half(n, side) for n, side in zip(function.shape[-2:], shape, strict=True))
    middle = [n // 2 for n in function.shape[-2:]]
    kept = function[..., middle[0] - rows : middle[0] + rows + 1, middle[1] - columns : middle[1] + columns + 1]
    lags = kept.new_zeros(*kept.shape[:-2], *shape)
    lags[..., : 2 * rows + 1, : 2 * columns + 1] = kept
    power = torch.fft.rfft2(lags.roll((-rows, -columns), (-2, -1))).real
    least = FLOOR * power.flatten(-2).median(-1).values[..., None, None]
    power = torch.maximum(power, least)
    return power / torch.fft.irfft2(power.to(power.dtype.to_complex()), s=shape)[..., :1, :1]


def correlation_function(power: Tensor, shape: tuple[int, int], reach: int) -> Tensor:
    """c(l) (B, 2·reach + 1, 2·reach + 1) of ρ on images of ``shape``, or as far as half the image."""
    lags = torch.fft.irfft2(power.to(power.dtype.to_complex()), s=shape)
    reach = min(reach, *((side - 1) // 2 for side in shape))
    return lags.roll((reach, reach), (-2, -1))[..., : 2 * reach + 1, : 2 * reach + 1]


def resized(power: Tensor, shape: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """ρ on images of the ``other`` shape, of that on images of ``shape``: the same correlation function."""
    return power_spectrum(correlation_function(power, shape, max(other)), other) if shape != other else power


def _half(lags: int, side: int) -> int:
    """The largest lag of ``lags`` (odd) that fits a periodic image."""
    return min(lags // 2, (side - 1) // 2)


def convolved(images: Tensor, power: Tensor) -> Tensor:
    """Images (B, h, w) with each of their frequencies multiplied by (B, h, w//2 + 1)."""
    return torch.fft.irfft2(torch.fft.rfft2(images) * power, s=images.shape[-2:])


def weighed(images: Tensor, ivar: Tensor, power: Tensor) -> Tensor:
    """N⁻¹ of images (B, h, w), zero where the inverse variance is, and symmetric.

    N is of the seen pixels alone: its inverse is D^{-1/2} C⁻¹ D^{-1/2} of the image with those pixels' noise put behind
    the masks that the seen ones foretell (the Schur complement, solved by conjugate gradients to _TOLERANCE). Zeros
    there would make the pixels beside a mask surer than they are. The image's opposite edges count as neighbours.
    """
    root = ivar.sqrt()
    scaled, inverse = root * images, power.reciprocal()
    hidden = (ivar == 0).to(scaled)
    if bool(hidden.any()):
        norm = scaled.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=torch.finfo(scaled.dtype).tiny)
        known = scaled / norm
        foretold = conjugate_gradient(
            lambda noise: hidden * convolved(hidden * noise, inverse),
            lambda noise: hidden * convolved(hidden * noise, power),
            -hidden * convolved(known, inverse),
            torch.zeros_like(known),
            _TOLERANCE,
            _STEPS,
        )
        scaled = norm * (known + foretold)
    return root * convolved(scaled, inverse)


def power_at(power: Tensor, shape: tuple[int, int], q: np.ndarray) -> Tensor:
    """ρ (B, …) at frequencies q (…, 2) in cycles per pixel of images of ``shape``, folded into their band; bilinear."""
    q = q - np.round(q)
    q = np.where(q[..., 1:] < 0, -q, q)  # ρ(-q) = ρ(q), and the half plane has the columns of q_x ≥ 0
    row, column = q[..., 0] * shape[0], np.minimum(q[..., 1] * shape[1], shape[1] // 2)
    top, left = np.floor(row + 1e-9).astype(int), np.floor(column + 1e-9).astype(int)
    total = power.new_zeros(len(power), *row.shape)
    for i in (0, 1):
        for j in (0, 1):
            share = (1 - np.abs(row - top - i)) * (1 - np.abs(column - left - j))
            at = power[:, (top + i) % shape[0], np.minimum(left + j, shape[1] // 2)]
            total = total + at * torch.as_tensor(share).to(power)
    return total
