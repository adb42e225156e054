"""What nobody knows of an observation: its exact position, zero point, PSF width and sky level (METHOD section 5).

Each is a number of unit deviation that moves all pixels of an observation together, to first order by an image:

    y = A x + M ν + noise,   ν ~ N(0, I)

A variance pixel by pixel would not do: it averages out over a source, and the error does not. Every sample of a sky is
one that takes the images for off by a draw of ν: p(x | y) = ∫ p(x | y − M ν) p(ν | y) dν, so no denoiser need know of
errors. For a Gaussian sky x and ν are jointly Gaussian (Bridle et al. 2002, MNRAS 335, 1193, for calibration and beam).

Of positions and sky levels that is what the data tell. Zero points and widths are left to their prior: to a Gaussian
sky each frequency is another witness of the light's colour and profile, and of galaxies one is like the next. The
evidence moved the width of the VIS PSF by 26 of its deviations in simulated scenes; positions came out to their errors.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from jointdiff.forward import ForwardModel, wavevectors
from jointdiff.gaussian import GaussianPosterior, apply, field, spectrum
from jointdiff.scene import Frame, Observation

_ERROR = 0.05
"""Error of what a nuisance does to the sky, in deviations of the stationary posterior along any direction. Behind masks
it may be ten times that; the precision of ν, which is at least I, is off by its square."""

_CHUNK = 8
"""Nuisances whose effect on the sky is solved for at a time, which bounds memory."""


@dataclass(frozen=True)
class Levels:
    """Standard deviations, as of simulate.observe.Conditions.

    jitter: arcsec along each axis, but for VIS, which defines positions. zero_point, psf: fractions of the flux and of
    the PSF's width, pixel included. sky: over the noise of the deepest pixel.
    """

    jitter: float = 0.0
    zero_point: float = 0.0
    psf: float = 0.0
    sky: float = 0.0

    def __bool__(self) -> bool:
        return any(astuple(self))

    def position(self, observation: Observation) -> float:
        """That of an observation's position: its own, where it has one."""
        usual = 0.0 if observation.band.name == "VIS" else self.jitter
        return usual if observation.position_error is None or not self.jitter else observation.position_error


@dataclass(frozen=True)
class Nuisances:
    """p(ν | y) of one scene (B = 1), for the D nuisances of all its observations, and what they do to its sky.

    posterior: p(x | y) if there were none. modes: M, (D, h, w) for each observation, nJy per pixel. learnt: (D,), false
    for those left to their prior. mean: E[ν] (D,). root: (D, D), of Cov[ν]. pull: V = P⁻¹ Aᵀ N⁻¹ M, (D, C, H, W), so
    that E[x | y, ν] = μ − V ν.
    """

    posterior: GaussianPosterior
    modes: Sequence[Tensor]
    learnt: Tensor
    mean: Tensor
    root: Tensor
    pull: Tensor

    @property
    def count(self) -> int:
        """D; 0 where nothing is uncertain."""
        return len(self.mean)

    def draw(self, white: Tensor) -> Tensor:
        """ν (S, D), from white noise (S, D)."""
        return self.mean + white.to(self.root) @ self.root.mT

    def sky(self, values: Tensor) -> Tensor:
        """E[x | y, ν] (S, C, H, W) for ν (S, D)."""
        return self.posterior.mean - torch.tensordot(values, self.pull, 1)

    def offsets(self, values: Tensor) -> list[Tensor]:
        """M ν, (S, h, w) for each observation, nJy per pixel, for ν (S, D); none where nothing is uncertain."""
        return [torch.tensordot(values, modes, 1) for modes in self.modes] if self.count else []

    def corrected(self, values: Tensor) -> list[Observation]:
        """The observations as they would be without ν (S, D): S images each, of the same weights."""
        seen = zip(self.posterior.observations, self.offsets(values), strict=True)
        return [replace(o, image=o.image - offset) for o, offset in seen]


