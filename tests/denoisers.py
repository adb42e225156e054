"""Untrained denoisers, whose network puts out zero: all that they know is a power-law Γ of galaxy-like colours."""

import torch

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.gaussian import GaussianPrior

DEMO_BANDS = (("VIS", "VIS"), *((band, f"hsc-{band}") for band in "grizy"))


def galaxy_prior(bands: int, knots: int = 24) -> GaussianPrior:
    """Γ of sources some 0.3 arcsec in size at the target PSF of 0.2 arcsec, alike but not equal in all bands."""
    k = torch.linspace(0, 7.2, knots)
    power = 50 * (1 + (k / 0.6) ** 2) ** -1.5 * torch.exp(-0.36 * (k / 2.5) ** 2)
    return GaussianPrior(k, power[:, None, None] * (0.8 + 0.2 * torch.eye(bands)))


def untrained(bands=DEMO_BANDS, pixel_scale: float = 0.1, seed: int | None = None) -> Denoiser:
    """A small denoiser with ``galaxy_prior``. seed: of a network that puts out something, for want of training."""
    torch.manual_seed(0)
    prior = galaxy_prior(len(bands))
    denoiser = Denoiser(bands, pixel_scale, 0.2, wavenumbers=len(prior.wavenumbers), widths=[16, 32], blocks=1)
    denoiser.set_prior(prior)
    if seed is not None:
        exit_ = denoiser.network.exit.weight
        exit_.data = 0.1 * torch.randn(exit_.shape, generator=torch.Generator().manual_seed(seed))
    return denoiser.eval()
