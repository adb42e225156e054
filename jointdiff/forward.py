"""The only imaging physics: the linear map A from a scene to its observations, with an exact adjoint.

    y_o(p) = |J_o| Σ_b c_ob ∫_{|k|<1/2} exp(2πi k·s_p) P̂_o(J_oᵀ k) / T̂(k) x̂_b(k) dk        (METHOD section 4)

k is in cycles per scene pixel, s_p in scene pixels. The scene is periodic on its grid. Any scale ratio, sub-pixel
shift, rotation and flip; aligned grids use two small DFT matrices, others a direct sum.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from jointdiff.correlation import power_at
from jointdiff.errors import InputError
from jointdiff.scene import Band, Frame, Grid, Observation, pair_of_pairs
from jointdiff.units import SIGMA_PER_FWHM

ALIGNED = 1e-3
"""Lean of one grid against another, in scene pixels over its whole side, below which they count as aligned."""

_CHUNK = 1 << 22
"""Complex numbers that the direct sum holds at a time (64 MB in double precision)."""


def frequencies(grid: Grid) -> np.ndarray:
    """Half-plane frequencies (H, W//2 + 1, 2) of ``torch.fft.rfft2`` on the grid, cycles per pixel."""
    ky, kx = np.fft.fftfreq(grid.shape[0]), np.fft.rfftfreq(grid.shape[1])
    return np.stack(np.meshgrid(ky, kx, indexing="ij"), axis=-1)


def half_plane_weights(grid: Grid) -> np.ndarray:
    """(W//2 + 1,): how often each column of the half plane stands in the full plane."""
    columns = np.arange(grid.shape[1] // 2 + 1)
    return np.where((columns == 0) | (2 * columns == grid.shape[1]), 1.0, 2.0)


def wavevectors(grid: Grid) -> np.ndarray:
    """k (H, W//2 + 1, 2) of ``torch.fft.rfft2`` on the grid, cycles per arcsec on the sky (y, x)."""
    return frequencies(grid) @ np.linalg.inv(grid.matrix)


def wavenumber(grid: Grid) -> np.ndarray:
    """|k| (H, W//2 + 1) of ``torch.fft.rfft2`` on the grid, cycles per arcsec."""
    return np.linalg.norm(wavevectors(grid), axis=-1)


def gaussian_transfer(grid: Grid, fwhm: float) -> np.ndarray:
    """Fourier transform (H, W//2 + 1) of a unit Gaussian of FWHM in arcsec."""
    return np.exp(-2 * (np.pi * SIGMA_PER_FWHM * fwhm * wavenumber(grid)) ** 2)


class FourierSum:
    """Evaluates a field given by its spectrum on a periodic grid at the pixel centres of another grid.

    field(p) = 1/(HW) Σ_k w_k Re[X(k) exp(2πi k·s_p)], over the half plane of rfft2 with Hermitian weights w_k.
    """

    def __init__(self, scene: Grid, grid: Grid, dtype: torch.dtype, device: torch.device):
        self.scene, self.grid = scene, grid
        footprint, start = scene.footprint(grid), scene.locate(grid.origin)
        lean = np.abs(footprint - np.diag(np.diag(footprint))).max() * max(grid.shape)
        self.aligned = bool(lean < ALIGNED)
        self._weights = torch.as_tensor(half_plane_weights(scene)).to(device, dtype)
        if self.aligned:
            axes = zip(
                (np.fft.fftfreq, np.fft.rfftfreq), scene.shape, grid.shape, start, np.diag(footprint), strict=True
            )
            self._matrices = [
                torch.tensor(np.exp(2j * np.pi * np.outer(s0 + j * np.arange(n), freq(m)))).to(
                    device, dtype.to_complex()
                )
                for freq, m, n, s0, j in axes
            ]
        else:
            pixels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1).reshape(-1, 2)
            self._positions = torch.tensor(start + pixels @ footprint.T, dtype=torch.float64, device=device)
            self._wavevectors = torch.tensor(frequencies(scene).reshape(-1, 2), dtype=torch.float64, device=device)

    def __call__(self, spectrum: Tensor) -> Tensor:
        """(…, H, W//2 + 1) complex to (…, h, w) real."""
        spectrum = spectrum * (self._weights / (self.scene.shape[0] * self.scene.shape[1]))
        if self.aligned:
            rows, columns = self._matrices
            return (rows @ spectrum @ columns.mT).real
        flat = spectrum.flatten(-2)
        values = [(flat @ phases.mT).real for phases in self._phases(flat.dtype)]
        return torch.cat(values, dim=-1).unflatten(-1, self.grid.shape)

    def transpose(self, image: Tensor) -> Tensor:
        """(…, h, w) real to (…, H, W//2 + 1) complex: irfft2 of it is the exact adjoint of (call ∘ rfft2)."""
        if self.aligned:
            rows, columns = self._matrices
            return rows.mH @ image.to(rows.dtype) @ columns.conj()
        dtype = image.dtype.to_complex()
        flat, start = image.flatten(-2).to(dtype), 0
        total = flat.new_zeros(*flat.shape[:-1], len(self._wavevectors))
        for phases in self._phases(dtype):
            total = total + flat[..., start : start + len(phases)] @ phases.conj()
            start += len(phases)
        return total.unflatten(-1, (self.scene.shape[0], -1))

    def _phases(self, dtype: torch.dtype):
        """exp(2πi k·s) for runs of pixels, in double precision before rounding."""
        for positions in self._positions.split(max(1, _CHUNK // len(self._wavevectors))):
            angle = 2 * torch.pi * (positions @ self._wavevectors.mT)
            yield torch.polar(torch.ones_like(angle), angle).to(dtype)


@lru_cache(maxsize=64)
def fourier_sum(scene: Grid, grid: Grid, dtype: torch.dtype, device: torch.device) -> FourierSum:
    """A FourierSum; the matrices of the few geometries in use are kept."""
    return FourierSum(scene, grid, dtype, device)


def psf_transfer(scene: Grid, frame: Frame) -> Tensor:
    """P̂(Jᵀ k) of the frame's PSF stamps at the scene's frequencies, (B, H, W//2 + 1) complex, shift included.

    Zero beyond the stamp's own Nyquist frequency, where samples say nothing.
    """
    psf, size = frame.psf, frame.psf.shape[-1]
    footprint = scene.footprint(frame.grid) * frame.psf_scale
    corner = -footprint @ np.full(2, (size - 1) / 2)
    stamp = Grid((size, size), pair_of_pairs(footprint), (float(corner[0]), float(corner[1])))
    pixels = Grid(scene.shape, ((1.0, 0.0), (0.0, 1.0)), (0.0, 0.0))
    # Σ_n P[n] exp(-2πi k·s_n): the transpose of the Fourier sum onto the stamp's pixels.
    transfer = fourier_sum(pixels, stamp, psf.dtype, psf.device).transpose(psf)
    inside = np.abs(frequencies(scene) @ footprint).max(-1) <= 0.5 + 1e-9
    transfer = transfer * torch.tensor(inside, device=psf.device)
    return transfer if frame.shift is None else transfer * shift_phase(scene, frame.shift)


def shift_phase(scene: Grid, shift: Tensor) -> Tensor:
    """exp(2πi k·s), (B, H, W//2 + 1), for sky shifts (B, 2) in arcsec of the observed pixels."""
    angle = 2 * torch.pi * torch.einsum("hwi,bi->bhw", torch.as_tensor(wavevectors(scene)).to(shift), shift)
    return torch.polar(torch.ones_like(angle), angle)


def response(band: Band, bands: Sequence[Band]) -> tuple[list[float], float]:
    """How an observed band answers to the scene's bands: coefficients (C,), and their fractional scatter.

    One-hot where the filter is the scene band's own (or not named); colour terms where it differs.
    Raises InputError when the scene has no such band.
    """
    names = [b.name for b in bands]
    if band.name not in names:
        raise InputError(f"band {band.name} is not one of the scene's bands: {', '.join(names)}")
    nearest = names.index(band.name)
    if band.filter in ("", bands[nearest].filter):
        return [float(name == band.name) for name in names], 0.0
    from jointdiff.sed import colour_terms

    coefficients, scatter = colour_terms(band.filter, tuple(b.filter for b in bands), nearest)
    return list(coefficients), scatter


class ForwardModel:
    """The linear map A from scenes (B, C, H, W) to one image (B, h, w) per observation.

    transfers: (B, H, W//2 + 1) complex per observation, |J| P̂/T̂ with the shift's phase.
    responses: (O, C).
    """

    def __init__(self, grid: Grid, bands: Sequence[Band], target_fwhm: float, observations: Sequence[Observation]):
        self.grid, self.bands, self.target_fwhm = grid, tuple(bands), target_fwhm
        self.observed_bands = tuple(o.band for o in observations)
        frames = [o.frame for o in observations]
        like = frames[0].psf
        target = torch.as_tensor(gaussian_transfer(grid, target_fwhm)).to(like)
        areas = [abs(np.linalg.det(grid.footprint(f.grid))) for f in frames]
        self.transfers = [area * psf_transfer(grid, f) / target for area, f in zip(areas, frames, strict=True)]
        self.sums = [fourier_sum(grid, f.grid, like.dtype, like.device) for f in frames]
        self.responses = like.new_tensor([response(o.band, bands)[0] for o in observations])

    def __call__(self, scene: Tensor) -> list[Tensor]:
        """A x: scenes (B, C, H, W) in nJy per scene pixel to images (B, h, w) in nJy per observed pixel."""
        spectrum = torch.fft.rfft2(scene)
        return [
            total(transfer * self._seen(spectrum, c))
            for total, transfer, c in zip(self.sums, self.transfers, self.responses, strict=True)
        ]

    def adjoint(self, images: Sequence[Tensor]) -> Tensor:
        """Aᵀ y: images (B, h, w) to (B, C, H, W), exactly the transpose of the call."""
        return self._back(images, self.responses)

    def normal(self, scene: Tensor, observations: Sequence[Observation]) -> Tensor:
        """Aᵀ N⁻¹ A x, (B, C, H, W), of scenes (B, C, H, W) and the observations' noise."""
        return self.adjoint([o.weigh(image) for o, image in zip(observations, self(scene), strict=True)])

    def coverage(self, observations: Sequence[Observation]) -> Tensor:
        """Σ_o c_ob² T_oᵀ w_o T_o 1, (B, C, H, W), for A_o = T_o c_oᵀ and depths w_o: where each band was seen."""
        flat = [transfer[:, :1, :1].real for transfer in self.transfers]  # T 1, a constant
        return self.spread([o.depth * level for o, level in zip(observations, flat, strict=True)])

    def spread(self, images: Sequence[Tensor]) -> Tensor:
        """Σ_o c_ob² T_oᵀ y_o, (B, C, H, W), for A_o = T_o c_oᵀ: images (B, h, w) brought to the scene, band by band."""
        return self._back(images, self.responses.square())

    def _back(self, images: Sequence[Tensor], responses: Tensor) -> Tensor:
        spectrum = None
        for image, total, transfer, c in zip(images, self.sums, self.transfers, responses, strict=True):
            back = (transfer.conj() * total.transpose(image)).unsqueeze(1) * c.view(-1, 1, 1)
            spectrum = back if spectrum is None else spectrum + back
        return torch.fft.irfft2(spectrum, s=self.grid.shape)

    def times(self, factor: Tensor) -> "ForwardModel":
        """This model with every transfer multiplied by a factor (H, W//2 + 1): a derivative, for one."""
        part = copy(self)
        part.transfers = [transfer * factor for transfer in self.transfers]
        return part

    def passing(self, least: float) -> "ForwardModel":
        """This model without the frequencies that a PSF passes by less than ``least`` of what it passes at k = 0."""
        target = torch.as_tensor(gaussian_transfer(self.grid, self.target_fwhm)).to(self.responses)
        powers = [(transfer * target).abs() for transfer in self.transfers]
        part = copy(self)
        part.transfers = [t * (p >= least * p[:, :1, :1]) for t, p in zip(self.transfers, powers, strict=True)]
        return part

    def precision(self, observations: Sequence[Observation], weights: Sequence[Tensor] | None = None) -> Tensor:
        """Stationary approximation of Aᵀ N⁻¹ A per frequency, (B, H, W//2 + 1, C, C) real.

        |J|² |P̂/T̂|² times the inverse variance per scene pixel, a mean over the scene, zero where nothing was seen;
        or, of an observation with any pixel, its weight (B,) where ``weights`` are given: those of a larger field.
        Over ρ of correlated noise, at the frequency of the observed pixels that a scene's is, or is folded to.
        """
        area = self.grid.shape[0] * self.grid.shape[1]
        terms = []
        for number, (o, transfer, c) in enumerate(zip(observations, self.transfers, self.responses, strict=True)):
            weight = o.ivar.sum((-2, -1)) / area if weights is None else weights[number] * o.present
            power = transfer.abs().square() * weight.view(-1, 1, 1)
            if o.correlation is not None:
                q = frequencies(self.grid) @ self.grid.footprint(o.frame.grid)
                power = power / power_at(o.correlation, o.frame.grid.shape, q)
            terms.append(power[..., None, None] * torch.outer(c, c))
        return torch.stack(terms).sum(0)

    @staticmethod
    def _seen(spectrum: Tensor, coefficients: Tensor) -> Tensor:
        """Σ_b c_b x̂_b, (B, H, W//2 + 1); one band is picked, not summed."""
        used = coefficients.nonzero().flatten()
        if len(used) == 1:
            return spectrum[:, used[0]] * coefficients[used[0]]
        return torch.einsum("bchw,c->bhw", spectrum, coefficients.to(spectrum.dtype))


ALIASING_SIGNIFICANCE = 4.5
"""Multiple of its noise above which the checkerboard pattern is a source's."""

ALIASING_FLOOR = 0.11
"""Error of the model of undersampled VIS over the checkerboard pattern in the image: the worst that a star has at any
sub-pixel phase, 1.3 times that of a de Vaucouleurs bulge (tests/reference/test_forward_galsim.py)."""


def with_aliasing_floor(observation: Observation) -> Observation:
    """A VIS observation whose variance admits what the undersampled scene cannot hold; other bands as they are.

    What folds over lies next to the corner of the band that the pixels hold: the checkerboard pattern, the product of
    (1, -2, 1)/2 along both axes, measures it. Adds (ALIASING_FLOOR × its largest value in 7 × 7 pixels)² where that is
    significant: for stars some 3 % of their peak, for galaxies less, the smoother they are. A function of the data.
    """
    if observation.band.name != "VIS":
        return observation
    ivar = observation.ivar
    pattern, noise = filtered(observation.image * (ivar > 0), (-0.5, 1.0, -0.5))
    pattern = pattern.abs()
    least = -torch.nn.functional.max_pool2d(-ivar, 3, stride=1, padding=1)  # zero beside a masked pixel, too
    significant = pattern * least.sqrt() > ALIASING_SIGNIFICANCE * noise
    floor = ALIASING_FLOOR * torch.nn.functional.max_pool2d(pattern * significant, 7, stride=1, padding=3)
    return replace(observation, ivar=ivar / (1 + ivar * floor.square()))


def filtered(image: Tensor, row: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Images (B, h, w) under the 3 × 3 kernel row ⊗ row; and the deviation of unit white noise under it, a scalar."""
    taps = image.new_tensor(row)
    kernel = torch.outer(taps, taps)
    around = torch.nn.functional.pad(image.unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(around, kernel[None, None]).squeeze(1), kernel.norm()


def with_colour_floor(observation: Observation, bands: Sequence[Band]) -> Observation:
    """An observation through another filter than the scene band's, its variance with the scatter of the colour term.

    Adds (scatter × the mean of the 3 × 3 pixels around)² (METHOD section 4), a function of the data alone; the mean
    keeps a pixel's own noise from setting its weight. Observations through the scene's filters stay as they are.
    """
    scatter = response(observation.band, bands)[1]
    if scatter == 0:
        return observation
    ivar = observation.ivar
    good = (ivar > 0).to(ivar).unsqueeze(1)
    light = good * observation.image.unsqueeze(1)
    total, seen = (torch.nn.functional.avg_pool2d(a, 3, stride=1, padding=1) for a in (light, good))
    mean = (total / seen.clamp(min=1 / 9)).squeeze(1)
    return replace(observation, ivar=ivar / (1 + ivar * (scatter * mean).square()))


def with_floors(observation: Observation, bands: Sequence[Band]) -> Observation:
    """An observation as every method takes it: its variance admits all that A of a scene in ``bands`` leaves out.

    To be applied once, to what an archive or a simulator serves.
    """
    return with_colour_floor(with_aliasing_floor(observation), bands)
