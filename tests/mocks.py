"""A library of round Gaussian sources: quick to make, with no turn that changes them, and known in closed form."""

from collections.abc import Sequence

import numpy as np
import torch

from jointdiff.forward import response
from jointdiff.scene import Band, Grid
from jointdiff.simulate.compose import Crowding
from jointdiff.simulate.library import Library
from jointdiff.simulate.mock import Simulator
from jointdiff.simulate.observe import GEOMETRIES, Conditions

BANDS = (Band("VIS", "VIS"), *(Band(name, f"hsc-{name}") for name in "grizy"))
LSST = tuple(GEOMETRIES["lsst"].seen(band) for band in BANDS)[1:]
PIXEL, PSF_FWHM, TARGET_FWHM = 0.05, 0.1, 0.2

STEADY = Conditions(
    **dict.fromkeys(("seeing", "depth", "ellipticity", "wing", "margin"), 0.0),
    **dict.fromkeys(("drop_band", "drop_ground", "drop_vis", "drop_all"), 0.0),
    margin_width=(0.0, 0.0),
)
"""Conditions that do not vary, with everything observed."""


def library_of(stamps: Sequence[np.ndarray]) -> Library:
    """Stamps (C, n, n) of BANDS, or BANDS and LSST, in nJy per stamp pixel as a library.

    LSST stamps that are not given have the very colour terms. Unlike load_library's they are not rounded to float16:
    the model is then as exact in LSST as in the scene's own filters.
    """
    terms = np.array([response(band, BANDS)[0] for band in LSST])
    stamps = [s if len(s) > len(BANDS) else np.concatenate([s, np.einsum("oc,cij->oij", terms, s)]) for s in stamps]
    groups = {n: torch.tensor(np.stack([s for s in stamps if s.shape[-1] == n])) for n in {s.shape[-1] for s in stamps}}
    groups = {n: groups[n] for n in sorted(groups)}
    scales = {n: group.amax((1, 2, 3)) / 1024 for n, group in groups.items()}
    scaled = {n: (group / scales[n].view(-1, 1, 1, 1)).float() for n, group in groups.items()}
    return Library(
        (*BANDS, *LSST),
        PIXEL,
        PSF_FWHM,
        scaled,
        {n: scale.float() for n, scale in scales.items()},
        {n: group.sum((2, 3)).float() for n, group in groups.items()},
        {n: torch.zeros(len(group), dtype=torch.bool) for n, group in groups.items()},
        {n: torch.full((len(group),), 22.0) for n, group in groups.items()},
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
    bands: Sequence[Band] = BANDS,
) -> Simulator:
    """A simulator on a torus of ``size`` scene pixels of 0.1 arcsec."""
    crowding = crowding or Crowding(empty=0.0, flux_scatter=0.0)
    grid = Grid.centred((size, size), 0.1)
    return Simulator(library or gaussian_library(), bands, grid, TARGET_FWHM, crowding, conditions, geometries)
