"""A library of round Gaussian sources: quick to make, with no turn that changes them, and known in closed form."""

from collections.abc import Sequence

import numpy as np
import torch

from jointdiff.scene import Band, Grid
from jointdiff.simulate.compose import Crowding
from jointdiff.simulate.library import Library
from jointdiff.simulate.mock import Simulator
from jointdiff.simulate.observe import Conditions

BANDS = (Band("VIS", "VIS"), *(Band(name, f"hsc-{name}") for name in "grizy"))
PIXEL, PSF_FWHM, TARGET_FWHM = 0.05, 0.1, 0.2

STEADY = Conditions(0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 0.0, 0.0, 0.0)
"""Conditions that do not vary, with everything observed."""


def library_of(stamps: Sequence[np.ndarray], bands: Sequence[Band] = BANDS) -> Library:
    """Stamps (C, n, n) in nJy per stamp pixel as a library, in float16 as load_library gives them."""
    groups = {n: torch.tensor(np.stack([s for s in stamps if s.shape[-1] == n])) for n in {s.shape[-1] for s in stamps}}
    groups = {n: groups[n] for n in sorted(groups)}
    scales = {n: group.amax((1, 2, 3)) / 1024 for n, group in groups.items()}
    halves = {n: (group / scales[n].view(-1, 1, 1, 1)).half() for n, group in groups.items()}
    return Library(
        tuple(bands),
        PIXEL,
        PSF_FWHM,
        halves,
        {n: scale.float() for n, scale in scales.items()},
        {n: (h.double() * scales[n].view(-1, 1, 1, 1)).sum((2, 3)).float() for n, h in halves.items()},
        {n: torch.zeros(len(h), dtype=torch.bool) for n, h in halves.items()},
        {n: torch.full((len(h),), 22.0) for n, h in halves.items()},
    )


def gaussian_stamp(fluxes: Sequence[float], fwhm: float, size: int) -> np.ndarray:
    """A round Gaussian (C, n, n) of FWHM in arcsec, the library's PSF included, in the middle of its stamp."""
    axis = (np.arange(size) - (size - 1) / 2) * PIXEL
    profile = np.exp(-4 * np.log(2) * (axis[:, None] ** 2 + axis**2) / fwhm**2)
    return np.asarray(fluxes, dtype=float)[:, None, None] * profile / profile.sum()


def gaussian_library(brightness: float = 1.0) -> Library:
    """Six Gaussians of FWHM 0.45 to 0.9 arcsec and 3 to 30 µJy times ``brightness``, of various colours."""
    rng = np.random.default_rng(0)
    stamps = []
    for fwhm, flux in zip(np.linspace(0.45, 0.9, 6), np.geomspace(3e3, 3e4, 6), strict=True):
        colours = rng.uniform(0.5, 1.5, len(BANDS))
        stamps.append(gaussian_stamp(brightness * flux * colours, fwhm, 48 if fwhm < 0.6 else 64))
    return library_of(stamps)


def simulator(
    geometries: Sequence[str],
    conditions: Conditions = STEADY,
    library: Library | None = None,
    size: int = 64,
    crowding: Crowding | None = None,
) -> Simulator:
    """A simulator on a torus of ``size`` scene pixels of 0.1 arcsec."""
    crowding = crowding or Crowding(empty=0.0, flux_scatter=0.0)
    grid = Grid.centred((size, size), 0.1)
    return Simulator(library or gaussian_library(), grid, TARGET_FWHM, crowding, conditions, geometries)
