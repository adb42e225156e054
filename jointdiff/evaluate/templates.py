"""Photometry of given shapes: nothing but fluxes is fitted, of all sources in all bands together.

With the shapes that VIS shows it is what is usually done (T-PHOT, Merlin et al. 2015, A&A 582, A15); with the true ones
it is the limit: no unbiased flux is less uncertain (Cramér–Rao), and only a prior on fluxes or colours can do better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jointdiff.evaluate.sources import ORACLE, Estimate
from jointdiff.forward import ForwardModel
from jointdiff.measure.catalog import find_sources
from jointdiff.measure.detection import Segments, grow
from jointdiff.reconstruct.base import Draws, NoiseStream, Reconstructor
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid, Observation

_LEAST = 1e-8
"""Information on a combination of fluxes, over that on the best known, below which it counts as not measured."""


@dataclass(frozen=True)
class Photometry:
    """Maximum-likelihood fluxes (K, C), nJy, of templates (K, C, H, W); root rootᵀ is the covariance of all K·C."""

    templates: Tensor
    flux: Tensor
    root: Tensor

    @classmethod
    def fit(cls, templates: Tensor, model: ForwardModel, observations: Sequence[Observation]) -> "Photometry":
        """f = (Mᵀ N⁻¹ M)⁻¹ Mᵀ N⁻¹ y over all sources, bands and observations (B = 1), colour terms included.

        A flux that the data do not tell is zero, without error.
        """
        count, channels = templates.shape[:2]
        if count == 0:  # an empty sky, of which a transform fails
            return cls(templates, *(torch.zeros(0, n, dtype=torch.float64) for n in (channels, 0)))
        single = torch.einsum("kchw,cd->kcdhw", templates, torch.eye(channels).to(templates)).flatten(0, 1)
        observations = [o.to(torch.float64) for o in observations]
        light = [image.double() for image in model(single)]  # M: an image for each flux
        weighed = [o.weigh(image).flatten(1) for o, image in zip(observations, light, strict=True)]  # N⁻¹ M
        normal = torch.stack([w @ m.flatten(1).T for w, m in zip(weighed, light, strict=True)]).sum(0)
        images = [o.image.where(o.ivar > 0, 0.0).flatten() for o in observations]  # masked pixels may be NaN
        right = torch.stack([w @ image for w, image in zip(weighed, images, strict=True)]).sum(0)
        scale = normal.diagonal().clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
        values, vectors = torch.linalg.eigh(scale[:, None] * normal * scale)
        told = values > _LEAST * values.max()
        root = scale[:, None] * vectors[:, told] * values[told].rsqrt()
        return cls(templates, (root @ (root.T @ right)).view(count, channels), root)

    def sky(self, white: Tensor | None = None) -> Tensor:
        """The fitted sky (1, C, H, W), or (S, C, H, W) with errors drawn from white noise (S, ≥ K·C), nJy per pixel."""
        flux = self.flux.unsqueeze(0)
        if white is not None:
            flux = flux + (white[:, : self.root.shape[1]].double() @ self.root.T).view(len(white), *self.flux.shape)
        return torch.einsum("skc,kchw->schw", flux.to(self.templates), self.templates)

    def draws(self, count: int, stream: NoiseStream) -> Draws:
        (white,) = stream.normal(range(count), [(max(self.flux.numel(), 1),)], self.templates)
        return Draws(self.sky(white), self.sky()[0])


class Templates(Reconstructor):
    """Each source has the shape that VIS gives it, in all bands the same; its flux in each is fitted.

    Sources are found, and their segments drawn, on the Wiener filter of VIS alone. Only fluxes are to be scored.
    """

    method = "templates"

    @torch.no_grad()
    def sample(self, observations: Sequence[Observation], grid: Grid, count: int, stream: NoiseStream) -> Draws:
        names = [band.name for band in self.denoiser.bands]
        vis = Wiener(self.denoiser).sample([o for o in observations if o.band.name == "VIS"], grid, count, stream)
        at = names.index("VIS")
        samples, light = vis.samples[:, at : at + 1], vis.mean[at : at + 1]
        fwhm, scale = self.denoiser.target_fwhm, grid.scale
        segments = find_sources(samples, light, ["VIS"], target_fwhm=fwhm, scale=scale)
        templates = _cut(light.expand(len(names), -1, -1), segments, segments.labels)
        model = self.denoiser.forward_model(observations, grid)
        again = replace(stream, name=f"{stream.name}/fluxes")
        return Photometry.fit(templates, model, observations).draws(count, again)


@torch.no_grad()
def oracle(
    truth: Tensor,
    found: Segments,
    model: ForwardModel,
    observations: Sequence[Observation],
    count: int,
    stream: NoiseStream,
) -> Estimate:
    """Photometry of the sources that were found, each with its true shape in every band: the limit.

    truth: (C, H, W). All light belongs to the source whose segment is nearest.
    """
    templates = _cut(truth, found, grow(found.labels, np.inf))
    draws = Photometry.fit(templates, model, observations).draws(count, replace(stream, name=f"{stream.name}/{ORACLE}"))
    return Estimate(draws.samples, draws.mean, photometry_only=True)


def _cut(light: Tensor, segments: Segments, labels: np.ndarray) -> Tensor:
    """The light (C, H, W) of each source at unit flux, (K, C, H, W); zero in a band where it is not positive."""
    numbers = torch.arange(1, len(segments) + 1).view(-1, 1, 1)
    cut = light * (torch.as_tensor(labels.astype(np.int64)) == numbers).to(light).unsqueeze(1)
    total = cut.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, cut / torch.where(total > 0, total, 1.0), 0.0)
