"""Observations of composed skies: PSFs, depths, dithers, noise and missing bands, all varying from scene to scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from jointdiff.correlation import convolved, power_spectrum
from jointdiff.forward import filtered, fourier_sum, frequencies, gaussian_transfer, shift_phase
from jointdiff.scene import Band, Frame, Grid, Observation
from jointdiff.survey import Depth, load_survey
from jointdiff.units import SIGMA_PER_FWHM

VIS_JITTER_FWHM = 0.13
"""Gaussian (arcsec) that brings a diffraction-limited 1.2 m mirror to the width and peak of the Q1 MER PSF: FWHM
0.19 arcsec and 17 % of the flux in the central pixel, pixel included."""


@dataclass(frozen=True)
class Geometry:
    """The pixel scale (arcsec) of the ground bands of a batch, and the survey: their filters, depth and seeing.

    correlation: of the noise of neighbouring pixels, between the two from scene to scene; None for white noise.
    """

    survey: str
    pixel_scale: float
    correlation: tuple[float, float] | None = None

    def seen(self, band: Band) -> Band:
        """A scene's band as it is observed: through the survey's own filter of that name; VIS as it is."""
        return band if band.name == "VIS" else Band(band.name, f"{self.survey}-{band.name}")


GEOMETRIES = {
    "lsst": Geometry("lsst", 0.2),
    "hsc": Geometry("hsc", 0.168),
    # Euclid's MER pipeline serves ground images on the VIS pixels: 0.60 to 0.68 in the HSC and MegaCam images of a Q1
    # field, as the sky over a local level shows it, which takes some away.
    "mer": Geometry("hsc", 0.1, (0.6, 0.75)),
}

_REACH = 3
"""Largest lag of the noise that neighbours share, pixels."""


@dataclass(frozen=True)
class Conditions:
    """How much observing conditions vary from scene to scene and band to band.

    seeing, depth: scatter in dex. blur: factor on the ground's seeing. sky: mean excess of the sky noise over the
    survey's, in dex. ellipticity: rms of each PSF shear component. wing: largest fraction of the PSF's flux in a
    component 2.2 times as wide. margin: fraction of scenes seen only in a central core, with a margin between the two
    margin_width, arcsec. drop_*: probabilities that observations are missing.

    What is served is not what was: deviations, per observation, of errors that nobody knows of. jitter: of the position
    along each axis, arcsec, but for VIS, which defines it. zero_point_error: fraction of the flux. psf_error: fraction
    of the PSF's width, without the pixel; in VIS that stands for its change with a source's colour. sky_error: of the
    sky level left in an image, over the sky noise of the survey's own pixel.
    """

    seeing: float = 0.06
    blur: float = 1.0
    depth: float = 0.1
    ellipticity: float = 0.03
    wing: float = 0.15
    margin: float = 0.3
    margin_width: tuple[float, float] = (0.0, 2.0)
    drop_band: float = 0.1
    drop_ground: float = 0.03
    drop_vis: float = 0.03
    drop_all: float = 0.02
    sky: float = 0.0
    jitter: float = 0.0
    zero_point_error: float = 0.0
    psf_error: float = 0.0
    sky_error: float = 0.0


@dataclass(frozen=True)
class Errors:
    """What is off in one observation, scene by scene: shift (B, 2), arcsec; the others (B, 1, 1).

    flux: factor on the light. width: factor on the width of the PSF. sky: level left, in units of the sky noise.
    """

    shift: Tensor
    flux: Tensor
    width: Tensor
    sky: Tensor

    @classmethod
    def draw(cls, conditions: Conditions, space: bool, batch: int, generator: torch.Generator) -> "Errors":
        """All are drawn whatever the deviations, so that none of them changes another."""
        like = torch.empty(0, device=generator.device)
        shift = _normal((batch, 2), like, generator) * (0.0 if space else conditions.jitter)
        flux, width, sky = (_normal((batch, 1, 1), like, generator) for _ in range(3))
        factors = 1 + conditions.zero_point_error * flux, 1 + conditions.psf_error * width
        return cls(shift, *factors, conditions.sky_error * sky)


def observed_grid(scene: Grid, pixel_scale: float) -> Grid:
    """The largest grid of square pixels inside the scene's torus, centred on it."""
    rows, columns = (int(n * scene.scale / pixel_scale + 1e-6) for n in scene.shape)
    return Grid.centred((rows, columns), pixel_scale)


