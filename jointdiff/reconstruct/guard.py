"""Where a sample contradicts the data that it was drawn from, the Gaussian posterior speaks instead (METHOD section 7).

A posterior sample and the data are distributed as the truth and the data. So y − A x of a sample is noise, as y − A x*
is, and its χ² in any patch is one a pixel; a network on which that is not so has not seen the like in training. Each
sample is judged by itself: what others are drawn beside it changes nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from jointdiff.forward import gaussian_transfer
from jointdiff.gaussian import GaussianPosterior

PATCH = 0.8
"""FWHM (arcsec) of the patch of a scene that χ² is a mean over, widened by the PSF of a band."""

LIMIT = 5.0
"""χ² per pixel of a patch beyond which a sample contradicts the data, in units of what the Gaussian posterior's sample
has there, but at least of 1. Noise never reaches it, nor did any ordinary source (METHOD section 7)."""

SEEN = 0.2
"""Share of a patch's pixels that must be observed for it to be judged."""

REACH, RAMP = 0.8, 0.4
"""Arcsec around a contradiction that are replaced, and half the width of the ramp in which that ends."""

ROUNDS = 5
"""Times that a sample is judged, with what was replaced so far: beside it other contradictions may come to light."""


def guarded(samples: Tensor, posterior: GaussianPosterior, gaussian: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """The samples (S, C, H, W), and the share (S, 1, H, W) of the Gaussian posterior in them, 0 where they stand.

    posterior: of the data that the samples are of, B = 1 or S. gaussian: draws as many exact samples of it; not asked
    where no sample can contradict the data. A sample that does not is returned as it came.
    """
    share = torch.zeros_like(samples[:, :1])
    if not (local_chi2(samples, posterior) > LIMIT).any():
        return samples, share
    other = gaussian().to(samples)
    bound = LIMIT * local_chi2(other, posterior).clamp(min=1)
    wrong, mixed = torch.zeros_like(share, dtype=torch.bool), samples
    for _ in range(ROUNDS):
        found = local_chi2(mixed, posterior) > bound
        if not found.any():
            break
        wrong |= found
        share = _around(wrong, posterior.grid.scale)
        mixed = torch.where(share > 0, samples + share * (other - samples), samples)
    return mixed, share


def local_chi2(scenes: Tensor, posterior: GaussianPosterior) -> Tensor:
    """χ² per pixel (S, 1, H, W) of y − A x in the patch around each pixel of the scene, in the band that fits worst.

    1 where hardly a pixel was seen. For correlated noise its expectation is 1, too, but it scatters more.
    """
    model, observations = posterior.model, posterior.observations
    transfer = torch.as_tensor(gaussian_transfer(posterior.grid, PATCH)).to(scenes)

    def patches(images: list[Tensor]) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(model.spread(images)) * transfer, s=posterior.grid.shape)

    squares = [(o.image - seen).square() * o.ivar for o, seen in zip(observations, model(scenes), strict=True)]
    count = patches([(o.ivar > 0).to(scenes) for o in observations])
    full = model.responses.square().sum(0).view(-1, 1, 1)  # the count where all is seen: A keeps flux, so Tᵀ 1 is 1
    judged = count > SEEN * full.clamp(min=1e-12)
    chi2 = torch.where(judged, patches(squares) / count.clamp(min=1e-12), 1.0)
    return chi2.amax(1, keepdim=True)


def _around(wrong: Tensor, scale: float) -> Tensor:
    """Shares: 1 within REACH − RAMP of what is true in (S, 1, H, W), 0 beyond REACH + RAMP; scale: arcsec a pixel."""
    most = (min(wrong.shape[-2:]) - 1) // 2
    reach, ramp = (min(round(length / scale), most) for length in (REACH, RAMP))
    grown = max_pool2d(pad(wrong.float(), (reach,) * 4, mode="circular"), 2 * reach + 1, stride=1)
    return avg_pool2d(pad(grown, (ramp,) * 4, mode="circular"), 2 * ramp + 1, stride=1)
