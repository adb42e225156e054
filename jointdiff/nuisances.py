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

from collections.abc import Iterable, Sequence
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
class Belief:
    """p(ν | y) of the D nuisances of all observations of a sky, or of a field whose tiles share it.

    mean: E[ν] (D,). root: (D, D), of Cov[ν]. noise: (O,), of the deepest pixel of each observation, nJy; 0 for one that
    was not seen, which has no nuisances.
    """

    mean: Tensor
    root: Tensor
    noise: Tensor

    @property
    def count(self) -> int:
        """D; 0 where nothing is uncertain."""
        return len(self.mean)

    def draw(self, white: Tensor) -> Tensor:
        """ν (S, D), from white noise (S, D)."""
        return self.mean + white.to(self.root) @ self.root.mT

    def to(self, like: Tensor) -> "Belief":
        return Belief(self.mean.to(like), self.root.to(like), self.noise.to(like))


@dataclass(frozen=True)
class Nuisances:
    """What the D nuisances of all observations of one sky (B = 1) may be, and what they do to it.

    posterior: p(x | y) if there were none. modes: M, (D, h, w) for each observation, nJy per pixel. learnt: (D,), false
    for those left to their prior. pull: V = P⁻¹ Aᵀ N⁻¹ M, (D, C, H, W), so that E[x | y, ν] = μ − V ν. belief: p(ν | y)
    of these data, or of a field that they are a part of.
    """

    posterior: GaussianPosterior
    modes: Sequence[Tensor]
    learnt: Tensor
    pull: Tensor
    belief: Belief

    def sky(self, values: Tensor) -> Tensor:
        """E[x | y, ν] (S, C, H, W) for ν (S, D)."""
        return self.posterior.mean - torch.tensordot(values, self.pull, 1)

    def offsets(self, values: Tensor) -> list[Tensor]:
        """M ν, (S, h, w) for each observation, nJy per pixel, for ν (S, D); none where nothing is uncertain."""
        return offsets(values, self.modes)

    def corrected(self, values: Tensor) -> list[Observation]:
        """The observations as they would be without ν (S, D): S images each, of the same weights."""
        seen = zip(self.posterior.observations, self.offsets(values), strict=True)
        return [replace(o, image=o.image - offset) for o, offset in seen]


def offsets(values: Tensor, modes: Sequence[Tensor]) -> list[Tensor]:
    """M ν, (S, h, w) for each observation, nJy per pixel, for ν (S, D); none where nothing is uncertain."""
    return [torch.tensordot(values.to(mode), mode, 1) for mode in modes] if values.shape[1] else []


@torch.no_grad()
def nuisances_of(posterior: GaussianPosterior, levels: Levels, belief: Belief | None = None) -> Nuisances:
    """The nuisances of a posterior's observations (B = 1); nothing is computed where all levels are 0.

    belief: of the field that this is a tile of; None for p(ν | y) of these data.
    """
    noise = deepest(posterior.observations) if belief is None else belief.noise
    modes, learnt = modes_of(posterior.model, posterior.observations, posterior.mean, levels, noise)
    pull = _pull(posterior, modes)
    belief = belief or _believed(*_evidence(posterior, modes, pull), learnt, noise)
    return Nuisances(posterior, modes, learnt, pull, belief)


@torch.no_grad()
def belief_of(tiles: Iterable[GaussianPosterior], levels: Levels, noise: Tensor) -> Belief:
    """p(ν | y) of the data of several tiles of a field, none of which is in two; their skies count as independent.

    Each has all observations of the field. noise: of the field, as in Belief.
    """
    told, learnt = [], torch.zeros(0)
    for posterior in tiles:
        modes, learnt = modes_of(posterior.model, posterior.observations, posterior.mean, levels, noise)
        told.append(_evidence(posterior, modes, _pull(posterior, modes)))
    precision, vector = (torch.stack(parts).sum(0) for parts in zip(*told, strict=True))
    return _believed(precision, vector, learnt, noise)


def deepest(observations: Sequence[Observation]) -> Tensor:
    """(O,): the noise of the deepest pixel of each observation (B = 1), nJy; 0 where none was seen."""
    depth = torch.cat([o.deepest for o in observations])
    return torch.where(depth > 0, depth.clamp(min=torch.finfo(depth.dtype).tiny).rsqrt(), 0.0)