class Telescope:
    """Observes skies of one torus: VIS and the ground bands of one geometry.

    bands: of the scene; a geometry sees them through filters of its own. sky: the fine grid, with the library's PSF of
    psf_fwhm arcsec. generator: on the skies' device.
    """

    def __init__(self, scene: Grid, sky: Grid, psf_fwhm: float, bands: Sequence[Band], conditions: Conditions):
        self.scene, self.sky, self.bands, self.conditions = scene, sky, tuple(bands), conditions
        self._library_transfer = gaussian_transfer(sky, psf_fwhm)

    def observe(
        self, sky: Tensor, geometry: Geometry, generator: torch.Generator, mistakes: torch.Generator
    ) -> list[Observation]:
        """One observation per band of skies (B, C, H, W), whose channels are the bands as the geometry sees them.

        A band dropped in a scene has no inverse variance. mistakes: draws the Errors, so that they change nothing else.
        """
        spectrum = torch.fft.rfft2(sky) / torch.as_tensor(self._library_transfer).to(sky)
        kept, core = self._kept(len(sky), generator), self._core(len(sky), generator)
        observations = []
        for index, band in enumerate(map(geometry.seen, self.bands)):
            space = band.name == "VIS"
            depth = load_survey("euclid" if space else geometry.survey).depths[band.name]
            grid = observed_grid(self.scene, self.scene.scale if space else geometry.pixel_scale)
            # The noise of a pixel goes with its side: resampling the survey's pixels keeps the depth.
            depth_scale = grid.scale / load_survey("euclid" if space else geometry.survey).pixel_scale
            errors = Errors.draw(self.conditions, space, len(sky), mistakes)
            frame, transfer, dither = self._frame(band, depth, grid, len(sky), generator, errors)
            image = fourier_sum(self.sky, grid, sky.dtype, sky.device)(spectrum[:, index] * transfer)
            flux = (grid.scale / self.sky.scale) ** 2 * errors.flux * image
            seen = kept[:, index].view(-1, 1, 1) * self._footprint(grid, dither, core)
            shared = None if space else self._correlation(geometry, grid, len(sky), generator)
            observations.append(self._expose(band, frame, flux, depth, depth_scale, seen, shared, errors, generator))
        return observations

    @staticmethod
    def _correlation(geometry: Geometry, grid: Grid, batch: int, generator) -> Tensor | None:
        """ρ (B, h, w//2 + 1) of noise as smoothing by a Gaussian leaves it; None for white noise."""
        if geometry.correlation is None:
            return None
        low, high = geometry.correlation
        one = low + (high - low) * torch.rand(batch, 1, 1, device=generator.device, generator=generator)
        lag = torch.arange(-_REACH, _REACH + 1, device=generator.device).square()
        return power_spectrum(one ** (lag[:, None] + lag), grid.shape)

    def _expose(
        self,
        band: Band,
        frame: Frame,
        flux: Tensor,
        depth: Depth,
        scale: float,
        seen: Tensor,
        shared: Tensor | None,
        errors: Errors,
        generator,
    ) -> Observation:
        """Adds sky and source Poisson noise. The inverse variance is what a pipeline can know: no map of the truth.

        shared: ρ of the noise, which is of the survey's depth at the lowest frequencies: what resampling takes from
        pixels it puts between them.
        """
        c = self.conditions
        sky = depth.sky_sigma * scale * 10 ** (c.sky + c.depth * _normal((len(flux), 1, 1), flux, generator))
        white, level = _normal(flux.shape, flux, generator), 1.0 if shared is None else shared[:, :1, :1]
        noise = white if shared is None else convolved(white, shared.sqrt())
        variance = (sky.square() + depth.poisson_variance(flux.clamp(min=0))) / level
        image = flux + variance.sqrt() * noise + errors.sky * sky * scale  # a level goes with the pixel's area
        known = (sky.square() + depth.poisson_variance(significant_flux(image, sky))) / level
        return Observation(band, frame, seen * image, seen / known, shared)

    def _frame(
        self, band: Band, depth: Depth, grid: Grid, batch: int, generator, errors: Errors
    ) -> tuple[Frame, Tensor, Tensor]:
        """A frame per scene, as it is served; P̂ of the true one with its shift, (B, H, W//2 + 1); the dither (B, 2)."""
        like = torch.empty(0, device=generator.device)
        shear = self.conditions.ellipticity * _normal((batch, 2), like, generator)
        k = sheared_wavenumber(self.sky, shear)
        stretch = 10 ** (self.conditions.seeing * _normal((batch, 1, 1), like, generator))
        wing = self.conditions.wing * torch.rand(batch, 1, 1, device=generator.device, generator=generator)
        dither = grid.scale * (torch.rand(batch, 2, device=generator.device, generator=generator) - 0.5)
        if band.name == "VIS":
            dither = torch.zeros_like(dither)  # its pixels define the scene's

        def optics(k: Tensor) -> Tensor:
            if band.name == "VIS":
                return vis_transfer(k, VIS_JITTER_FWHM * stretch)
            fwhm = self.conditions.blur * depth.fwhm * stretch
            return (1 - wing) * kolmogorov_transfer(k, fwhm) + wing * kolmogorov_transfer(k, 2.2 * fwhm)

        pixel = torch.as_tensor(np.prod(np.sinc(frequencies(self.sky) * (grid.scale / self.sky.scale)), axis=-1)).to(k)
        served = optics(k) * pixel
        true = optics(k * errors.width) * pixel if self.conditions.psf_error else served
        # Without the torus's last row a ground stamp would be wrong by 1e-3. That loss is less than the aliasing of
        # undersampled VIS, which is least with a pixel at the centre.
        size = min(grid.shape)
        size -= band.name == "VIS" and size % 2 == 0
        psf = self._stamp(grid, size, served)
        return Frame(grid, psf, shift=dither), true * shift_phase(self.sky, dither + errors.shift), dither

    def _stamp(self, grid: Grid, size: int, transfer: Tensor) -> Tensor:
        """The PSF (B, n, n) on the observed pixels of a point at the centre of a stamp of n = ``size``."""
        stamp = Grid.centred((size, size), grid.scale)
        # Centred on the sky's own pixel (0, 0): the point source's spectrum is then one everywhere.
        y, x = np.add(stamp.origin, self.sky.origin)
        stamp = Grid(stamp.shape, stamp.matrix, (float(y), float(x)))
        psf = fourier_sum(self.sky, stamp, transfer.dtype, transfer.device)(transfer.to(transfer.dtype.to_complex()))
        return psf / psf.sum((-2, -1), keepdim=True)

    def _kept(self, batch: int, generator) -> Tensor:
        """(B, C), 1 where a scene was observed in a band."""
        c, device = self.conditions, generator.device
        vis = torch.tensor([band.name == "VIS" for band in self.bands], device=device)
        one = torch.rand(batch, len(self.bands), device=device, generator=generator) < c.drop_band
        chances = torch.tensor([c.drop_ground, c.drop_vis, c.drop_all], device=device)
        groups = torch.rand(batch, 3, device=device, generator=generator) < chances
        ground, space, everything = groups.T.unsqueeze(-1)
        dropped = torch.where(vis, space, one | ground) | everything
        return (~dropped).float()

    def _core(self, batch: int, generator) -> Tensor:
        """Half-sides (B, 2) in arcsec of the observed core; infinite for scenes seen whole."""
        u = torch.rand(batch, 2, device=generator.device, generator=generator)
        width = torch.tensor(self.conditions.margin_width, device=u.device)
        half = torch.tensor(self.scene.shape, device=u.device) * self.scene.scale / 2
        return torch.where(
            u[:, :1] < self.conditions.margin, half - torch.lerp(width[0], width[1], u[:, 1:]), torch.inf
        )

    @staticmethod
    def _footprint(grid: Grid, dither: Tensor, core: Tensor) -> Tensor:
        """(B, h, w), 1 for pixels whose centre is in the core."""
        inside = []
        for axis, n in enumerate(grid.shape):
            sky = grid.origin[axis] + grid.scale * torch.arange(n, device=core.device) + dither[:, axis : axis + 1]
            inside.append((sky.abs() <= core[:, axis : axis + 1]).float())
        return inside[0].unsqueeze(2) * inside[1].unsqueeze(1)


