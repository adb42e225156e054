"""What the network itself gets wrong: the data are asked once more (METHOD section 7).

At a bright source, what a network has failed to learn is many times the noise, and the data show it. Its error is
smooth, and its variance grows with the light as that of photons does: of a pixel it is ε² σ |T μ₀|, σ the noise of a
pixel, with one ε for each band, measured on simulated scenes (evaluate/network_errors.py). So a sample x_k of the
network stands for the Gaussian N(x_k, E), E = H Hᵀ and H = ε √(σ |T μ₀|) T, T a convolution; a draw takes its place of

    p(x) ∝ N(y; A x, N) N(x; x_k, E):   x = x_k + H u,   (I + Hᵀ Aᵀ N⁻¹ A H) u = w + Hᵀ (Aᵀ N⁻¹ (y − A x_k) + ξ)

w white, ξ of covariance Aᵀ N⁻¹ A (Papandreou & Yuille 2010, NIPS 23). Where E is far below what the data tell, that
is x_k but for a draw of E; where it is far above, what the data alone say. A model's error as a Gaussian process is
due to Kennedy & O'Hagan (2001, J. R. Stat. Soc. B 63, 425).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointdiff.correlation import convolved
from jointdiff.forward import gaussian_transfer, half_plane_weights
from jointdiff.gaussian import GaussianPosterior
from jointdiff.linear import conjugate_gradient
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.scene import Observation

SMOOTH = 0.3
"""FWHM (arcsec) of T: of the light that the error grows with, and, but for √2, of what it is alike over."""

MOST = 0.1
"""Share of the light that a pixel's error is at most: where a band is shallow, other bands tell the network of it."""

TOLERANCE, MAX_STEPS = 0.1, 300
"""Of conjugate gradients: the norm of the residual of u. Of H u along any one direction that is an error of as many
deviations of E, and what it does to the data is at most half as many of the noise. Bright scenes take 100 steps."""

CONVERGED = 0.5
"""Norm of the residual that is accepted without a word."""


def refined(
    samples: Tensor,
    posterior: GaussianPosterior,
    observations: Sequence[Observation],
    light: Tensor,
    errors: Sequence[float],
    numbers: range,
    stream: NoiseStream,
) -> tuple[Tensor, bool]:
    """What stands for the samples (S, C, H, W) ``numbers`` of one scene, for each by itself; whether u was found.

    All in nJy per pixel. posterior: the Gaussian one, for A and the depth of the data. observations: of the scene, or S
    images each of the same weights. light: μ₀ (1, C, H, W), for it is no sample's own. errors: ε (C,). What was not
    observed in a band stands.
    """
    model, own = posterior.model, stream.apart("refined")
    grid = model.grid
    transfer = torch.as_tensor(gaussian_transfer(grid, SMOOTH)).to(samples)
    power = (transfer.square() * torch.as_tensor(half_plane_weights(grid)).to(samples)).sum() / light[0, 0].numel()
    depth = posterior.data_precision[:1, 0, 0].diagonal(dim1=-2, dim2=-1).to(samples).view(1, -1, 1, 1)
    noise = torch.where(depth > 0, depth.clamp(min=torch.finfo(depth.dtype).tiny).rsqrt(), 0.0)

    bright, scale = convolved(light.to(samples), transfer).abs(), samples.new_tensor(errors).view(1, -1, 1, 1)
    level = torch.minimum(scale * (noise * bright).sqrt(), MOST * bright) / power.sqrt()  # T w: of unit variance

    def root(u: Tensor) -> Tensor:
        return level * convolved(u, transfer)

    def adjoint(image: Tensor) -> Tensor:
        return convolved(level * image, transfer)

    def operator(u: Tensor) -> Tensor:
        return u + adjoint(model.normal(root(u), observations))

    seen = zip(observations, model(samples), own.data(numbers, observations, samples), strict=True)
    told = model.adjoint([o.weigh(o.image - image) + o.weighed_noise(white) for o, image, white in seen])
    white = own.white(numbers, grid, samples, channels=samples.shape[1])
    rhs, tolerance = white + adjoint(told), TOLERANCE / samples[0].numel() ** 0.5
    u = conjugate_gradient(operator, lambda r: r, rhs, white, tolerance, MAX_STEPS)
    left = (rhs - operator(u)).flatten(1).norm(dim=1)
    return samples + root(u), bool((left < CONVERGED).all())
