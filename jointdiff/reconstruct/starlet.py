"""Sparse deconvolution: a sky of few blobs of dyadic sizes, all bands together, by FISTA.

    x = T ⊛ Σ_j φ_j ⊛ α_j,    minimise over β = s α ≥ 0:  ½ ‖N^{-1/2}(y − A x)‖² + λ Σ_{j,p} w_jp ‖β_jp‖₂

φ_j are the B3-spline scaling functions of the starlet transform of the second generation, of which a positive sky is a
positive sum (Starck, Murtagh & Bertero 2011, Handbook of Mathematical Methods in Imaging, 1489); φ_0 is a point. The
norm is over the bands of one place and size (group lasso, Yuan & Lin 2006), or, band by band, an l1. s_jc is the noise
of α's gradient, from the inverse variances alone, so that β is in units of its own significance, and λ the threshold
that noise passes as seldom as a Gaussian passes k sigma.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.forward import ForwardModel, frequencies, gaussian_transfer, half_plane_weights
from jointdiff.reconstruct.bootstrap import Estimator, PointEstimate
from jointdiff.scene import Grid, Observation

Map = Callable[[Tensor], Tensor]


def operator_norm(normal: Map, start: Tensor, rounds: int = 30) -> float:
    """The largest eigenvalue of a symmetric positive map, by power iteration from ``start``; approached from below."""
    vector, value = start / start.norm(), 0.0
    for _ in range(rounds):
        image = normal(vector)
        value = float(image.norm())
        vector = image / max(value, torch.finfo(image.dtype).tiny)
    return value


def fista(
    gradient: Map, shrink: Map, step: Tensor | float, start: Tensor, iterations: int, momentum: bool = True
) -> Tensor:
    """Minimises f + g: x ← shrink(z − step · gradient(z)) with z ahead of x by Nesterov's momentum.

    gradient: ∇f, of Lipschitz constant at most 1/step; for a step that differs between elements, in the norm
    Σ x²/step. shrink: the proximal map of step · g. F(x_k) − F* is then at most 2 ‖x_0 − x*‖² / (step (k + 1)²) (Beck &
    Teboulle 2009, SIAM J. Imaging Sci. 2, 183, theorem 4.4); without momentum it is ISTA, which falls at every step,
    but as 1/k.
    """
    x, ahead, t = start, start, 1.0
    for _ in range(iterations):
        new = shrink(ahead - step * gradient(ahead))
        t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2 if momentum else 1.0
        ahead = new + (t - 1) / t_new * (new - x) if momentum else new
        x, t = new, t_new
    return x


def shrunk(beta: Tensor, threshold: Tensor | float, joint: bool) -> Tensor:
    """The proximal map of threshold · ‖·‖ on β ≥ 0; ‖·‖ over the bands (axis −3) if joint, else |·| of each."""
    positive = beta.clamp(min=0)
    size = positive.norm(dim=-3, keepdim=True) if joint else positive
    return positive * (1 - threshold / size.clamp(min=1e-30)).clamp(min=0)


def splines(grid: Grid, scales: int) -> np.ndarray:
    """φ̂_j (J, H, W//2 + 1) of a point and of scales − 1 blobs, each twice as wide as the one before; φ̂_j(0) = 1."""
    k = frequencies(grid)
    atoms = [np.ones(k.shape[:2])]
    for level in range(scales - 1):
        atoms.append(atoms[-1] * (np.cos(np.pi * 2**level * k) ** 4).prod(-1))  # (1, 4, 6, 4, 1)/16, à trous
    return np.stack(atoms)


class Starlet(PointEstimate):
    """Joint sparse deconvolution.

    sigmas: k, which sets λ. scales: sizes of blobs, from a point up. iterations: of FISTA, in each round. rounds: the
    first with weights w = 1, the others with w = λ/(λ + ‖β‖) of the last (Candès, Wakin & Boyd 2008, J. Fourier Anal.
    Appl. 14, 877), which takes most of the bias of bright sources away. joint: one norm over all bands.
    """

    method = "starlet"

    def __init__(
        self,
        denoiser: Denoiser,
        sigmas: float = 2.0,
        scales: int = 5,
        iterations: int = 400,
        rounds: int = 2,
        joint: bool = True,
    ):
        super().__init__(denoiser)
        self.sigmas, self.scales, self.iterations, self.rounds, self.joint = sigmas, scales, iterations, rounds, joint

    def threshold(self) -> float:
        """λ: what the norm of pure noise, of as many bands as there are, exceeds as seldom as one of k sigma."""
        from scipy.stats import chi2, norm

        return float(chi2.isf(2 * norm.sf(self.sigmas), len(self.denoiser.bands) if self.joint else 1)) ** 0.5

    def estimator(self, observations: Sequence[Observation], grid: Grid) -> Estimator:
        problem = Blobs(self.denoiser.forward_model(observations, grid), observations, self.scales)
        generator = torch.Generator().manual_seed(0)
        like = observations[0].image
        start = torch.randn(1, self.scales, len(self.denoiser.bands), *grid.shape, generator=generator).to(like)
        root = problem.steps.sqrt()
        step = problem.steps / (1.02 * operator_norm(lambda b: root * problem.normal(root * b), start))
        level = self.threshold()

        def estimate(images: Sequence[Tensor]) -> Tensor:
            force = problem.adjoint(images)
            beta, weight = torch.zeros_like(force), torch.ones_like(force[:, :, :1])

            def gradient(b: Tensor) -> Tensor:
                return problem.normal(b) - force

            for number in range(self.rounds):
                if number:
                    size = beta.norm(dim=-3, keepdim=True) if self.joint else beta
                    weight = level / (level + size)
                shrink = partial(shrunk, threshold=step * level * weight, joint=self.joint)
                beta = fista(gradient, shrink, step, beta, self.iterations)
            return problem.sky(beta)

        return estimate


class Blobs:
    """The dictionary of normalised blobs on a grid, seen by a model: β (S, J, C, H, W), without units.

    observations: (B = 1), whose noise is the unit. steps: (J, 1, 1, 1), how far to follow a gradient at each size, from
    the sums of the rows of the operator, which bound it: small blobs overlap few others, and may take longer steps.
    """

    def __init__(self, model: ForwardModel, observations: Sequence[Observation], scales: int):
        self._model, self._observations, grid = model, list(observations), model.grid
        like = observations[0].ivar
        target = gaussian_transfer(grid, model.target_fwhm)
        atoms = torch.as_tensor(target * splines(grid, scales)).to(like)
        precision = model.precision(observations)[0].diagonal(dim1=-2, dim2=-1)  # (H, W//2 + 1, C)
        weights = torch.as_tensor(half_plane_weights(grid)).to(like) / (grid.shape[0] * grid.shape[1])
        noise = torch.einsum("jhw,w,hwc->jc", atoms.square(), weights, precision).sqrt()  # of an atom's gradient
        self._atoms = atoms.unsqueeze(1) / noise[..., None, None]  # (J, C, H, W//2 + 1)
        rows = self._atoms * self._atoms.sum(0) * precision.movedim(-1, 0)
        self.steps = 1 / rows.amax((1, 2, 3)).view(-1, 1, 1, 1)

    def sky(self, beta: Tensor) -> Tensor:
        """x (S, C, H, W), nJy per pixel."""
        return torch.fft.irfft2((self._atoms * torch.fft.rfft2(beta)).sum(1), s=self._model.grid.shape)

    def _back(self, sky: Tensor) -> Tensor:
        return torch.fft.irfft2(self._atoms * torch.fft.rfft2(sky).unsqueeze(1), s=self._model.grid.shape)

    def adjoint(self, images: Sequence[Tensor]) -> Tensor:
        """(N^{-1/2} A D)ᵀ N^{-1/2} y of images (S, h, w)."""
        return self._back(self._model.adjoint([o.weigh(i) for o, i in zip(self._observations, images, strict=True)]))

    def normal(self, beta: Tensor) -> Tensor:
        """(N^{-1/2} A D)ᵀ N^{-1/2} A D β."""
        return self._back(self._model.normal(self.sky(beta), self._observations))