def significant_flux(image: Tensor, sky: Tensor, threshold: float = 5.0) -> Tensor:
    """Smoothed image (B, h, w) where it exceeds ``threshold`` times its own sky noise, else zero, nJy per pixel.

    A pipeline's model for source Poisson noise. Noisy pixels themselves would give low ones the larger weight, and the
    noiseless image would tell the network the truth through the weights. sky: noise per pixel (B, 1, 1).
    """
    smooth, noise = filtered(image, (0.25, 0.5, 0.25))
    return torch.where(smooth > threshold * noise * sky, smooth, 0.0)


def _normal(shape, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator)


def sheared_wavenumber(grid: Grid, shear: Tensor) -> Tensor:
    """|k| (B, H, W//2 + 1) in cycles/arcsec for a PSF sheared by (g1, g2), (B, 2), its area unchanged."""
    k = torch.as_tensor(frequencies(grid) @ np.linalg.inv(grid.matrix)).to(shear)
    ky, kx = k[..., 0], k[..., 1]
    g1, g2 = shear.view(-1, 2, 1, 1).unbind(1)
    norm = (1 - g1.square() - g2.square()).rsqrt()
    return norm * torch.hypot((1 + g1) * kx + g2 * ky, g2 * kx + (1 - g1) * ky)


