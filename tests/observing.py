"""Small random observations for the laws: any geometry, in double precision."""

import torch

from jointdiff.scene import Band, Frame, Grid, Observation

BANDS = (Band("VIS", "VIS"), Band("g", "hsc-g"), Band("i", "hsc-i"))


def gaussian_psf(batch: int, size: int, width: float, dtype=torch.float64) -> torch.Tensor:
    """Unit-sum Gaussian stamps (B, n, n) of standard deviation ``width`` pixels."""
    r = torch.arange(size, dtype=dtype) - (size - 1) / 2
    psf = torch.exp(-(r[:, None] ** 2 + r**2) / (2 * width**2))
    return (psf / psf.sum()).expand(batch, size, size).clone()


def observe(
    band: Band,
    grid: Grid,
    generator: torch.Generator,
    batch: int = 2,
    size: int = 9,
    ivar: float = 1.0,
    rough: float = 0.3,
) -> Observation:
    """An observation with an irregular PSF, a shift and noise pixels."""
    psf = gaussian_psf(batch, size, 1.3) * (
        1 + rough * torch.rand(batch, size, size, dtype=torch.float64, generator=generator)
    )
    psf = psf / psf.sum((1, 2), keepdim=True)
    shift = 0.05 * torch.randn(batch, 2, dtype=torch.float64, generator=generator)
    image = torch.randn(batch, *grid.shape, dtype=torch.float64, generator=generator)
    return Observation(band, Frame(grid, psf, shift=shift), image, torch.full_like(image, ivar))


def geometries(scene: Grid) -> dict[str, Grid]:
    """The scene's own grid; LSST-like; HSC-like rotated; and flipped with odd size."""
    h, w = scene.shape
    return {
        "same": scene,
        "lsst": Grid.centred((h // 2, w // 2), 2 * scene.scale),
        "hsc_rotated": Grid.centred((h // 2 + 1, w // 2), 1.68 * scene.scale, angle=0.3),
        "flipped": Grid((h // 2, w // 2 + 1), ((0.0, 0.15), (-0.15, 0.0)), (-0.7, 0.8)),
        "mirrored": Grid((h // 2, w // 2), ((0.2, 0.0), (0.0, -0.2)), (-0.9, 0.9)),
    }
