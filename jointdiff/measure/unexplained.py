"""What no sample explains: a search for what is left of the data under the samples (METHOD section 7).

A prior makes what it does not know fainter than it is, and leaves some of it in the residuals y − A x_k − M ν_k. For an
exact posterior their mean over the samples has the covariance N − V, V that of A x_k + M ν_k. Dividing by it, not by
the noise, matters: of an object of 10σ half of which is recovered 5σ of the noise are left, and 7 of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import label, maximum_filter, maximum_position
from torch import Tensor

from jointdiff.correlation import power_at
from jointdiff.forward import ForwardModel, frequencies, gaussian_transfer, half_plane_weights, wavenumber
from jointdiff.reconstruct.base import Draws, misfits
from jointdiff.scene import Grid, Observation

ALARM = 5.5
"""Significance of a peak, in deviations of a Gaussian (METHOD section 7)."""

BLOBS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""FWHM (arcsec, on the scene) of what is looked for in the light of all bands together."""

RINGS, LINE = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0), 0.25
"""Radii (arcsec) of rings likewise, and the FWHM of their lines."""

CELLS, PATCHES = (0.2, 0.4, 0.8), (4.0, 8.0)
"""FWHM (arcsec) of the blobs whose squares are summed over a patch, and the patch's in units of it: so what has no
known shape is looked for, in every band and in all."""

LIGHT_ERROR = 0.02
"""Share of the mean's own light that counts as explained: what a network is off by at bright sources."""

LEAST = 0.5
"""Variance of a residual over that of the noise, at least: V is what the samples say, which may be too much."""

SEEN = 0.2
"""Share of a template, or of a patch, that must be observed for it to be judged."""

NEAR = 0.5
"""Arcsec within which two peaks are one, and a peak is a source's."""

ALL = "all"
"""In place of a band: all that were observed, their light added up as it stands."""


@dataclass(frozen=True)
class Kind:
    """What stands out: a blob or patch of that FWHM, or a ring of that radius (arcsec), in a band or in ALL."""

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


@dataclass(frozen=True)
class Peak:
    """A place (y, x), pixels, where more than ALARM stands out."""

    y: int
    x: int
    sigma: float
    kind: Kind


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

    V the variance of s over the samples and ℓ the score of the mean's light.
    """
    grid, seen = model.grid, [_of(*one) for one in _each(draws, model, observations)]
    bands = {band: [o for o in seen if o.band == band] for band in dict.fromkeys(o.band for o in seen)}
    groups = bands | ({ALL: seen} if len(bands) > 1 else {})
    best = _Best(grid.shape)
    whole = list(groups)[-1]
    for fwhm in BLOBS:
        z, _ = _deviations(groups[whole], _blob(grid, fwhm).to(model.responses), grid)
        best.take(z.abs(), Kind("blob", fwhm, whole))
    for radius in RINGS:
        z, _ = _deviations(groups[whole], _ring(grid, radius).to(model.responses), grid)
        best.take(z.abs(), Kind("ring", radius, whole))
    for fwhm in CELLS:
        cell = _blob(grid, fwhm).to(model.responses)
        squares = {band: _Squares.of(group, cell, grid) for band, group in groups.items()}
        for size in PATCHES:
            patch = torch.as_tensor(gaussian_transfer(grid, size * fwhm)).to(cell)
            sums = {band: one.over(patch, grid) for band, one in squares.items()}
            for band, one in sums.items():
                best.take(_sigma([one]), Kind("patch", size * fwhm, band))
            best.take(_sigma([sums[band] for band in bands]), Kind("patch", size * fwhm, ALL))
    return best.found()


def peaks(found: Significance, scale: float, weight: np.ndarray | None = None) -> list[Peak]:
    """Where more than ALARM stands out, the strongest first; one for all that is nearer than NEAR to each other.

    scale: arcsec a pixel. weight: (H, W), zero where nothing is scored.
    """
    sigma = found.sigma if weight is None else np.where(np.asarray(weight) > 0, found.sigma, 0.0)
    regions, count = label(maximum_filter(sigma > ALARM, size=_width(scale), mode="constant"))
    places = maximum_position(sigma, regions, range(1, count + 1)) if count else []
    listed = [Peak(int(y), int(x), float(sigma[y, x]), found.kinds[found.kind[y, x]]) for y, x in places]
    return sorted(listed, key=lambda peak: -peak.sigma)


def unexplained(labels: np.ndarray, count: int, found: Significance, scale: float) -> np.ndarray:
    """(K,), true for those of the K sources with these segments (H, W) to which something unexplained is near."""
    near = maximum_filter(found.sigma > ALARM, size=_width(scale), mode="constant")
    return np.isin(np.arange(1, count + 1), labels[near])


def _width(scale: float) -> int:
    return 2 * round(NEAR / scale) + 1


def _each(draws: Draws, model: ForwardModel, observations: Sequence[Observation]):
    """Each observation, with the residuals (S, h, w) of the samples, the image (1, h, w) of their mean, and A's parts."""
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
    sums = [total.transpose(image)[0] for image in (o.ivar, pixels)]
    area = abs(float(np.linalg.det(footprint)))
    return _Seen(
        o.band.name, scores, back * total.transpose(o.weigh(light))[0], *sums, transfer[0], whiteness, area
    )


