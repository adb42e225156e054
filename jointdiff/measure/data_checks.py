"""What the observations themselves say about the sources of a reconstruction, without its prior.

flux_ml: maximum-likelihood fluxes of all sources of a scene together, each with the shape that VIS gives it (METHOD
section 8); chi2: how well the posterior mean explains the pixels under each source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, hstack, vstack
from torch import Tensor

from jointdiff.correlation import weighed
from jointdiff.measure.detection import Segments
from jointdiff.scene import Band, Observation

_CHUNK = 16
"""Sources projected at a time."""

_FAINTEST = 1e-6
"""Share of a template's peak below which float32 transforms leave only rounding; not kept."""


@dataclass(frozen=True)
class Data:
    """The observations of one scene.

    forward: linear map of scenes (B, C, H, W), nJy per pixel, to one image (B, h, w) per observation.
    images, ivars: (h, w) per observation, nJy per observed pixel and nJy⁻².
    bands: the index among the C scene bands of the band that each observation names.
    correlations: ρ (h, w//2 + 1) of each observation's noise, None where it is white; none, where it is so in all.
    """

    forward: Callable[[Tensor], list[Tensor]]
    images: Sequence[Tensor]
    ivars: Sequence[Tensor]
    bands: Sequence[int]
    correlations: Sequence[Tensor | None] = ()

    @classmethod
    def of(cls, forward: Callable[[Tensor], list[Tensor]], observations: Sequence[Observation], bands: Sequence[Band]):
        """The data of a batch of one scene; ``forward`` is its ForwardModel."""
        assert all(len(o.image) == 1 for o in observations), "measure one scene at a time"
        names = [band.name for band in bands]
        images, ivars = [o.image[0] for o in observations], [o.ivar[0] for o in observations]
        correlations = [None if o.correlation is None else o.correlation[0] for o in observations]
        return cls(forward, images, ivars, [names.index(o.band.name) for o in observations], correlations)

    def weigh(self, o: int, images: csr_array) -> csr_array:
        """N⁻¹ of images, sparse (K, h·w), of observation ``o``; nothing far from their light."""
        ivar, correlation = self.ivars[o].double(), self.correlations[o] if self.correlations else None
        if correlation is None:
            return images.multiply(ivar.cpu().numpy().ravel()).tocsr()
        rows = []
        for start in range(0, images.shape[0], _CHUNK):
            dense = torch.as_tensor(images[start : start + _CHUNK].toarray()).to(ivar).unflatten(1, ivar.shape)
            rows.append(_sparse(weighed(dense, ivar[None], correlation[None].double())))
        return vstack(rows, format="csr")


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
    flux, flux_err, chi2 = (np.full((count, channels), np.nan) for _ in range(3))
    masked = np.ones((count, channels))
    if count == 0:  # an empty sky
        return DataChecks(flux, flux_err, chi2, masked)
    projected = _project(_light(mean, names), segments, channels, data)
    model = data.forward(mean[None].to(data.images[0]))
    for band in sorted(set(data.bands)):
        chosen = [o for o, b in enumerate(data.bands) if b == band]
        light = hstack([projected[o] for o in chosen], format="csr")
        weighted = hstack([data.weigh(o, projected[o]) for o in chosen], format="csr")
        ivar, image, seen = (_pixels(images, chosen) for images in (data.ivars, data.images, model))
        residual = image - seen
        image, residual = (np.where(ivar > 0, a, 0.0) for a in (image, residual))  # NaN pixels have zero weight
        flux[:, band], flux_err[:, band] = _fit(light, weighted, image, ivar.max())
        weight, square = abs(light), light.multiply(light).tocsr()
        with np.errstate(invalid="ignore"):  # a source without light
            chi2[:, band] = (weight @ (residual**2 * ivar)) / (weight @ (ivar > 0))
            masked[:, band] = (square @ (ivar <= 0)) / _total(square)
    return DataChecks(flux, flux_err, chi2, masked)


def _light(mean: Tensor, names: Sequence[str]) -> Tensor:
    """(H, W) float64: what the templates are cut from."""
    return (mean[list(names).index("VIS")] if "VIS" in names else mean.sum(0)).double()


def _pixels(images: Sequence[Tensor], chosen: Sequence[int]) -> np.ndarray:
    """(P,) float64, all pixels of the chosen observations."""
    return np.concatenate([images[o].detach().double().cpu().numpy().ravel() for o in chosen])


def _project(light: Tensor, segments: Segments, channels: int, data: Data) -> list[csr_array]:
    """Observed templates, sparse (K, h·w) per observation: a source's light ends where its PSF stamp does.

    Only _CHUNK of them are ever whole images, so memory grows with the sources' light, not with sources × pixels. A
    template is NaN, and its row empty, where a segment's light is not positive.
    """
    labels = torch.as_tensor(segments.labels.astype(np.int64), device=light.device)
    numbers = torch.arange(1, len(segments) + 1, device=light.device)
    rows: list[list[csr_array]] = [[] for _ in data.images]
    for part in numbers.split(_CHUNK):
        templates = light * (labels == part.view(-1, 1, 1))
        total = templates.sum((-2, -1), keepdim=True)
        templates = torch.where(total > 0, templates / total, torch.nan).to(data.images[0])
        for row, image in zip(rows, data.forward(templates[:, None].expand(-1, channels, -1, -1)), strict=True):
            row.append(_sparse(image.double()))
    return [vstack(row, format="csr") for row in rows]


def _sparse(images: Tensor) -> csr_array:
    """Images (K, h, w) as rows (K, h·w), without what is but rounding."""
    flat = images.flatten(1)
    bright = flat.abs() > _FAINTEST * flat.abs().amax(1, keepdim=True)
    return csr_array(torch.where(bright, flat, 0.0).cpu().numpy())


def _total(light: csr_array) -> np.ndarray:
    return np.asarray(light.sum(1)).ravel()


def _fit(light: csr_array, weighted: csr_array, image: np.ndarray, deepest: float) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood fluxes and errors (K,) of templates T (K, P) on pixels (P,); NaN for sources without data.

    weighted: N⁻¹ T. deepest: the largest inverse variance of a pixel.
    """
    normal, right = (weighted @ light.T).toarray(), weighted @ image
    information = np.diag(normal)
    flux, error = np.full(len(normal), np.nan), np.full(len(normal), np.nan)
    # A source whose light only grazes the data by its wings is not measured by them.
    full = _total(light.multiply(light)) * deepest
    seen = np.flatnonzero(information > 1e-3 * full)
    if len(seen):
        covariance = np.linalg.pinv(normal[np.ix_(seen, seen)], hermitian=True)
        flux[seen], error[seen] = covariance @ right[seen], np.sqrt(np.diag(covariance))
    return flux, error
