"""The denoiser D = E[x | x_t, y]: the Gaussian posterior plus a network that speaks in posterior sigmas.

    D(x_t, σ; y) = μ(x_t, y, σ) + S(y, σ)^{1/2} F_θ(features, conditioning)         (DESIGN section 6)

With F = 0 it is the exact posterior mean of the Gaussian prior. The white-prior case is EDM's preconditioning
(Karras et al. 2022, arXiv 2206.00364, section 5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from jointdiff.diffusion.network import UNet
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import Conditional, GaussianPosterior, GaussianPrior
from jointdiff.scene import Band, Grid, Observation

FIELDS = 6
"""Feature maps per band that the network sees."""


@dataclass(frozen=True)
class Conditioning:
    """What the observations say, computed once per scene.

    posterior: the Gaussian posterior. maps: static features (B, 3C, H, W). scalars: (B, 2C).
    noise: (B, C, 1, 1), the posterior standard deviation of a pixel, nJy.
    """

    posterior: GaussianPosterior
    maps: Tensor
    scalars: Tensor
    noise: Tensor


class Denoiser(nn.Module, PyTorchModelHubMixin):
    """Holds Γ, the bands, the pixel scale, the target PSF and the network: all that a checkpoint has to say.

    bands: ((name, filter), …). pixel_scale, target_fwhm: arcsec. wavenumbers: the number K of tabulated Γ(k).
    """

    def __init__(
        self,
        bands: Sequence[Sequence[str]],
        pixel_scale: float,
        target_fwhm: float,
        wavenumbers: int,
        widths: Sequence[int],
        blocks: int,
    ):
        super().__init__()
        self.bands = tuple(Band(*band) for band in bands)
        self.pixel_scale, self.target_fwhm = pixel_scale, target_fwhm
        count = len(self.bands)
        self.register_buffer("wavenumbers", torch.zeros(wavenumbers))
        self.register_buffer("covariances", torch.zeros(wavenumbers, count, count))
        self.network = UNet(FIELDS * count, count, 2 * count + 1, widths, blocks)

    @property
    def prior(self) -> GaussianPrior:
        return GaussianPrior(self.wavenumbers, self.covariances)

    @prior.setter
    def prior(self, prior: GaussianPrior):
        self.wavenumbers.copy_(prior.wavenumbers)
        self.covariances.copy_(prior.covariances)

    def posterior(self, observations: Sequence[Observation], grid: Grid, **options) -> GaussianPosterior:
        """The Gaussian posterior of the observations on a scene grid: the joint Wiener filter."""
        model = ForwardModel(grid, self.bands, self.target_fwhm, observations)
        return GaussianPosterior(model, observations, self.prior.on(grid), **options)

    def condition(self, posterior: GaussianPosterior) -> Conditioning:
        """Static features: μ₀ in posterior sigmas, the matched-filter significance, and how much of the data covers a pixel."""
        power = posterior.data_precision.diagonal(dim1=-2, dim2=-1)  # (B, H, W//2 + 1, C)
        coverage = power[:, 0, 0].view(*power.shape[:1], -1, 1, 1)
        matched = power.mean((1, 2)).view_as(coverage).clamp(min=1e-12).sqrt()
        noise = torch.cholesky_inverse(posterior.lower).diagonal(dim1=-2, dim2=-1).mean((1, 2))
        noise = noise.sqrt().view_as(coverage)
        present = (coverage > 0).to(coverage)
        maps = torch.cat(
            [
                torch.asinh(posterior.mean / noise),
                torch.asinh(posterior.weighted_data / matched) * present,
                posterior.coverage * present,
            ],
            dim=1,
        )
        depth = torch.log(
            posterior.amplitude.view(-1, 1) * coverage.flatten(1).clamp(min=1e-12).sqrt()
        ) * present.flatten(1)
        return Conditioning(posterior, maps, torch.cat([depth / 4, present.flatten(1)], dim=1), noise)

    def residual(self, x_t: Tensor, sigma: Tensor, conditioning: Conditioning) -> tuple[Tensor, Conditional]:
        """F_θ (B, C, H, W), in posterior standard deviations, and the Gaussian p(x | x_t, y) that it corrects."""
        posterior = conditioning.posterior
        given = posterior.given(x_t, sigma)
        level = sigma.view(-1, 1, 1, 1)
        features = torch.cat(
            [
                posterior.marginal().whiten(given.mean - posterior.mean),  # bounded: what x_t adds to the data
                (x_t - given.mean) / level,  # bounded: what x_t holds as noise
                torch.asinh(given.mean / conditioning.noise),
                conditioning.maps,
            ],
            dim=1,
        )
        scalars = torch.cat([torch.log(sigma / posterior.amplitude).unsqueeze(1) / 4, conditioning.scalars], dim=1)
        return self.network(features, scalars), given

    def forward(self, x_t: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """D (B, C, H, W) for x_t (B, C, H, W) at σ (B,)."""
        output, given = self.residual(x_t, sigma, conditioning)
        return given.mean + given.colour(output)
