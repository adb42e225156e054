"""What no sample explains: a search for what is left of the data under the samples (METHOD section 7).

A prior makes what it does not know fainter than it is, and leaves some of it in the residuals y − A x_k − M ν_k. For an
exact posterior their mean over the samples has the covariance N − V, V that of A x_k + M ν_k. Dividing by it, not by
the noise, matters: of an object of 10σ half of which is recovered 5σ of the noise are left, and 7 of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jointdiff.correlation import power_at
from jointdiff.forward import ForwardModel, frequencies, gaussian_transfer, half_plane_weights, wavenumber
from jointdiff.reconstruct.base import Draws, misfits
from jointdiff.scene import Grid, Observation

BLOBS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""FWHM (arcsec, on the scene) of what is looked for in the light of all bands together."""

RINGS, LINE = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0), 0.25
"""Radii (arcsec) of rings likewise, and the FWHM of their lines."""

TEXTURE, CELLS = 0.2, (0.4, 0.8)
"""FWHM (arcsec) of the blobs whose squares are summed over a patch, in every band and in all: so what has no known
shape is looked for. Those of a texture have one of twice the width and the same flux taken off."""

PATCHES = (4.0, 8.0)
"""FWHM of a patch over that of its blobs."""

LIGHT_ERROR, FINE_ERROR = 0.03, 0.1
"""Share of the mean's own light that counts as explained, and of textures: what the demo's network, and a scene that
cannot hold all of VIS, are off by at bright sources."""

LEAST, SMOOTH = 0.4, 0.8
"""Variance of a residual over that of its noise, at least, and the FWHM (arcsec) over which the samples' part in it is
averaged: where some samples have a source, V of a pixel may be as large as its noise, and says little of the rest."""

SEEN = 0.2
"""Share of a template, or of a patch, that must be observed for it to be judged."""

ALL = "all"
"""In place of a band: all that were observed."""

_EIGENVALUES = 24
"""Along either axis of a patch; the rest is less than rounding."""


@dataclass(frozen=True)
class Kind:
    """What stands out: a blob or a patch (of a texture) of that FWHM, or a ring of that radius (arcsec); in a band or
    in ALL."""

    shape: str
    size: float
    band: str


@dataclass(frozen=True)
class Significance:
    """How much stands out around each pixel of a scene: sigma (H, W), deviations of a Gaussian; as what: the index
    (H, W) of one of ``kinds``."""

    sigma: np.ndarray
    kind: np.ndarray
    kinds: tuple[Kind, ...]

    def crop(self, rows: slice, columns: slice) -> "Significance":
        """That of a part of the scene."""
        return Significance(self.sigma[rows, columns], self.kind[rows, columns], self.kinds)


@dataclass(frozen=True)
class _Seen:
    """One observation A_o = T c_oᵀ, as spectra (H, W//2 + 1): Tᵀ N⁻¹ of the residuals of the samples (S, …) and of the
    mean; Tᵀ of the inverse variances, and of 1 where a pixel was seen. transfer: T. whiteness: 1/ρ, or 1. area: of a
    pixel, in the scene's."""

    band: str
    residuals: Tensor
    light: Tensor
    depth: Tensor
    pixels: Tensor
    transfer: Tensor
    whiteness: Tensor
    area: float


@torch.no_grad()
def significance(draws: Draws, model: ForwardModel, observations: Sequence[Observation]) -> Significance:
    """What the samples of one sky leave unexplained, as any of the kinds that are looked for.

    A template t about a pixel, seen as T t, has the score s = tᵀ Tᵀ N⁻¹ r̄ with r̄ the samples' mean residual, and

        z = s/√(max(V_N − (1 − 1/S) V, LEAST V_N) + (LIGHT_ERROR ℓ)²),   V_N = tᵀ Tᵀ N⁻¹ T t,

    V the variance of s over the samples, averaged over SMOOTH, and ℓ the score of the mean's light. Patches: Σ (z² − 1)
    of a blob under Gaussian weights, which is that of independent z as many as it has degrees of freedom.
    """
    seen = [_of(*one) for one in _each(draws, model, observations)]
    bands = {band: [o for o in seen if o.band == band] for band in dict.fromkeys(o.band for o in seen)}
    search = _Search(model.grid, bands, seen)
    for fwhm in BLOBS:
        search.shape("blob", fwhm, search.blob(fwhm))
    for radius in RINGS:
        search.shape("ring", radius, search.ring(radius))
    fine = search.blob(TEXTURE)
    search.patches("texture", TEXTURE, fine - search.blob(2 * TEXTURE), FINE_ERROR * fine)
    for fwhm in CELLS:
        search.patches("patch", fwhm, search.blob(fwhm), LIGHT_ERROR * search.blob(fwhm))
    return search.found()


