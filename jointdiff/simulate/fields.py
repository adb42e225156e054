"""Ready scene folders: mocks written as an archive would serve them, their truth beside them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jointdiff.correlation import resized
from jointdiff.io.products import write_truth
from jointdiff.io.scene_files import write_field
from jointdiff.io.wcs import tangent_wcs
from jointdiff.scene import Band, Grid, Observation
from jointdiff.simulate.mock import Mock

CENTRE = (150.1, 2.2)
"""Where mock fields lie on the sky: ICRS (ra, dec) of the COSMOS field, degrees."""


def write_mock_field(
    folder: Path, name: str, mock: Mock, bands: Sequence[Band], grid: Grid, target_fwhm: float, margin: int
) -> Path:
    """Write a mock (B = 1) seen only in the core of its torus: scene.yaml, a FITS file a band, and truth.fits.

    margin: scene pixels around the core, the observations' as the truth's. East is to the left. Returns scene.yaml.
    """
    core = _mirrored(grid.padded((-margin, -margin), (-margin, -margin)))
    inner = slice(margin, -margin)
    write_truth(folder, mock.truth[0, :, inner, inner], bands, tangent_wcs(core, CENTRE), target_fwhm)
    seen = [_mirrored_observation(_cropped(observation)) for observation in mock.observations]
    return write_field(folder, name, seen, "VIS", CENTRE)


def _cropped(observation: Observation) -> Observation:
    """The smallest image that holds every pixel seen."""
    seen = observation.ivar[0] > 0
    rows, columns = (torch.nonzero(seen.any(axis)).flatten() for axis in (1, 0))
    (top, bottom), (left, right) = ((int(i[0]), int(i[-1]) + 1) for i in (rows, columns))
    height, width = seen.shape
    grid = observation.frame.grid.padded((-top, bottom - height), (-left, right - width))
    part = (slice(None), slice(top, bottom), slice(left, right))
    frame = replace(observation.frame, grid=grid)
    correlation = observation.correlation
    if correlation is not None:
        correlation = resized(correlation, (height, width), grid.shape)
    image, ivar = observation.image[part], observation.ivar[part]
    return replace(observation, frame=frame, image=image, ivar=ivar, correlation=correlation)


def _mirrored(grid: Grid) -> Grid:
    """The same pixels on a sky whose east is to the left."""
    (yy, yx), (xy, xx) = grid.matrix
    return replace(grid, matrix=((yy, yx), (-xy, -xx)), origin=(grid.origin[0], -grid.origin[1]))


def _mirrored_observation(observation: Observation) -> Observation:
    frame, shift = observation.frame, observation.frame.shift
    if shift is not None:
        shift = shift * shift.new_tensor(np.array([1.0, -1.0]))
    return replace(observation, frame=replace(frame, grid=_mirrored(frame.grid), shift=shift))
