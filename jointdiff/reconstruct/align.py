"""The shift of every observation against the reference, fitted by the Gaussian evidence (METHOD section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.forward import wavevectors
from jointdiff.gaussian import GaussianPosterior
from jointdiff.reconstruct.base import single_scenes
from jointdiff.reconstruct.field import PaddedField
from jointdiff.scene import Grid, Observation, pair_of_pairs

PRIOR = 0.1
"""Standard deviation (arcsec) of a shift along one axis before the data are seen. HST and HSC images of one field
differ by 0.02 to 0.14 arcsec."""

SIGNIFICANT = 3.0
"""Standard errors, along either axis, from which a shift counts as found."""

LEAST = 0.01
"""Length (arcsec) from which a shift is worth correcting."""

AGREEMENT = 0.03
"""Standard deviation (arcsec) of one image's shift about that of a field's others. What is further off by SIGNIFICANT
errors is the colours of a source that is no Gaussian sky, not astrometry."""

STRAIGHT = 0.2
"""Lean of an image's axes over its whole side (scene pixels) up to which it can be aligned."""

_CONVERGED = 0.2
"""Step, over the standard error, at which Newton's method stops."""

_STEPS = 8

_ACCURACY = 0.2
"""Error of the posterior mean along any one direction, in its standard deviations: a shift is one direction among all
modes, so an rms over modes, as other uses of the mean ask for, is not enough."""

_TOLERANCE = 0.1
_MOST = 100


@dataclass(frozen=True)
class Shifts:
    """What was found of one batch: values and standard errors, each (B, o, 2), arcsec on the sky (y, x).

    A value is what is to be added to the sky position of an observation's pixels: Frame.shift.
    """

    value: Tensor
    error: Tensor

    @property
    def significant(self) -> Tensor:
        """(B, o), true where a shift is of SIGNIFICANT errors, and longer than LEAST."""
        return ((self.value.abs() / self.error).amax(-1) > SIGNIFICANT) & (self.value.norm(dim=-1) > LEAST)

    @property
    def agree(self) -> Tensor:
        """(B,), false where the shifts differ among themselves by more than their errors and AGREEMENT allow."""
        variance = self.error.square() + AGREEMENT**2
        weight = (self.error > 0) / variance  # not the reference, which is what the others are off from
        common = (weight * self.value).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        off = (self.value - common).abs() * (self.error > 0)
        return (off <= SIGNIFICANT * variance.sqrt()).all(-1).all(-1)


@torch.no_grad()
def fit_shifts(observations: Sequence[Observation], grid: Grid, denoiser: Denoiser, reference: int) -> Shifts:
    """The shifts that maximise evidence times prior; that of observation ``reference`` stays 0, with error 0.

    Newton's method on the evidence's fit term, (yᵀ N⁻¹ y − bᵀ P⁻¹ b)/2 with b = Aᵀ N⁻¹ y: its gradient and Hessian are
    exact for any masks and weights. The determinant's part, which does not change with a shift where noise is even, is
    left out. In double precision.
    """
    straight = [_straightened(o.to(torch.float64), grid) for o in observations]
    found = [_fit_scene(scene, grid, denoiser, reference) for scene in single_scenes(straight)]
    return Shifts(*(torch.stack(parts) for parts in zip(*found, strict=True)))


def _lean(observation: Observation, grid: Grid) -> float:
    """How far the observation's axes run from the grid's over its whole side, in pixels of the grid."""
    footprint = grid.footprint(observation.frame.grid)
    return float(np.abs(footprint - np.diag(np.diag(footprint))).max() * max(observation.frame.grid.shape))


def _straightened(observation: Observation, grid: Grid) -> Observation:
    """The same pixels, turned about the middle of the image until their axes are the grid's; far quicker to see.

    Images of two tangent points are turned by some 1e-4: to and fro, so that it averages out of a shift.
    """
    frame = observation.frame
    if not 0 < _lean(observation, grid) <= STRAIGHT:
        return observation
    middle = (np.asarray(frame.grid.shape) - 1) / 2
    footprint = np.diag(np.diag(grid.footprint(frame.grid)))
    matrix = np.asarray(grid.matrix) @ footprint
    y, x = frame.grid.origin + np.asarray(frame.grid.matrix) @ middle - matrix @ middle
    turned = Grid(frame.grid.shape, pair_of_pairs(matrix), (float(y), float(x)))
    return replace(observation, frame=replace(frame, grid=turned))


