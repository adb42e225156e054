"""What Euclid VIS would have seen of a field that HST saw more sharply."""

import numpy as np
import torch

from jointdiff.errors import InputError
from jointdiff.forward import fourier_sum, frequencies, half_plane_weights, psf_transfer, wavenumber
from jointdiff.io.observations import Exposure
from jointdiff.io.surveys.product import Product
from jointdiff.io.surveys.sky import Sky, variance_of
from jointdiff.io.wcs import finer, tangent_wcs
from jointdiff.scene import Band, Frame, Grid
from jointdiff.seeds import seed_of
from jointdiff.simulate.observe import VIS_JITTER_FWHM, vis_transfer
from jointdiff.survey import load_survey

_MARGIN = 2.0  # arcsec of sky laid around the image, mirrored, so that what leaves one side does not enter the other
_STAMP = 41  # pixels on a side of the VIS PSF: 4.1 arcsec, as large as mocks of 64 pixels can have
_LEAST = 1e-3  # of HST's transfer function: below it the stamp's own errors would be blown up
_DRIZZLE = 2.0
"""Noise of drizzled COSMOS images in VIS pixels over that of white noise of their pixel scatter: 1.9 to 2.1, measured
on the sky of three fields of data_manifest/hst_hsc.yaml."""


def mock_vis(product: Product, seed: int = 0) -> Product:
    """A Product of band VIS at its PSF, 0.1 arcsec pixels and depth, from one of F814W, whose PSF must be the sharper.

    The spectrum is multiplied by P̂_VIS/P̂_HST: HST's mirror is twice as large, so it passes all that VIS does. Noise is
    added to what HST's own has become, up to that of the VIS Wide Survey. Raises InputError where HST's alone is more.
    """
    exposure = product.exposure
    label, place = exposure.band.name, exposure.place
    survey = load_survey("euclid")
    hst = exposure.grid(exposure.centre)
    grid = finer(hst, survey.pixel_scale)
    flux, psf, gain = _resample(exposure, hst, grid)
    depth, weights = survey.depths["VIS"], exposure.ivar[exposure.ivar > 0]
    held = _DRIZZLE * gain / float(np.sqrt(np.median(weights)))
    if held > depth.sky_sigma:
        raise InputError(
            f"{label}: its noise is {held:.3g} nJy in VIS pixels, above the {depth.sky_sigma:.3g} of VIS ({place})"
        )
    rng = np.random.default_rng(seed_of("mock VIS", seed, 0))
    wanted = variance_of(flux, Sky(0.0, depth.sky_sigma, 1.0), depth)
    noisy = flux + np.sqrt(wanted - held**2) * rng.standard_normal(flux.shape)
    seen = _seen(exposure, hst, grid)
    image, ivar = (np.where(seen, values, 0).astype(np.float32) for values in (noisy, 1 / wanted))
    wcs = tangent_wcs(grid, exposure.centre)
    note = "mock of VIS made from HST F814W: its pixels, PSF and noise, but the colour of F814W"
    vis = Exposure(Band("VIS", "VIS"), image, ivar, psf, None, wcs, place)
    return Product(vis, (*product.told, note))


def _resample(exposure: Exposure, hst: Grid, grid: Grid) -> tuple[np.ndarray, np.ndarray, float]:
    """The image (h, w) as VIS blurs and samples it, nJy per pixel; the VIS PSF's stamp, of unit sum; and the standard
    deviation that white noise of unit variance comes out with."""
    margin = int(np.ceil(_MARGIN / hst.scale))
    torus = hst.padded((margin, margin), (margin, margin))
    image = torch.from_numpy(np.pad(exposure.image.astype(float), margin, mode="symmetric"))
    ratio = 1.0 if exposure.psf_pixel is None else exposure.psf_pixel / hst.scale
    sharp = psf_transfer(torus, Frame(hst, torch.tensor(exposure.psf, dtype=torch.float64)[None], ratio))[0]
    vis = vis_transfer(torch.as_tensor(wavenumber(torus)), torch.tensor(VIS_JITTER_FWHM))
    vis = vis * torch.as_tensor(np.prod(np.sinc(frequencies(torus) * (grid.scale / hst.scale)), axis=-1))
    match = torch.where(sharp.abs() > _LEAST, vis / sharp, 0.0)
    sample = fourier_sum(torus, grid, torch.float64, image.device)
    flux = (grid.scale / hst.scale) ** 2 * sample(torch.fft.rfft2(image) * match)
    stamp = Grid.centred((_STAMP, _STAMP), 1.0)
    # The stamp's middle lies on pixel (0, 0) of the torus, where the spectrum of a point is one.
    matrix = np.asarray(grid.matrix)
    y, x = (matrix @ stamp.origin + torus.origin).tolist()
    pixels = Grid(stamp.shape, grid.matrix, (y, x))
    psf = fourier_sum(torus, pixels, torch.float64, image.device)(vis.to(torch.complex128)).numpy()
    power = torch.as_tensor(half_plane_weights(torus)) * match.abs().square()
    gain = (grid.scale / hst.scale) ** 2 * float(torch.sqrt(power.sum() / image.numel()))
    return flux.numpy(), psf / psf.sum(), gain


def _seen(exposure: Exposure, hst: Grid, grid: Grid) -> np.ndarray:
    """(h, w), true where HST saw the middle of a pixel."""
    pixels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    at = np.rint(hst.locate(pixels @ np.asarray(grid.matrix).T + grid.origin)).astype(int)
    y, x = (np.clip(at[..., axis], 0, hst.shape[axis] - 1) for axis in (0, 1))
    return exposure.ivar[y, x] > 0
