"""What the network itself gets wrong: the data are asked once more (METHOD section 7).

At a bright source, what a network has failed to learn is many times the noise, and the data show it. With ε the
relative error of each band, measured on simulated scenes (evaluate/network_errors.py), a sample x_k of the network
stands for the Gaussian N(x_k, E), E = H Hᵀ with H = ε |T μ₀| T, T a convolution, and gives way to a draw of

    p(x) ∝ N(y; A x, N) N(x; x_k, E):   x = x_k + H u,   (I + Hᵀ Aᵀ N⁻¹ A H) u = w + Hᵀ (Aᵀ N⁻¹ (y − A x_k) + ξ)

w white, ξ of covariance Aᵀ N⁻¹ A (Papandreou & Yuille 2010, NIPS 23). Where E is far below what the data tell, that
is x_k but for a draw of E; where it is far above, what the data alone say. A model's error as a Gaussian process is
due to Kennedy & O'Hagan (2001, J. R. Stat. Soc. B 63, 425).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from jointdiff.forward import ForwardModel, gaussian_transfer, half_plane_weights
from jointdiff.linear import conjugate_gradient
from jointdiff.reconstruct.base import NoiseStream
from jointdiff.scene import Observation

SMOOTH = 0.3
"""FWHM (arcsec) of T: of the light that the error is a fraction of, and of what the error is alike over."""

TOLERANCE, MAX_STEPS = 0.1, 300
"""Of conjugate gradients: the norm of the residual of u. Of H u along any one direction that is an error of as many
deviations of E, and what it does to the data is at most half as many of the noise. Bright scenes take 100 steps."""

CONVERGED = 0.5
"""Norm of the residual that is accepted without a word."""


def refined(
    samples: Tensor,
    model: ForwardModel,
    observations: Sequence[Observation],
    light: Tensor,
    errors: Sequence[float],
    numbers: range,
    stream: NoiseStream,
) -> tuple[Tensor, bool]:
    """What stands for the samples (S, C, H, W) ``numbers`` of one scene, for each by itself; whether u was found.

    All in nJy per pixel. observations: of the scene, or S images each of the same weights. light: μ₀ (1, C, H, W), for
    it is no sample's own. errors: ε (C,).
    """
    grid, own = model.grid, stream.apart("refined")
    transfer = torch.as_tensor(gaussian_transfer(grid, SMOOTH)).to(samples)
    power = (transfer.square() * torch.as_tensor(half_plane_weights(grid)).to(samples)).sum() / light[0, 0].numel()

    def convolved(image: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(image) * transfer, s=grid.shape)

    share = samples.new_tensor(errors).view(1, -1, 1, 1) / power.sqrt()  # white noise through T: of unit variance
    level = share * convolved(light.to(samples)).abs()

    def root(u: Tensor) -> Tensor:
        return level * convolved(u)

    def adjoint(image: Tensor) -> Tensor:
        return convolved(level * image)

    def operator(u: Tensor) -> Tensor:
        return u + adjoint(model.normal(root(u), observations))

    noise = own.data(numbers, observations, samples)
    seen = zip(observations, model(samples), noise, strict=True)
    told = model.adjoint([o.weigh(o.image - image) + o.weighed_noise(white) for o, image, white in seen])
    white = own.white(numbers, grid, samples, channels=samples.shape[1])
    rhs, tolerance = white + adjoint(told), TOLERANCE / samples[0].numel() ** 0.5
    u = conjugate_gradient(operator, lambda r: r, rhs, white, tolerance, MAX_STEPS)
    left = (rhs - operator(u)).flatten(1).norm(dim=1)
    return samples + root(u), bool((left < CONVERGED).all())