def _pull(posterior: GaussianPosterior, modes: Sequence[Tensor]) -> Tensor:
    """V = P⁻¹ Aᵀ N⁻¹ M, (D, C, H, W)."""
    if not len(modes[0]):
        return posterior.mean.new_zeros(0, *posterior.mean.shape[1:])
    heavy = [o.weigh(m) for o, m in zip(posterior.observations, modes, strict=True)]
    parts = posterior.model.adjoint(heavy).split(_CHUNK)
    return torch.cat([posterior.answer(part, _ERROR) for part in parts])


def _evidence(posterior: GaussianPosterior, modes: Sequence[Tensor], pull: Tensor) -> tuple[Tensor, Tensor]:
    """Q − I (D, D) and q (D,): what data say of ν, whose density under N(0, I) as a prior is ∝ exp(qᵀ ν − νᵀ Q ν/2).

    With P the precision of x given ν, b = Aᵀ N⁻¹ y and V = P⁻¹ Aᵀ N⁻¹ M, it has the precision Q and the maximum Q⁻¹ q,

        Q = I + (M − A V)ᵀ N⁻¹ (M − A V) + Vᵀ Γ⁻¹ V/a²,   q = Mᵀ N⁻¹ (y − A μ) − Vᵀ (b − P μ),

    equal to I + Mᵀ (N + a² A Γ Aᵀ)⁻¹ M and so on, but with errors of second order in those of V and μ, which
    conjugate gradients leave. M is that of μ, not of the data, whose noise would correlate with its own weight.
    """
    assert len(posterior.mean) == 1, "one scene at a time"
    observations, mean = posterior.observations, posterior.mean
    if not len(pull):
        return mean.new_zeros(0, 0).double(), mean.new_zeros(0).double()
    left = [m - seen for m, seen in zip(modes, posterior.model(pull), strict=True)]
    precision = _products(pull, field(apply(posterior.prior_precision, spectrum(pull)), posterior.grid))
    for o, image in zip(observations, left, strict=True):
        precision = precision + _products(image, o.weigh(image))
    vector = -_products(pull, posterior.residual(mean)).sum(1)
    for o, image, seen in zip(observations, modes, posterior.model(mean), strict=True):
        vector = vector + _products(o.weigh(image), o.image - seen).sum(1)
    return precision, vector


def _believed(precision: Tensor, vector: Tensor, learnt: Tensor, noise: Tensor) -> Belief:
    """The belief of Q − I and q. Those that are not learnt keep p(ν), and the others follow, given them."""
    precision = precision + torch.eye(len(vector)).to(precision)
    lower = torch.linalg.cholesky(precision[learnt][:, learnt])
    root, expected = torch.eye(len(vector)).to(precision), torch.zeros_like(vector)
    expected[learnt] = torch.cholesky_solve(vector[learnt, None], lower).squeeze(1)
    rows, columns = learnt.nonzero(), (~learnt).nonzero().mT
    root[rows, columns] = -torch.cholesky_solve(precision[rows, columns], lower)
    root[rows, rows.mT] = torch.linalg.inv(lower).mT
    return Belief(expected.to(noise), root.to(noise), noise)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products (D, E) of fields (D, …) and (E, …), in double precision."""
    return one.flatten(1).double() @ other.flatten(1).double().mT


def modes_of(
    model: ForwardModel, observations: Sequence[Observation], sky: Tensor, levels: Levels, noise: Tensor
) -> tuple[list[Tensor], Tensor]:
    """M, (D, h, w) for each observation, zero but for its own nuisances; and (D,), true for those that data tell.

    sky: (1, C, H, W), a mean of the scene. noise: (O,), as in Belief; none of what was not observed.
    """
    own: list[list[Tensor]] = [[] for _ in observations]
    learnt: list[bool] = []
    if levels:
        light, slopes, width = _derivatives(model, observations, sky)
        for number, o in enumerate(observations):
            if not noise[number] > 0:
                continue
            constant = noise[number].to(o.image).expand_as(o.image)
            cases = [(levels.zero_point, light[number], False), (levels.psf, width[number], False)]
            cases += [(levels.sky, constant, True)]
            cases += [(levels.position(o), slope[number], o.position_told) for slope in slopes]
            used = [case for case in cases if case[0]]
            own[number] = [level * image[0] for level, image, _ in used]
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
