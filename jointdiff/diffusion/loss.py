"""What the denoiser is trained on: ‖Lᵀ (x − μ)/g − F‖² per element, where there are data."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jointdiff.diffusion.denoiser import Conditioning, Denoiser
from jointdiff.diffusion.sampler import REACH
from jointdiff.forward import half_plane_weights, wavenumber
from jointdiff.gaussian import evidence_amplitude, scene_amplitude
from jointdiff.scene import Grid, Observation

AMPLITUDE_SCATTER = 0.3
"""Dex by which the amplitude of a scene without data differs from the true one, which nobody knows."""

WIDER = 2.0
"""Factor by which the lowest noise level in training lies below the solver's."""

BOOST = 10.0
"""Extra weight in the loss of the largest scales."""

FAINTEST = 0.1
"""Amplitude (nJy) below which a scene without data is trained as if it had this one: empty skies."""


class DenoisingLoss(nn.Module):
    """The loss of one batch: a module, so that one wrapper synchronises its gradients.

    The target of the network is (Lᵀ (x − μ)) / g, of unit scale. The margin, where nothing is known, does not count:
    a bright source there would outweigh all that can be learnt.
    Weights are a function of the data alone, or of frequency, so the minimum is the conditional mean of the target.
    """

    def __init__(self, denoiser: Denoiser, levels: int):
        super().__init__()
        self.denoiser, self.levels = denoiser, levels

    def forward(
        self, truth: Tensor, observations: Sequence[Observation], grid: Grid, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss; and for every scene and level, its loss and the share of the way from log σ_min to log σ_max.

        truth: (B, C, H, W); each scene is seen at ``levels`` noise levels, evenly spread. generator: of σ and the
        noise, on the truth's device.
        """
        with torch.no_grad():
            amplitude = self._amplitude(truth, observations, grid, generator)
            conditioning = self.denoiser.condition(observations, grid, amplitude)
            first = torch.rand(len(truth), device=truth.device, generator=generator)
            shares = torch.cat([(first + i) / self.levels for i in range(self.levels)])
            noisy = [self._noisy(truth, share, conditioning, generator) for share in shares.chunk(self.levels)]
            features, scalars, targets = (torch.cat(parts) for parts in zip(*noisy, strict=True))
            weight = conditioning.weight.repeat(self.levels, 1, 1, 1)
        output = self.denoiser.network_output(features, scalars)
        total = weight.mean((1, 2, 3))
        each = spectral_norm(weight.sqrt() * (output - targets), grid)
        return each.sum() / total.sum(), each.detach() / total, shares

    def _noisy(
        self, truth: Tensor, share: Tensor, conditioning: Conditioning, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The network's inputs at one noise level per scene, and its target."""
        low, high = conditioning.posterior.sigma_range
        low, high = low / WIDER, high * REACH
        sigma = low * (high / low) ** share
        noise = torch.randn(truth.shape, device=truth.device, generator=generator)
        features, scalars, given = self.denoiser.inputs(truth + sigma.view(-1, 1, 1, 1) * noise, sigma, conditioning)
        return features, scalars, given.whiten(truth - given.mean) / conditioning.gain

    def _amplitude(self, truth: Tensor, observations: Sequence[Observation], grid: Grid, generator) -> Tensor | None:
        """None where data tell it; with no data in a scene there is only the truth's, blurred."""
        seen = torch.stack([o.present for o in observations]).any(0)
        if bool(seen.all()):
            return None
        model, gamma = self.denoiser.forward_model(observations, grid), self.denoiser.prior.on(grid)
        scatter = torch.randn(len(truth), device=truth.device, generator=generator)
        guess = scene_amplitude(truth, gamma, grid).clamp(min=FAINTEST) * 10 ** (AMPLITUDE_SCATTER * scatter)
        return torch.where(seen, evidence_amplitude(model, observations, gamma), guess)


def spectral_norm(field: Tensor, grid: Grid) -> Tensor:
    """Mean square (B,) of a field (B, C, H, W), with more weight on the few modes that make up fluxes.

    1 + BOOST exp(-k²/2) at k cycles/arcsec, over its mean: apertures of 0.5 arcsec pass 3 % of all modes.
    """
    k = torch.as_tensor(wavenumber(grid)).to(field)
    weights = (1 + BOOST * torch.exp(-k.square() / 2)) * torch.as_tensor(half_plane_weights(grid)).to(field)
    power = torch.fft.rfft2(field, norm="ortho").abs().square().mean(1)
    return (weights * power).sum((-2, -1)) / weights.sum()