def kolmogorov_transfer(k: Tensor, fwhm: Tensor) -> Tensor:
    """exp(-3.44 (λ k / r₀)^{5/3}) with FWHM = 0.976 λ/r₀ (Fried 1966; Racine 1996)."""
    return torch.exp(-3.44 * (k * fwhm / 0.976) ** (5 / 3))


def vis_transfer(k: Tensor, jitter_fwhm: Tensor) -> Tensor:
    """Euclid VIS optics at |k| (cycles/arcsec): diffraction averaged over the band, times a Gaussian jitter."""
    values, step = _diffraction()
    position = (k / step).clamp(max=len(values) - 1.001)
    low = position.long()
    table = torch.as_tensor(values).to(k)
    diffraction = torch.lerp(table[low], table[low + 1], position - low)
    return diffraction * torch.exp(-2 * (torch.pi * SIGMA_PER_FWHM * jitter_fwhm * k).square())


@lru_cache(maxsize=1)
def _diffraction() -> tuple[np.ndarray, float]:
    """Transfer function of a 1.2 m mirror (Laureijs et al. 2011, arXiv 1110.3193), obscured to a third of its diameter.

    A mean over 550 to 900 nm, tabulated every 0.05 cycles/arcsec up to 12.
    """
    import galsim

    step, wavelengths = 0.05, np.linspace(550, 900, 8)
    optics = [galsim.Airy(lam=lam, diam=1.2, obscuration=1 / 3) for lam in wavelengths]
    k = 2 * np.pi * step * np.arange(241)
    return np.array([np.mean([psf.kValue(value, 0).real for psf in optics]) for value in k]), step
