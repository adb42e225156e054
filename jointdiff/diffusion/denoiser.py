"""The denoiser D = E[x | x_t, y]: the Gaussian posterior plus a network that speaks in posterior sigmas.

    D(x_t, σ; y) = μ(x_t, y, σ) + S(y, σ)^{1/2} w(y) g(y) F_θ(features, conditioning)       (METHOD section 6)

g is a map: where a bright source, a mask or the margin leaves less data than on average, the posterior is wider
than the stationary S, and g takes that out of the network's range. With F = 0 it is the exact
posterior mean of the Gaussian prior. The white-prior case is EDM's preconditioning (Karras et al. 2022, arXiv
2206.00364, section 5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from jointdiff.diffusion.network import UNet
from jointdiff.diffusion.symmetry import Symmetry, seen_through
from jointdiff.forward import ForwardModel
from jointdiff.gaussian import Conditional, GaussianPosterior, GaussianPrior
from jointdiff.nuisances import Levels
from jointdiff.scene import Band, Grid, Observation

FIELDS = 7
"""Feature maps per band that the network sees."""

LARGEST_NOISE = 8.0
"""Deviations beyond which the network does not follow what x_t holds as noise."""


@dataclass(frozen=True)
class Conditioning:
    """What the observations say, computed once per scene.

    posterior: the Gaussian posterior. maps: static features (B, 3C, H, W). scalars: (B, 2C).
    noise: (B, C, 1, 1), the posterior standard deviation of a pixel, nJy.
    gain: (B, C, H, W), how much wider the posterior is here than the stationary S says.
    weight: (B, 1, H, W), 1 for pixels that some band sees, 0.5 at the edge of what is seen and 0 beyond; 1 everywhere
    in a scene without data.
    """

    posterior: GaussianPosterior
    maps: Tensor
    scalars: Tensor
    noise: Tensor
    gain: Tensor
    weight: Tensor

    @property
    def scale(self) -> Tensor:
        """What multiplies F: the gain, falling to zero in the margin, where the Gaussian prior speaks alone."""
        return self.gain * self.weight


def bounded(noise: Tensor) -> Tensor:
    """Noise in units of σ, nearly unchanged while it is like noise, and never beyond LARGEST_NOISE.

    A state that no sky could have led to holds more. A network that follows it linearly drives it away for good: one
    bright star in 240 scenes came out with χ²/N = 4 · 10⁴.
    """
    return LARGEST_NOISE * torch.tanh(noise / LARGEST_NOISE)


class Denoiser(nn.Module, PyTorchModelHubMixin):
    """Holds Γ, the bands, the pixel scale, the target PSF and the network: all that a checkpoint has to say.

    bands: ((name, filter), …). pixel_scale, target_fwhm: arcsec. wavenumbers: the number K of tabulated Γ(k).
    widths, blocks: of the network (see UNet). levels: deviations of what nobody knows of an observation
    (nuisances.Levels), which samples allow for. network_errors: ε of each band, of the network at sources, which
    samples allow for, too (reconstruct/refine.py); none where nobody measured them.
    """

    wavenumbers: Tensor
    covariances: Tensor

    def __init__(
        self,
        bands: Sequence[Sequence[str]],
        pixel_scale: float,
        target_fwhm: float,
        wavenumbers: int,
        widths: Sequence[int],
        blocks: int,
        levels: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        network_errors: Sequence[float] = (),
    ):
        super().__init__()
        if len(network_errors) not in (0, len(bands)) or not all(0 <= e < 1 for e in network_errors):
            raise ValueError(
                f"network_errors are {list(network_errors)}, expected one of 0 to 1 for each band, or none"
            )
        self.network_errors = tuple(network_errors)
        self.levels = Levels(*levels)
        self.bands = tuple(Band(name, curve) for name, curve in bands)
        self.pixel_scale, self.target_fwhm = pixel_scale, target_fwhm
        self.network_dtype: torch.dtype | None = None  # autocast of the network alone; the Gaussian part is float32
        count = len(self.bands)
        self.register_buffer("wavenumbers", torch.zeros(wavenumbers))
        self.register_buffer("covariances", torch.zeros(wavenumbers, count, count))
        self.network = UNet(FIELDS * count, count, 2 * count + 1, widths, blocks)

    @property
    def prior(self) -> GaussianPrior:
        """Γ against physical frequency."""
        return GaussianPrior(self.wavenumbers, self.covariances)

    def set_prior(self, prior: GaussianPrior) -> None:
        """Stores Γ, measured on training scenes."""
        self.wavenumbers.copy_(prior.wavenumbers)
        self.covariances.copy_(prior.covariances)

    def forward_model(self, observations: Sequence[Observation], grid: Grid) -> ForwardModel:
        """A, from scenes of this denoiser's bands on a grid to the observations."""
        return ForwardModel(grid, self.bands, self.target_fwhm, observations)

    def condition(
        self, observations: Sequence[Observation], grid: Grid, amplitude: Tensor | None = None, **options
    ) -> Conditioning:
        """Everything of D that does not depend on x_t. amplitude: (B,), or None for the maximum of the evidence.
        options: others of GaussianPosterior.

        Several images of the same weights (B = 1) serve as many samples of one sky, of which μ₀ alone differs. start:
        a first guess of it.

        The maps are μ₀ in posterior sigmas, the matched-filter significance, and how much of the data covers a pixel.
        """
        posterior = GaussianPosterior(
            self.forward_model(observations, grid),
            observations,
            self.prior.on(grid),
            amplitude,
            **options,
        )
        power = posterior.data_precision.diagonal(dim1=-2, dim2=-1)  # (B, H, W//2 + 1, C)
        depth = power[:, 0, 0].view(len(power), -1, 1, 1)
        present = self._observed(observations).to(depth).view_as(depth)
        matched = power.mean((1, 2)).view_as(depth).clamp(min=1e-12).sqrt()
        variance = posterior.covariance.diagonal(dim1=-2, dim2=-1).mean((1, 2))
        noise = variance.sqrt().view_as(depth)
        coverage = posterior.coverage
        signal, matched_filter = posterior.mean / noise, posterior.weighted_data / matched
        maps = torch.cat([signal.asinh(), matched_filter.asinh(), coverage.expand_as(signal)], dim=1)
        # Γ(0) and the depth at k = 0 tell how far the posterior widens to the prior where data are shallow or absent.
        prior = posterior.prior_precision[:, 0, 0].diagonal(dim1=-2, dim2=-1).view_as(depth)
        gain = ((prior + depth) / (prior + depth * coverage.clamp(min=0))).sqrt()
        scalars = torch.log(posterior.amplitude.view(-1, 1) * depth.flatten(1).clamp(min=1e-12).sqrt()) / 4
        scalars = torch.cat([scalars * (depth.flatten(1) > 0), present.flatten(1)], dim=1)
        best = posterior.footprint.amax(1, keepdim=True)
        weight = torch.where(best.amax((-2, -1), keepdim=True) > 0, (2 * best - 0.5).clamp(0, 1), 1.0)
        return Conditioning(posterior, maps, scalars, noise, gain, weight)

    def _observed(self, observations: Sequence[Observation]) -> Tensor:
        """(B, C), true where a band has data of its own: a neighbour's may tell of it, too, through a colour term."""
        seen = torch.stack([o.present for o in observations], dim=1)
        own = [[o.band.name == band.name for o in observations] for band in self.bands]
        return (seen.unsqueeze(1) & torch.tensor(own, device=seen.device)).any(-1)

    def inputs(self, x_t: Tensor, sigma: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor, Conditional]:
        """Features (B, FIELDS · C, H, W) and scalars (B, 2C + 1) for the network, and the Gaussian p(x | x_t, y).

        Conditioning on one scene serves a batch of its samples; σ is then (1,).
        """
        posterior = conditioning.posterior
        given = posterior.given(x_t, sigma)
        level = sigma.view(-1, 1, 1, 1)
        features = torch.cat(
            [
                posterior.marginal().whiten(given.mean - posterior.mean)
                / conditioning.gain,  # what x_t adds to the data
                bounded((x_t - given.mean) / level),  # what x_t holds as noise
                torch.asinh(given.mean / conditioning.noise),
                torch.asinh(given.whiten(given.mean) / conditioning.gain),  # minus F, where the sky is empty
                conditioning.maps.expand(len(x_t), -1, -1, -1),
            ],
            dim=1,
        )
        scalars = torch.cat([torch.log(sigma / posterior.amplitude).unsqueeze(1) / 4, conditioning.scalars], dim=1)
        return features, scalars.expand(len(x_t), -1), given

    def network_output(self, features: Tensor, scalars: Tensor, symmetries: Sequence[Symmetry] = ()) -> Tensor:
        """F_θ (B, C, H, W), in local posterior standard deviations. symmetries: what each is seen through, or none."""
        with torch.autocast(features.device.type, self.network_dtype, enabled=self.network_dtype is not None):
            if not symmetries:
                return self.network(features, scalars)
            return seen_through(symmetries, lambda seen: self.network(seen, scalars), features)

    def forward(self, x_t: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """D (B, C, H, W) for x_t (B, C, H, W) at σ (B,)."""
        return conditioning.posterior.given(x_t, sigma).mean + self.correction(x_t, sigma, conditioning)

    def correction(
        self, x_t: Tensor, sigma: Tensor, conditioning: Conditioning, symmetries: Sequence[Symmetry] = ()
    ) -> Tensor:
        """D − μ (B, C, H, W): what the sampler integrates beside the Gaussian part. symmetries: one each, or none."""
        features, scalars, given = self.inputs(x_t, sigma, conditioning)
        return given.colour(conditioning.scale * self.network_output(features, scalars, symmetries))