@dataclass(frozen=True)
class Alignment:
    """What was found of one field: bands, and for each the shift and its standard error (2,), arcsec (y, x).

    numbers: of the observations that they are, among the field's.
    """

    reference: str
    bands: tuple[str, ...]
    shifts: Shifts
    numbers: tuple[int, ...] = ()

    @property
    def applied(self) -> Tensor:
        """(o, 2): the shifts that are significant; 0 for others, whose error is as large as they are, or if they do not
        agree."""
        found = self.shifts.significant[0] & self.shifts.agree[0]
        return torch.where(found.unsqueeze(-1), self.shifts.value[0], 0.0)

    @property
    def left(self) -> Tensor:
        """(o,): rms along an axis of what is left of each shift, arcsec: its error, and what was not corrected."""
        shifts = self.shifts
        return ((shifts.value[0] - self.applied).square() + shifts.error[0].square()).mean(-1).sqrt()

    def apply(self, field: PaddedField) -> PaddedField:
        """The field with the significant shifts corrected, and its observations as uncertain as they then are."""
        observations = list(field.observations)
        for number, shift in zip(self.numbers, self.applied, strict=True):
            o = observations[number]
            uncertain = PRIOR * (number != self.numbers[self.bands.index(self.reference)])
            placed = replace(shifted(o, shift) if shift.any() else o, position_error=uncertain)
            observations[number] = placed if self.shifts.agree[0] else replace(o, position_told=False)
        return replace(field, observations=tuple(observations))

    @property
    def line(self) -> str:
        """What was corrected, in mas, or was not because it cannot be true; empty where nothing was found."""
        shifts, found = self.shifts, self.shifts.significant[0]
        parts = [
            f"{band} {1e3 * y:+.0f} {1e3 * x:+.0f} ± {1e3 * error:.0f}"
            for band, (y, x), error, told in zip(
                self.bands, shifts.value[0].tolist(), shifts.error[0].amax(-1).tolist(), found.tolist(), strict=True
            )
            if told
        ]
        what = "moved" if shifts.agree[0] else "not moved, as shifts differ by more than astrometry can,"
        return f"{what} against {self.reference} (y, x; mas): {', '.join(parts)}" if parts else ""

    def cards(self, planes: Sequence[str]) -> dict[str, tuple[float, str]]:
        """Header keywords SHIFTYn, SHIFTXn (what was added to positions) and SHIFTEn, in arcsec, for plane n."""
        cards = {}
        for band, shift, error in zip(
            self.bands, self.applied.tolist(), self.shifts.error[0].amax(-1).tolist(), strict=True
        ):
            number = planes.index(band) + 1
            for axis, value in zip("YX", shift, strict=True):
                cards[f"SHIFT{axis}{number}"] = (round(value, 5), f"[arcsec] {band} was moved along {axis.lower()}")
            cards[f"SHIFTE{number}"] = (round(error, 5), "[arcsec] error of the shift that was fitted")
        return cards


def align_field(
    field: PaddedField, denoiser: Denoiser, parts: Sequence[PaddedField] | None = None
) -> tuple[PaddedField, Alignment | None]:
    """The field with every significant shift corrected, and what was found; None where nothing can be compared.

    The reference, which keeps its place, is VIS, or without it what was observed on the core's own pixels. Images that
    are turned against the core by more than STRAIGHT stay where they are. Others are then uncertain by PRIOR before the
    data are seen, as the fit took them to be: its standard error is no second piece of knowledge. Where shifts do not
    agree the data are not asked again. parts: of a large field, each with all of its observations in their order; what
    they say is averaged.
    """
    present = [i for i, o in enumerate(field.observations) if o.present.all()]
    own = [i for i in present if np.allclose(field.observations[i].frame.grid.matrix, field.core.matrix)]
    vis = [i for i in present if field.observations[i].band.name == "VIS"]
    fitted = [_fit_part(part, denoiser, (vis or own)[0]) for part in parts or [field] if vis or own]
    found = _averaged([fit for fit in fitted if fit is not None], [o.band.name for o in field.observations])
    return (field, None) if found is None else (found.apply(field), found)


_Fit = tuple[int, dict[int, tuple[Tensor, Tensor]]]
"""Number of the reference, and for each observation, by its number, value and error (2,) of its shift."""


def _fit_part(part: PaddedField, denoiser: Denoiser, reference: int) -> _Fit | None:
    observations = part.observations
    seen = [i for i, o in enumerate(observations) if o.present.all() and _lean(o, part.grid) <= STRAIGHT]
    if len(seen) < 2 or reference not in seen:
        return None
    shifts = fit_shifts([observations[i] for i in seen], part.grid, denoiser, seen.index(reference))
    return reference, {i: (shifts.value[0, n].cpu(), shifts.error[0, n].cpu()) for n, i in enumerate(seen)}


def _averaged(fits: Sequence[_Fit], bands: Sequence[str]) -> Alignment | None:
    """Weighted by their inverse variances, in which the prior counts once."""
    if not fits:
        return None
    reference, numbers = fits[0][0], sorted(set().union(*(fit for _, fit in fits)))
    values, errors = [], []
    for number in numbers:
        told = [fit[number] for _, fit in fits if number in fit]
        value, error = told[0]
        if number != reference and len(told) > 1:
            weights = torch.stack([e**-2 for _, e in told])
            information = weights.sum(0) - (len(told) - 1) * PRIOR**-2
            value = (weights * torch.stack([v for v, _ in told])).sum(0) / information
            error = information.rsqrt()
        values.append(value)
        errors.append(error)
    shifts = Shifts(torch.stack(values)[None], torch.stack(errors)[None])
    return Alignment(bands[reference], tuple(bands[n] for n in numbers), shifts, tuple(numbers))