@torch.no_grad()
def nuisances_of(posterior: GaussianPosterior, levels: Levels) -> Nuisances:
    """What is known of the nuisances of a posterior's observations (B = 1); nothing is computed where all levels are 0.

    With P the precision of x given ν, b = Aᵀ N⁻¹ y and V = P⁻¹ Aᵀ N⁻¹ M, the density of ν has the precision Q and the
    maximum Q⁻¹ q,

        Q = I + (M − A V)ᵀ N⁻¹ (M − A V) + Vᵀ Γ⁻¹ V/a²,   q = Mᵀ N⁻¹ (y − A μ) − Vᵀ (b − P μ),

    equal to I + Mᵀ (N + a² A Γ Aᵀ)⁻¹ M and so on, but with errors of second order in those of V and μ, which
    conjugate gradients leave. M is that of μ, not of the data, whose noise would correlate with its own weight. Those
    that are not learnt keep p(ν), and the others follow, given them.
    """
    assert len(posterior.mean) == 1, "one scene at a time"
    model, observations, mean = posterior.model, posterior.observations, posterior.mean
    modes, learnt = modes_of(model, observations, mean, levels)
    if not len(learnt):
        none = mean.new_zeros(0)
        return Nuisances(posterior, modes, learnt, none, none.view(0, 0), none.view(0, *mean.shape[1:]))
    heavy = [o.weigh(m) for o, m in zip(observations, modes, strict=True)]
    pull = torch.cat([posterior.answer(part, _ERROR) for part in model.adjoint(heavy).split(_CHUNK)])
    left = [m - seen for m, seen in zip(modes, model(pull), strict=True)]
    prior = field(apply(posterior.prior_precision, spectrum(pull)), posterior.grid)
    precision = torch.eye(len(pull)).to(pull.double()) + _products(pull, prior)
    for o, image in zip(observations, left, strict=True):
        precision = precision + _products(image, o.weigh(image))
    misfit = [o.image - seen for o, seen in zip(observations, model(mean), strict=True)]
    vector = -_products(pull, posterior.residual(mean)).sum(1)
    for image, misfit_ in zip(heavy, misfit, strict=True):
        vector = vector + _products(image, misfit_).sum(1)
    lower = torch.linalg.cholesky(precision[learnt][:, learnt])
    root, expected = torch.eye(len(pull)).to(precision), torch.zeros_like(vector)
    expected[learnt] = torch.cholesky_solve(vector[learnt, None], lower).squeeze(1)
    rows, columns = learnt.nonzero(), (~learnt).nonzero().mT
    root[rows, columns] = -torch.cholesky_solve(precision[rows, columns], lower)
    root[rows, rows.mT] = torch.linalg.inv(lower).mT
    return Nuisances(posterior, modes, learnt, expected.to(pull), root.to(pull), pull)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products (D, E) of fields (D, …) and (E, …), in double precision."""
    return one.flatten(1).double() @ other.flatten(1).double().mT


def modes_of(
    model: ForwardModel, observations: Sequence[Observation], sky: Tensor, levels: Levels
) -> tuple[list[Tensor], Tensor]:
    """M of a sky (1, C, H, W), (D, h, w) for each observation, zero but for its own nuisances, nJy per pixel; and (D,),
    true for those that data tell.

    None of what was not observed.
    """
    own: list[list[Tensor]] = [[] for _ in observations]
    learnt: list[bool] = []
    if levels:
        light, slopes, width = _derivatives(model, observations, sky)
        for number, o in enumerate(observations):
            level = o.depth.amax((1, 2), keepdim=True).rsqrt().expand_as(o.image)
            cases = [(levels.zero_point, light[number], False), (levels.psf, width[number], False)]
            cases += [(levels.sky, level, True)]
            cases += [(levels.position(o), slope[number], o.position_told) for slope in slopes]
            used = [case for case in cases if case[0] and bool(o.present.all())]
            own[number] = [deviation * image[0] for deviation, image, _ in used]
            learnt += [told for _, _, told in used]
    modes, start, count = [], 0, sum(map(len, own))
    for o, images in zip(observations, own, strict=True):
        mode = sky.new_zeros(count, *o.image.shape[1:])
        for number, image in enumerate(images, start):
            mode[number] = image
        modes.append(mode)
        start += len(images)
    return modes, torch.tensor(learnt, dtype=torch.bool, device=sky.device)


def _derivatives(
    model: ForwardModel, observations: Sequence[Observation], sky: Tensor
) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """A x; its derivatives by a shift along y and x, per arcsec; and that by the logarithm of the PSF's width.

    P̂(f k) for a PSF wider by f: its derivative is k·∇P̂ = −2πi Σ_n (k·s_n) P_n exp(−2πi k·s_n).
    """
    k = 2j * torch.pi * torch.as_tensor(wavevectors(model.grid)).to(sky)
    slopes = [model.times(k[..., axis])(sky) for axis in (0, 1)]
    width = [torch.zeros_like(o.image) for o in observations]
    for axis in (0, 1):
        moments = [replace(o, frame=_first_moment(o.frame, axis)) for o in observations]
        stretched = ForwardModel(model.grid, model.bands, model.target_fwhm, moments).times(-k[..., axis])
        width = [total + part for total, part in zip(width, stretched(sky), strict=True)]
    return model(sky), slopes, width


def _first_moment(frame: Frame, axis: int) -> Frame:
    """The frame with its PSF times the offset (arcsec) from its centre along an axis of the sky."""
    size = frame.psf.shape[-1]
    steps = torch.arange(size).to(frame.psf) - (size - 1) / 2
    row, column = frame.psf_scale * frame.psf.new_tensor(frame.grid.matrix)[axis]
    return replace(frame, psf=frame.psf * (row * steps[:, None] + column * steps))