def _blob(grid: Grid, fwhm: float) -> Tensor:
    return torch.as_tensor(gaussian_transfer(grid, fwhm))


def _ring(grid: Grid, radius: float) -> Tensor:
    return _blob(grid, LINE) * torch.special.bessel_j0(torch.as_tensor(2 * math.pi * radius * wavenumber(grid)))


def _field(spectrum: Tensor, grid: Grid) -> Tensor:
    return torch.fft.irfft2(spectrum, s=grid.shape)


def _deviations(group: Sequence[_Seen], template: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """z (H, W) of a template, in the light of some observations added up; and true where it is judged, 0 elsewhere."""
    scores = _field(template * sum(o.residuals for o in group), grid)
    light = _field(template * sum(o.light for o in group), grid)
    noise, share = torch.zeros_like(light), torch.zeros_like(light)
    for o in group:
        t = o.transfer * template
        power = t.abs().square() * torch.as_tensor(half_plane_weights(grid)).to(light)
        factor = (power * o.whiteness).sum() / power.sum()  # of correlated noise, where weights are even
        square = torch.fft.rfft2(_field(t, grid).square())
        noise = noise + factor * _field(square.conj() * o.depth, grid)
        share = torch.maximum(share, _field(square.conj() * o.pixels, grid) * o.area / square[0, 0].real)
    judged = (share > SEEN) & (noise > 0)
    count = len(scores)
    spread = scores.var(0) * (1 - 1 / count) if count > 1 else torch.zeros_like(light)
    variance = torch.maximum(noise - spread, LEAST * noise) + (LIGHT_ERROR * light).square()
    return torch.where(judged, scores.mean(0) * variance.clamp(min=1e-30).rsqrt(), 0.0), judged


@dataclass(frozen=True)
class _Squares:
    """z² of a blob about each pixel (H, W), 0 where not judged; and ρ_z² of white noise (H, W//2 + 1), as a spectrum."""

    squares: Tensor
    judged: Tensor
    shared: Tensor

    @classmethod
    def of(cls, group: Sequence[_Seen], cell: Tensor, grid: Grid) -> "_Squares":
        z, judged = _deviations(group, cell, grid)
        depths = [o.depth[0, 0].real for o in group]
        power = sum(d * (o.transfer * cell).abs().square() * o.whiteness for d, o in zip(depths, group, strict=True))
        correlation = _field(power.to(power.dtype.to_complex()), grid)
        correlation = correlation / correlation[0, 0].clamp(min=1e-30)
        return cls(z.square(), judged.to(z), torch.fft.rfft2(correlation.square()).real)

    def over(self, patch: Tensor, grid: Grid) -> tuple[Tensor, Tensor, float]:
        """Σ n (z² − 1) over a patch about each pixel; n (H, W), the numbers of independent ones; and n where all is
        seen: a sum of Gaussian weights over a Gaussian process has the variance of χ² of n degrees of freedom."""
        weights = torch.as_tensor(half_plane_weights(grid)).to(patch)
        n = grid.shape[0] * grid.shape[1] / float((self.shared * patch.square() * weights).sum())
        squares, count = (_field(torch.fft.rfft2(image) * patch, grid) for image in (self.squares, self.judged))
        judged = count > SEEN
        return torch.where(judged, n * (squares - count), 0.0), torch.where(judged, n * count, 0.0), n



def _sigma(sums: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Significance (H, W) of patches added up, as deviations of a Gaussian.

    Each is Σ λ_i χ²_i, λ the spectrum of a Gaussian process under Gaussian weights, geometric with 1/Σλ² = n (Mehler).
    Its first three moments are those of a χ² of ν degrees of freedom (Buckley & Eagleson 1988, Austral. J. Statist. 30A,
    150), whose cube root is nearly Gaussian (Wilson & Hilferty 1931, PNAS 17, 684).
    """
    excess, count = (torch.stack(parts).sum(0) for parts in list(zip(*sums, strict=True))[:2])
    third = torch.zeros_like(count)
    for _, own, n in sums:
        q = (math.sqrt(max(n, 1.0)) - 1) / (math.sqrt(max(n, 1.0)) + 1)
        third = third + own * n**2 * ((1 - q) ** 3 / (1 - q**3)) ** 2
    freedom = count**3 / third.square().clamp(min=1e-30)
    ratio = (1 + excess / (freedom * count).sqrt().clamp(min=1e-15)).clamp(min=0)
    part = 2 / (9 * freedom.clamp(min=1e-3))
    return torch.where(count > 0, (ratio ** (1 / 3) - 1 + part) / part.sqrt(), 0.0)


class _Best:
    """The most significant kind about each pixel, of all that were taken."""

    def __init__(self, shape: tuple[int, int]):
        self._sigma, self._kind, self._kinds = np.zeros(shape, np.float32), np.zeros(shape, np.int16), []

    def take(self, sigma: Tensor, kind: Kind) -> None:
        new = sigma.float().cpu().numpy()
        self._kind[new > self._sigma] = len(self._kinds)
        self._sigma = np.maximum(self._sigma, new)
        self._kinds.append(kind)

    def found(self) -> Significance:
        return Significance(self._sigma, self._kind, tuple(self._kinds))