def _each(draws: Draws, model: ForwardModel, observations: Sequence[Observation]):
    """Each observation, the residuals (S, h, w) of the samples, the image (1, h, w) of their mean, and A's parts."""
    images = [o.image for o in observations]
    left: list[list[Tensor]] = [[] for _ in images]
    for number, sample in enumerate(draws.samples.to(images[0])):  # one by one, which bounds memory
        own = [offset[number : number + 1] for offset in draws.offsets]
        for parts, part in zip(left, misfits(images, model(sample[None]), own), strict=True):
            parts.append(part)
    light = model(draws.samples.mean(0, keepdim=True).to(images[0]))
    residuals = map(torch.cat, left)
    return zip(observations, residuals, light, model.sums, model.transfers, strict=True)


def _of(o: Observation, residuals: Tensor, light: Tensor, total, transfer: Tensor) -> _Seen:
    whiteness, grid = torch.ones_like(transfer[0].real), total.scene
    footprint = grid.footprint(o.frame.grid)
    if o.correlation is not None:
        whiteness = 1 / power_at(o.correlation, o.frame.grid.shape, frequencies(grid) @ footprint)[0]
    back = transfer[0].conj()
    scores = back * total.transpose(o.weigh(residuals))
    pixels = (o.ivar > 0).to(o.ivar)
    seen = back * total.transpose(o.weigh(light))[0]
    depth, counted = (total.transpose(image)[0] for image in (o.ivar, pixels))
    area = abs(float(np.linalg.det(footprint)))
    return _Seen(o.band.name, scores, seen, depth, counted, transfer[0], whiteness, area)


def _field(spectrum: Tensor, grid: Grid) -> Tensor:
    return torch.fft.irfft2(spectrum, s=grid.shape)