def _fit_scene(
    observations: Sequence[Observation], grid: Grid, denoiser: Denoiser, reference: int
) -> tuple[Tensor, Tensor]:
    """Shifts and errors (o, 2) of one scene (B = 1)."""
    shifts = torch.zeros(len(observations), 2).to(observations[0].image)
    free = torch.arange(len(observations)) != reference
    errors, posterior = torch.zeros_like(shifts), None
    for _ in range(_STEPS):
        seen = [shifted(o, s) for o, s in zip(observations, shifts, strict=True)]
        posterior = _posterior(seen, grid, denoiser, posterior)
        gradient, information = _derivatives(posterior, seen, grid, denoiser, free)
        gradient = gradient - shifts[free].flatten() / PRIOR**2
        values, vectors = torch.linalg.eigh(information + torch.eye(len(information)).to(information) / PRIOR**2)
        # Far from the maximum the Hessian may be of no definite sign; the prior is what is known at least.
        values = values.abs().clamp(min=PRIOR**-2)
        step = vectors @ ((vectors.T @ gradient) / values)
        error = ((vectors / values) * vectors).sum(1).sqrt()
        errors[free] = error.view(-1, 2)
        shifts[free] += step.clamp(-PRIOR, PRIOR).view(-1, 2)
        if bool((step.abs() <= _CONVERGED * error).all()):
            break
    return shifts, errors


def _posterior(
    observations: Sequence[Observation], grid: Grid, denoiser: Denoiser, last: GaussianPosterior | None = None
) -> GaussianPosterior:
    """The Gaussian posterior, accurate enough for derivatives. last: of nearly the same shifts, to start from."""
    gamma = denoiser.prior.on(grid).to(observations[0].image)
    tolerance = _ACCURACY / (len(denoiser.bands) * grid.shape[0] * grid.shape[1]) ** 0.5
    amplitude, start = (None, None) if last is None else (last.amplitude, last.mean)
    model = denoiser.forward_model(observations, grid)
    return GaussianPosterior(model, observations, gamma, amplitude, tolerance, _MOST, start)


def _derivatives(
    posterior: GaussianPosterior, observations: Sequence[Observation], grid: Grid, denoiser: Denoiser, free: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient (D,) and information (D, D), minus the Hessian, of the fit term, for D = 2 × the free observations.

    With μ the posterior mean, r = y − A μ and A_i the derivative of A, both at fixed μ:
    gradient_i = (A_i μ)ᵀ N⁻¹ r, information_ij = (A_i μ)ᵀ N⁻¹ A_j μ − (A_ij μ)ᵀ N⁻¹ r − u_iᵀ P⁻¹ u_j, where
    u_i = A_iᵀ N⁻¹ r − Aᵀ N⁻¹ A_i μ is how the mean is pulled.
    """
    model = denoiser.forward_model(observations, grid)
    mean = posterior.mean
    k = 2j * torch.pi * torch.as_tensor(wavevectors(grid)).to(mean)
    first = [model.times(k[..., i]) for i in (0, 1)]
    misfit = [o.image - seen for o, seen in zip(observations, model(mean), strict=True)]
    residual = [o.weigh(r) for o, r in zip(observations, misfit, strict=True)]
    moved = [m(mean) for m in first]
    heavy = [[o.weigh(a) for o, a in zip(observations, images, strict=True)] for images in moved]
    bends = {(i, j): model.times(k[..., i] * k[..., j])(mean) for i in (0, 1) for j in (0, 1)}
    gradient, pulls, numbers = [], [], torch.nonzero(free).flatten().tolist()
    information = mean.new_zeros(2 * len(numbers), 2 * len(numbers))
    for row, o in enumerate(numbers):
        for i in (0, 1):
            gradient.append((moved[i][o] * residual[o]).sum())
            pulls.append(first[i].adjoint(_alone(residual, o)) - model.adjoint(_alone(heavy[i], o)))
            for j in (0, 1):
                bend = bends[i, j][o]
                information[2 * row + i, 2 * row + j] = (moved[i][o] * heavy[j][o] - bend * residual[o]).sum()
    pull = torch.cat(pulls)
    answer = posterior.solve(pull, _TOLERANCE)
    return torch.stack(gradient), information - pull.flatten(1) @ answer.flatten(1).T


def _alone(images: Sequence[Tensor], number: int) -> list[Tensor]:
    """The images, all but one of them blank."""
    return [image if i == number else torch.zeros_like(image) for i, image in enumerate(images)]


def shifted(observation: Observation, shift: Tensor) -> Observation:
    """An observation (B = 1) whose pixels lie ``shift`` (2,) arcsec further on the sky."""
    frame = observation.frame
    before = frame.psf.new_zeros(1, 2) if frame.shift is None else frame.shift
    return replace(observation, frame=replace(frame, shift=before + shift.to(before)))
