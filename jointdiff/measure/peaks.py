"""Where more stands out from a scene's residuals than noise ever leaves: peaks, their table, the sources near by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from astropy.table import Table
from scipy.ndimage import label, maximum_filter, maximum_position

from jointdiff.io.wcs import sky_position
from jointdiff.measure.columns import column
from jointdiff.measure.detection import Segments
from jointdiff.measure.unexplained import Kind, Significance

ALARM = 5.25
"""Significance of a peak, in deviations of a Gaussian: noise alone passes it less than once in ten arcmin² (METHOD
section 7)."""

NEAR = 0.5
"""Arcsec within which two peaks are one, and a peak is a source's."""


@dataclass(frozen=True)
class Peak:
    """A place (y, x), pixels, where more than ALARM stands out."""

    y: int
    x: int
    sigma: float
    kind: Kind


def peaks(found: Significance, scale: float, weight: np.ndarray | None = None) -> list[Peak]:
    """Where more than ALARM stands out, the strongest first; one for all that is nearer than NEAR to each other.

    scale: arcsec a pixel. weight: (H, W), zero where nothing is scored.
    """
    sigma = found.sigma if weight is None else np.where(np.asarray(weight) > 0, found.sigma, 0.0)
    regions, count = label(maximum_filter(sigma > ALARM, size=_width(scale), mode="constant"))
    places = maximum_position(sigma, regions, range(1, count + 1)) if count else []
    listed = [Peak(int(y), int(x), float(sigma[y, x]), found.kinds[found.kind[y, x]]) for y, x in places]
    return sorted(listed, key=lambda peak: -peak.sigma)


def joined(
    places: Sequence[tuple[slice, slice]], parts: Sequence[Significance], shape: tuple[int, int]
) -> Significance:
    """That of a scene (H, W), of what each of its tiles has: of the same bands, so of the same kinds."""
    sigma, kind = np.zeros(shape, np.float32), np.zeros(shape, np.int16)
    for place, part in zip(places, parts, strict=True):
        assert part.kinds == parts[0].kinds, "tiles of different bands"
        sigma[place], kind[place] = part.sigma, part.kind
    return Significance(sigma, kind, parts[0].kinds)


def peak_table(found: Sequence[Peak], corner: tuple[int, int], wcs, label: str, source: str) -> Table:
    """A row a peak of a padded grid, whose pixel ``corner`` is the first of the WCS's.

    label, source: band and file of the WCS, for messages.
    """
    table = Table(meta={"UNEXPTHR": ALARM})
    at = np.array([(peak.y - corner[0], peak.x - corner[1]) for peak in found], float).reshape(-1, 2)
    ra, dec = sky_position(wcs, at, label, source).T if len(found) else at.T
    values = {"ra": ra, "dec": dec, "x": at[:, 1], "y": at[:, 0]}
    values |= {"sigma": np.array([peak.sigma for peak in found], float)}
    values |= {"size": np.array([peak.kind.size for peak in found], float)}
    values |= {name: np.array([getattr(peak.kind, name) for peak in found], str) for name in ("shape", "band")}
    table.add_columns([column(kind, each) for kind, each in values.items()])
    return table


def near_unexplained(segments: Segments, found: Significance, scale: float) -> np.ndarray:
    """(K,), true for sources of whose segment some pixel is within NEAR of what stands out by more than ALARM."""
    near = maximum_filter(found.sigma > ALARM, size=_width(scale), mode="constant")
    return np.isin(np.arange(1, len(segments) + 1), segments.labels[near])


def _width(scale: float) -> int:
    return 2 * round(NEAR / scale) + 1