class _Search:
    """The most significant kind about each pixel, of all that were looked for.

    bands: the observations of each band; seen: all of them.
    """

    def __init__(self, grid: Grid, bands: Mapping[str, Sequence[_Seen]], seen: Sequence[_Seen]):
        self._grid, self._bands, self._seen, self._like = grid, bands, seen, seen[0].transfer.real
        self._columns = torch.as_tensor(half_plane_weights(grid)).to(self._like)
        self._sigma, self._kind = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.int16)
        self._kinds: list[Kind] = []

    def blob(self, fwhm: float) -> Tensor:
        """Spectrum (H, W//2 + 1) of a Gaussian of unit flux."""
        return torch.as_tensor(gaussian_transfer(self._grid, fwhm)).to(self._like)

    def ring(self, radius: float) -> Tensor:
        """Spectrum of a circular line of unit flux."""
        phase = torch.as_tensor(2 * math.pi * radius * wavenumber(self._grid))
        return self.blob(LINE) * torch.special.bessel_j0(phase).to(self._like)

    def shape(self, name: str, size: float, template: Tensor) -> None:
        """Look for a template in the light of all bands added up."""
        z, _ = self._deviations(self._seen, template, LIGHT_ERROR * template)
        self._take(z.abs(), Kind(name, size, ALL))

    def patches(self, name: str, fwhm: float, cell: Tensor, ignored: Tensor) -> None:
        """Look for patches in which the squares of a cell's deviations are too large: in each band, in all together."""
        groups = [*self._bands.items(), (ALL, self._seen)]
        squares = [self._squares(group, cell, ignored) for _, group in groups]
        for size in PATCHES:
            patch = self.blob(size * fwhm)
            sums = [self._summed(*one, patch) for one in squares]
            for (band, _), one in zip(groups, sums, strict=True):
                self._take(_sigma([one]), Kind(name, size * fwhm, band))
            self._take(_sigma(sums[:-1]), Kind(name, size * fwhm, ALL))

    def found(self) -> Significance:
        return Significance(self._sigma, self._kind, tuple(self._kinds))

    def _take(self, sigma: Tensor, kind: Kind) -> None:
        new = sigma.float().cpu().numpy()
        self._kind[new > self._sigma] = len(self._kinds)
        self._sigma = np.maximum(self._sigma, new)
        self._kinds.append(kind)

    def _deviations(self, group: Sequence[_Seen], template: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor]:
        """z (H, W) of a template in the light of some observations added up, and true where it is judged; 0 elsewhere.

        ignored: the template of the mean's light that counts as explained.
        """
        grid = self._grid
        scores = _field(template * sum(o.residuals for o in group), grid)
        light = _field(ignored * sum(o.light for o in group), grid)
        noise, share = torch.zeros_like(light), torch.zeros_like(light)
        for o in group:
            t = o.transfer * template
            power = t.abs().square() * self._columns
            factor = (power * o.whiteness).sum() / power.sum()  # of correlated noise, where weights are even
            square = torch.fft.rfft2(_field(t, grid).square())
            noise = noise + factor * _field(square.conj() * o.depth, grid)
            share = torch.maximum(share, _field(square.conj() * o.pixels, grid) * o.area / square[0, 0].real)
        judged = (share > SEEN) & (noise > 0)
        noise = torch.where(judged, noise, 1.0)
        if (count := len(scores)) > 1:
            part = torch.where(judged, scores.var(0) * (1 - 1 / count) / noise, 0.0)
            part = _field(torch.fft.rfft2(part) * self.blob(SMOOTH), grid)
            variance = noise * (1 - part).clamp(min=LEAST, max=1.0) + light.square()
        else:
            variance = noise + light.square()
        return torch.where(judged, scores.mean(0) * variance.rsqrt(), 0.0), judged

    def _squares(self, group: Sequence[_Seen], cell: Tensor, ignored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z² and 1 (H, W) about each pixel, 0 where not judged; and the spectrum of ρ_z², of even noise."""
        z, judged = self._deviations(group, cell, ignored)
        each = [o.depth[0, 0].real * (o.transfer * cell).abs().square() * o.whiteness for o in group]
        power = torch.stack(each).sum(0)
        correlation = _field(power.to(power.dtype.to_complex()), self._grid)
        correlation = correlation / correlation[0, 0].clamp(min=torch.finfo(power.dtype).tiny)
        return z.square(), judged.to(z), torch.fft.rfft2(correlation.square()).real

    def _summed(self, squares: Tensor, judged: Tensor, shared: Tensor, patch: Tensor) -> "_Sum":
        total = float((shared * patch.square() * self._columns).sum())
        freedom = self._grid.shape[0] * self._grid.shape[1] / total if total > 0 else 1.0
        mean, count = (_field(torch.fft.rfft2(image) * patch, self._grid) for image in (squares, judged))
        seen = count > SEEN
        return _Sum(torch.where(seen, freedom * (mean - count), 0.0), torch.where(seen, count, 0.0), freedom)


@dataclass(frozen=True)
class _Sum:
    """Σ (z² − 1) over a patch about each pixel (H, W), in independent ones; the share (H, W) of it that is judged; and
    its degrees of freedom where all is."""

    excess: Tensor
    share: Tensor
    freedom: float

    @property
    def spectrum(self) -> np.ndarray:
        """λ, of which the sum is Σ λ_i (χ²_i − 1): that of a Gaussian process under Gaussian weights, geometric along
        either axis (Mehler), with Σ λ = Σ λ² the degrees of freedom."""
        root = math.sqrt(max(self.freedom, 1.0))
        line = (1 - (q := (root - 1) / (root + 1))) * q ** np.arange(_EIGENVALUES)
        return self.freedom * np.outer(line, line).ravel()


def _sigma(sums: Sequence[_Sum]) -> Tensor:
    """Significance (H, W) of patches added up, in deviations of a Gaussian, by the saddlepoint.

    With K(s) = −½ Σ log(1 − 2 λ s): at x = K′(s), w = √(2 (s x − K)) and v = s √K″, it is w + log(v/w)/w
    (Barndorff-Nielsen 1986, Biometrika 73, 307).
    """
    values = np.concatenate([one.spectrum for one in sums])
    s = -np.expm1(-np.r_[-2:-0.02:40j, 0.02:12:200j]) / (2 * values.max())
    rest = 1 - 2 * s[:, None] * values
    x = (values / rest).sum(1)
    w = np.sign(s) * np.sqrt(2 * s * x + np.log(rest).sum(1))
    v = s * np.sqrt(2 * ((values / rest) ** 2).sum(1))
    excess, weight = (
        torch.stack(parts).sum(0) for parts in zip(*((o.excess, o.freedom * o.share) for o in sums), strict=True)
    )
    seen = weight > 0
    scaled = excess * (sum(one.freedom for one in sums) / torch.where(seen, weight, 1.0)).sqrt()
    sigma = np.interp(scaled.cpu().numpy(), x - values.sum(), w + np.log(v / w) / w)
    return torch.as_tensor(sigma).to(scaled).where(seen, 0.0)
