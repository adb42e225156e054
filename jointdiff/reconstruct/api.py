"""jointdiff.reconstruct: the one call of the public API."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.reconstruct.align import align_field
from jointdiff.reconstruct.base import NoiseStream, Reconstructor
from jointdiff.reconstruct.diffusion import MODES, Diffusion
from jointdiff.reconstruct.field import check_size, pad_field
from jointdiff.reconstruct.posterior_sampling import DPS, MMPS, PiGDM
from jointdiff.reconstruct.richardson_lucy import ImageSpace, RichardsonLucy
from jointdiff.reconstruct.scarlet import Scarlet
from jointdiff.reconstruct.starlet import Starlet
from jointdiff.reconstruct.stars import subtract_stars
from jointdiff.reconstruct.tiles import divided, tile_size
from jointdiff.reconstruct.wiener import BandWiener, Wiener
from jointdiff.scene import Band, Grid, Observation
from jointdiff.settings import Method

METHODS = get_args(Method)

BUILDERS: dict[str, Callable[[Denoiser], Reconstructor]] = {
    "wiener": Wiener,
    "wiener-band": BandWiener,
    "richardson-lucy": RichardsonLucy,
    "isra": ImageSpace,
    "starlet": Starlet,
    "scarlet2": Scarlet,
} | {
    f"{kind.method}{ending}": partial(kind, vis=bool(ending)) for kind in (DPS, PiGDM, MMPS) for ending in ("", "-vis")
}
"""All methods but our own, each with the settings that were tuned for it."""


@dataclass(frozen=True)
class SkySamples:
    """Samples (S, C, H, W) and posterior mean (C, H, W) of a sharp sky, nJy per pixel; target_fwhm in arcsec.

    replaced: (H, W), share of the samples for which the Gaussian posterior stands in, since the network contradicted
    the data (METHOD section 7); None where nobody looked.
    """

    samples: Tensor
    mean: Tensor
    bands: tuple[Band, ...]
    grid: Grid
    target_fwhm: float
    replaced: Tensor | None = None

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation (C, H, W), nJy per pixel."""
        return self.samples.std(0)


def build_reconstructor(
    method: str,
    denoiser: Denoiser,
    evaluations: int = 8,
    mode: str = "amortized",
    guard: bool = True,
    refine: bool = True,
) -> Reconstructor:
    """The method of that name, one of METHODS; of diffusion, the mode, one of MODES, whether samples give way where
    they contradict the data (guard.py), and whether they allow for the network's own error (refine.py).

    Raises InputError for another.
    """
    for kind, name, known in (("method", method, METHODS), ("mode", mode, MODES)):
        if name not in known:
            raise InputError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")
    if method == Diffusion.method:
        return Diffusion(denoiser, evaluations, mode=mode, guard=guard, refine=refine)
    if mode != MODES[0]:
        raise InputError(f"mode {mode} is of method diffusion, not of {method}")
    return BUILDERS[method](denoiser)


def reconstruct(
    observations: Sequence[Observation],
    denoiser: Denoiser,
    num_samples: int = 32,
    seed: int = 0,
    method: str = "diffusion",
    grid: Grid | None = None,
    name: str = "scene",
    evaluations: int = 8,
    mode: str = "amortized",
    align: bool = True,
    stars: bool = True,
    tile: int = 0,
    guard: bool = True,
    refine: bool = True,
) -> SkySamples:
    """Sample the sharp sky of one field from its observations (B = 1).

    grid: pixels to reconstruct, by default those of VIS. seed, name: of the random numbers. evaluations: of the network
    per sample, at least 3. mode: how diffusion sees the data (METHOD section 7). align: correct the positions of
    the observations by their own light; stars: subtract those that outshine the field (METHOD section 4). tile: side
    (pixels) of the tiles that a larger field is cut into (METHOD section 13); 0 for 256, of fields above 512 × 512
    alone. guard: replace what of the network's samples contradicts the data; refine: let the data speak again where the
    network is known to be less exact (METHOD section 7). Given a field's name and the grid of its reference, these are
    the samples of the reconstruct command. Raises InputError for observations that do not suit the denoiser.
    """
    if num_samples < 1 or evaluations < 3:
        raise InputError(f"num_samples is {num_samples} and evaluations {evaluations}: expected at least 1 and 3")
    if grid is None:
        grids = [o.frame.grid for o in observations if o.band.name == "VIS"]
        if len(grids) != 1:
            raise InputError(f"{len(grids)} observations of VIS: give the grid to reconstruct")
        grid = grids[0]
    reconstructor = build_reconstructor(method, denoiser, evaluations, mode, guard, refine)
    size = tile_size(grid.shape, tile)
    field = pad_field(observations, grid, denoiser, whole=not size)
    check_size(field.grid.shape, num_samples, len(denoiser.bands), name)
    reconstructor.check(field.observations, name)
    field = subtract_stars(field, name)[0] if stars else field
    stream = NoiseStream(seed, name)
    if size:
        if not reconstructor.seamless:
            raise InputError(f"{name}: method {method} in mode {mode} knows no tiles: give a larger tile")
        tiling, _, shared = divided(field, size, denoiser, align)
        draws = tiling.sample_all(reconstructor, num_samples, stream, shared)
    else:
        field = align_field(field, denoiser)[0] if align else field
        draws = reconstructor.sample(field.observations, field.grid, num_samples, stream)
    samples, mean = field.crop(draws.samples), field.crop(draws.mean)
    replaced = None if draws.replaced is None else field.crop(draws.replaced)
    return SkySamples(samples, mean, denoiser.bands, grid, denoiser.target_fwhm, replaced)
