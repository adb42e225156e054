"""What the observations themselves say about the sources of a reconstruction, without its prior.

flux_ml: maximum-likelihood fluxes of all sources of a scene together, each with the shape that VIS gives it (METHOD
section 8); chi2: how well the posterior mean explains the pixels under each source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jointdiff.measure.detection import Segments
from jointdiff.scene import Band, Observation

_CHUNK = 16
"""Sources projected at a time."""


@dataclass(frozen=True)
class Data:
    """The observations of one scene.

    forward: linear map of scenes (B, C, H, W), nJy per pixel, to one image (B, h, w) per observation.
    images, ivars: (h, w) per observation, nJy per observed pixel and nJy⁻².
    bands: the index among the C scene bands of the band that each observation names.
    """

    forward: Callable[[Tensor], list[Tensor]]
    images: Sequence[Tensor]
    ivars: Sequence[Tensor]
    bands: Sequence[int]

    @classmethod
    def of(cls, forward: Callable[[Tensor], list[Tensor]], observations: Sequence[Observation], bands: Sequence[Band]):
        """The data of a batch of one scene; ``forward`` is its ForwardModel."""
        assert all(len(o.image) == 1 for o in observations), "measure one scene at a time"
        names = [band.name for band in bands]
        images, ivars = [o.image[0] for o in observations], [o.ivar[0] for o in observations]
        return cls(forward, images, ivars, [names.index(o.band.name) for o in observations])


@dataclass(frozen=True)
class DataChecks:
    """Per source and scene band, each (K, C), NaN where the band has no data at the source.

    flux, flux_err: maximum-likelihood flux and its error, nJy.
    chi2: reduced chi-square of the posterior mean's residual, pixels weighted by the source's light.
    masked: fraction of the source's light (squared) that falls on observed pixels of zero weight; 1 without any data.
    """

    flux: np.ndarray
    flux_err: np.ndarray
    chi2: np.ndarray
    masked: np.ndarray


def check_against_data(mean: Tensor, names: Sequence[str], segments: Segments, data: Data) -> DataChecks:
    """Fit and test every source of a posterior mean (C, H, W) against its scene's observations.

    A source's template is the mean's VIS light (the detection bands' sum without VIS) in its segment at unit flux, the
    same in all bands: t_k = A · template. An observation counts for the band it names. Per band all sources are fitted
    together, so that neighbours do not share light: f = (Tᵀ N⁻¹ T)⁻¹ Tᵀ N⁻¹ y, which for a lone source is
    tᵀ N⁻¹ y / tᵀ N⁻¹ t; the error is the diagonal of the inverse. Light outside all segments is not in the model.
    """
    count, channels = len(segments), len(names)
    templates = _templates(mean, names, segments)
    projected = _project(templates, channels, data)
    model = data.forward(mean[None].to(data.images[0]))
    flux, flux_err, chi2 = (np.full((count, channels), np.nan) for _ in range(3))
    masked = np.ones((count, channels))
    for band in sorted(set(data.bands)) if count else []:
        chosen = [o for o, b in enumerate(data.bands) if b == band]
        light = torch.cat([projected[o] for o in chosen], dim=1)
        ivar = torch.cat([data.ivars[o].flatten() for o in chosen]).to(light)
        image = torch.cat([data.images[o].flatten() for o in chosen]).to(light)
        residual = image - torch.cat([model[o].flatten() for o in chosen]).to(light)
        image, residual = (torch.where(ivar > 0, a, 0.0) for a in (image, residual))  # NaN pixels have zero weight
        flux[:, band], flux_err[:, band] = _fit(light, image, ivar)
        weight = light.abs() * (ivar > 0)
        chi2[:, band] = ((weight @ (residual**2 * ivar)) / weight.sum(1)).cpu()
        masked[:, band] = (light.square() @ (ivar <= 0).to(light) / light.square().sum(1)).cpu()
    return DataChecks(flux, flux_err, chi2, masked)


def _templates(mean: Tensor, names: Sequence[str], segments: Segments) -> Tensor:
    """(K, H, W) float64, unit sum; NaN where a segment's VIS light is not positive."""
    light = (mean[list(names).index("VIS")] if "VIS" in names else mean.sum(0)).double()
    labels = torch.as_tensor(segments.labels.astype(np.int64), device=light.device)
    light = (
        torch.stack([light * (labels == k + 1) for k in range(len(segments))])
        if len(segments)
        else light.new_zeros(0, *light.shape)
    )
    total = light.sum((-2, -1), keepdim=True)
    return torch.where(total > 0, light / total, torch.nan)


def _project(templates: Tensor, channels: int, data: Data) -> list[Tensor]:
    """Observed templates, (K, h·w) float64 per observation."""
    if len(templates) == 0:  # an empty sky
        return [image.new_zeros(0, image.numel(), dtype=torch.float64) for image in data.images]
    chunks = []
    for part in templates.to(data.images[0]).split(_CHUNK):
        seen = data.forward(part[:, None].expand(-1, channels, -1, -1))
        chunks.append([image.flatten(1).double() for image in seen])
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]


def _fit(light: Tensor, image: Tensor, ivar: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood fluxes and errors (K,) of templates (K, P) on pixels (P,); NaN for sources without data."""
    normal = ((light * ivar) @ light.mT).cpu().numpy()
    right = ((light * ivar) @ image).cpu().numpy()
    information = np.diag(normal)
    flux, error = np.full(len(normal), np.nan), np.full(len(normal), np.nan)
    # A source whose light only grazes the data by its wings is not measured by them.
    full = light.square().sum(1).cpu().numpy() * float(ivar.max())
    seen = np.flatnonzero(information > 1e-3 * full)
    if len(seen):
        covariance = np.linalg.pinv(normal[np.ix_(seen, seen)], hermitian=True)
        flux[seen], error[seen] = covariance @ right[seen], np.sqrt(np.diag(covariance))
    return flux, error
