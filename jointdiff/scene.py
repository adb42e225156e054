"""The nouns: Band, Grid, Frame, Observation, Scene.

Axes are (y, x) and pixel centres are at integers. Sky positions are (y, x) offsets in arcsec in the
tangent plane of one common point. Shapes: S samples, B scenes, C scene bands, H W scene pixels,
h w observed pixels, n PSF stamp pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from jointdiff.correlation import convolved, resized, weighed

DEFAULT_TARGET_FWHM = 0.2
"""FWHM (arcsec) of the Gaussian target PSF: two pixels of the 0.1 arcsec VIS grid, so that a scene
is nearly band-limited on it (METHOD section 3)."""


@dataclass(frozen=True)
class Band:
    """A name (VIS, u … y) and the name of its filter curve (a key of survey.FILTERS)."""

    name: str
    filter: str


@dataclass(frozen=True)
class Grid:
    """A pixel grid with an affine WCS: sky = matrix @ (y, x) + origin.

    shape: (rows, columns).
    matrix: ((yy, yx), (xy, xx)) in arcsec per pixel; holds scale, rotation and parity.
    origin: sky position (y, x) of the centre of pixel (0, 0), arcsec.
    """

    shape: tuple[int, int]
    matrix: tuple[tuple[float, float], tuple[float, float]]
    origin: tuple[float, float]

    @classmethod
    def centred(cls, shape: tuple[int, int], scale: float, angle: float = 0.0) -> "Grid":
        """A grid of square pixels of ``scale`` arcsec, rotated by ``angle`` radians, centred on the sky's origin."""
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        matrix = np.array([[cos, sin], [-sin, cos]])
        origin = -matrix @ [(shape[0] - 1) / 2, (shape[1] - 1) / 2]
        return cls(shape, pair_of_pairs(matrix), (float(origin[0]), float(origin[1])))

    @property
    def scale(self) -> float:
        """Side of a square of the pixel's area, arcsec."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def footprint(self, other: "Grid") -> np.ndarray:
        """J: one pixel step of ``other`` in pixels of this grid, (2, 2)."""
        return np.linalg.solve(self.matrix, np.asarray(other.matrix))

    def locate(self, sky) -> np.ndarray:
        """Pixel coordinates (…, 2) in this grid of sky positions (…, 2) in arcsec."""
        return (np.asarray(sky) - self.origin) @ np.linalg.inv(self.matrix).T

    @property
    def lattice(self) -> tuple[int, int]:
        """Which pixel (y, x) of the endless lattice of such pixels the first is: cuts of one grid share their pixels.

        Counted from the sky's origin. Whole and half pixels, where grids like to begin, are far from where it rounds.
        """
        y, x = np.floor(np.linalg.solve(self.matrix, self.origin) + 0.2345).astype(int).tolist()
        return y, x

    def padded(self, rows: tuple[int, int], columns: tuple[int, int]) -> "Grid":
        """This grid with pixels added (or, if negative, removed) before and after each axis."""
        shape = (self.shape[0] + sum(rows), self.shape[1] + sum(columns))
        origin = self.origin - np.asarray(self.matrix) @ [rows[0], columns[0]]
        return replace(self, shape=shape, origin=(float(origin[0]), float(origin[1])))


def pair_of_pairs(matrix: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """A (2, 2) array as the hashable matrix of a Grid."""
    (yy, yx), (xy, xx) = matrix.tolist()
    return (yy, yx), (xy, xx)


@dataclass(frozen=True)
class Frame:
    """How one instrument sees one band: a grid and, for each scene of the batch, a PSF and a shift.

    psf: (B, n, n), includes the pixel, centred at (n - 1) / 2, normalised to unit sum.
    psf_scale: size of a PSF pixel over that of an image pixel.
    shift: (B, 2), added to the sky position of every pixel, arcsec.
    """

    grid: Grid
    psf: Tensor
    psf_scale: float = 1.0
    shift: Tensor | None = None

    def to(self, *args) -> "Frame":
        shift = None if self.shift is None else self.shift.to(*args)
        return replace(self, psf=self.psf.to(*args), shift=shift)


@dataclass(frozen=True)
class Observation:
    """A frame with pixels.

    image: (B, h, w), nJy per pixel.
    ivar: (B, h, w), inverse variance in nJy⁻²; zero where masked or missing.
    correlation: power spectrum ρ (B, h, w//2 + 1) of the noise in units of its deviation, of mean 1 (correlation.py);
        None for white noise.
    position_error: standard deviation of its position along each axis, arcsec; None for the usual one. position_told:
        whether its light tells of it; false where it has told what cannot be true.
    """

    band: Band
    frame: Frame
    image: Tensor
    ivar: Tensor
    correlation: Tensor | None = None
    position_error: float | None = None
    position_told: bool = True

    @property
    def present(self) -> Tensor:
        """(B,), true where any pixel was observed."""
        return self.ivar.flatten(1).any(1)

    @property
    def information(self) -> Tensor:
        """(B,), the sum of the inverse variances, nJy⁻²."""
        return self.ivar.double().sum((-2, -1)).to(self.ivar)

    @property
    def deepest(self) -> Tensor:
        """(B,), the largest depth of a pixel, nJy⁻²."""
        return self.depth.amax((-2, -1))

    def pixels(self, rows: range, columns: range) -> tuple[Tensor, Tensor]:
        """Image and ivar, (B, h, w) each, of some of the rows and columns."""
        part = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        return self.image[part], self.ivar[part]

    def window(self, rows: range, columns: range) -> "Observation":
        """What was seen on some of the rows and columns, with the noise of the whole."""
        frame, correlation = self.frame, self.correlation
        height, width = frame.grid.shape
        grid = frame.grid.padded((-rows.start, rows.stop - height), (-columns.start, columns.stop - width))
        if correlation is not None:
            correlation = resized(correlation, self.noise_shape, grid.shape)
        image, ivar = self.pixels(rows, columns)
        placed = (self.position_error, self.position_told)
        return Observation(self.band, replace(frame, grid=grid), image, ivar, correlation, *placed)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Of the images whose spectrum ``correlation`` is."""
        return self.frame.grid.shape

    @property
    def depth(self) -> Tensor:
        """(B, h, w), the inverse variance of white noise that is as strong as this at the lowest frequencies, nJy⁻²."""
        return self.ivar if self.correlation is None else self.ivar / self.correlation[:, :1, :1]

    def weigh(self, image: Tensor) -> Tensor:
        """N⁻¹ image, (B, h, w): zero where masked. Noise behind masks is what the seen pixels foretell of it."""
        return self.ivar * image if self.correlation is None else weighed(image, self.ivar, self.correlation)

    def weighed_noise(self, white: Tensor) -> Tensor:
        """N⁻¹ of a draw of the noise, which has covariance N⁻¹, from white noise (B, h, w)."""
        return self.ivar.sqrt() * white if self.correlation is None else self.weigh(self.noise(white))

    def noise(self, white: Tensor) -> Tensor:
        """A draw of the noise, of covariance N, from white noise (B, h, w), nJy per pixel; zero where masked."""
        deviation = self.ivar.rsqrt().where(self.ivar > 0, 0.0)
        return deviation * (white if self.correlation is None else convolved(white, self.correlation.sqrt()))

    def to(self, *args) -> "Observation":
        moved = replace(self, frame=self.frame.to(*args), image=self.image.to(*args), ivar=self.ivar.to(*args))
        return moved if self.correlation is None else replace(moved, correlation=self.correlation.to(*args))


@dataclass(frozen=True)
class Scene:
    """Sharp sky: linear flux (…, C, H, W) in nJy per pixel, on one grid, at one Gaussian target PSF (FWHM, arcsec)."""

    flux: Tensor
    bands: tuple[Band, ...]
    grid: Grid
    target_fwhm: float = DEFAULT_TARGET_FWHM
