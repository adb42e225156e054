"""Skies whose posterior is known though the solver's Γ is wrong: Gaussian scale mixtures on the periodic grid.

Each frequency (a complex mode in C bands, with its conjugate) draws its own prior covariance, a² c Γ(k) with c one of
``scales``, all alike probable. Given y, and x_t, a frequency is a mixture of Gaussians, so E[x | x_t, y] and the
posterior moments are exact; one scale makes the sky Gaussian. Noise is even and nothing is aliased, so all is exact
frequency by frequency. The analytic denoiser stands in for the network: F ≠ 0, with nothing left to training.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jointdiff.forward import ForwardModel
from jointdiff.gaussian import GaussianPosterior, apply, field, solve, spectrum
from jointdiff.scene import Band, Frame, Grid, Observation
from jointdiff.units import SIGMA_PER_FWHM
from tests.denoisers import galaxy_prior
from tests.observing import BANDS, gaussian_psf

TORUS = Grid.centred((32, 32), 0.1)
GROUND = Grid.centred((16, 16), 0.2)
AMPLITUDE = 3.0
"""With the noise of ``blank_survey`` posterior deviations span a factor of 50, as in scenes of the demo."""


def blank(band: Band, grid: Grid, batch: int, fwhm: float, sigma: float) -> Observation:
    """Empty images with a Gaussian PSF of FWHM in arcsec and even noise, nJy per pixel."""
    size = 2 * int(2.5 * fwhm / grid.scale) + 1
    psf = gaussian_psf(batch, size, SIGMA_PER_FWHM * fwhm / grid.scale)
    image = torch.zeros(batch, *grid.shape, dtype=torch.float64)
    return Observation(band, Frame(grid, psf), image, torch.full_like(image, sigma**-2))


def blank_survey(batch: int, fwhm: float = 0.8) -> list[Observation]:
    """VIS, and two ground bands of that seeing (arcsec), without light."""
    return [
        blank(BANDS[0], TORUS, batch, 0.2, 1.0),
        blank(BANDS[1], GROUND, batch, fwhm, 2.0),
        blank(BANDS[2], GROUND, batch, fwhm, 4.0),
    ]


def gamma() -> Tensor:
    """Γ (H, W//2 + 1, C, C) of the three bands on TORUS."""
    prior = galaxy_prior(3)
    return replace(prior, wavenumbers=prior.wavenumbers.double(), covariances=prior.covariances.double()).on(TORUS)


def draw(observations: Sequence[Observation], scales: Sequence[float], seed: int) -> tuple[Tensor, list[Observation]]:
    """Skies (B, C, H, W) of the mixture (one or two scales), and the observations with their light and noise."""
    assert len(scales) <= 2, "the phase of a real mode has but two values"
    generator = torch.Generator().manual_seed(seed)

    def normal(shape) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    batch = len(observations[0].image)
    phase = spectrum(normal((batch, 1, *TORUS.shape))).angle().abs()  # alike at k and -k; 0 or π where a mode is real
    scale = torch.where(phase < math.pi / 2, scales[0], scales[-1])
    white = spectrum(normal((batch, 3, *TORUS.shape)))
    truth = field(AMPLITUDE * scale.sqrt() * apply(torch.linalg.cholesky(gamma()), white), TORUS)
    images = ForwardModel(TORUS, BANDS, 0.2, observations)(truth)
    seen = [
        replace(o, image=image + normal(image.shape) * o.ivar.rsqrt())
        for o, image in zip(observations, images, strict=True)
    ]
    return truth, seen


class Oracle:
    """What is known of such a sky: the solver's posterior (of Γ, as if c were 1), and the exact denoiser."""

    def __init__(self, observations: Sequence[Observation], scales: Sequence[float]):
        self.observations, self.scales = observations, scales
        self.model = ForwardModel(TORUS, BANDS, 0.2, observations)
        self._amplitude = torch.full((len(observations[0].image),), AMPLITUDE, dtype=torch.float64)
        self.posterior = GaussianPosterior(self.model, observations, gamma(), self._amplitude)
        self._data = spectrum(self.posterior.weighted_data)
        rows, columns = (torch.arange(n) for n in self._data.shape[1:3])
        real = (2 * rows % TORUS.shape[0] == 0)[:, None] & (2 * columns % TORUS.shape[1] == 0)
        self._count = torch.where(real, 0.5, 1.0).double()  # a complex mode is two real ones

    def moments(self, x_t: Tensor | None = None, sigma: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """E[x | x_t, y] as a spectrum, and the covariance (B, H, W//2 + 1, C, C) complex of each frequency."""
        vector, extra = self._data, torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
        if x_t is not None and sigma is not None:
            level = sigma.square().reciprocal().view(-1, 1, 1, 1)
            vector, extra = vector + level * spectrum(x_t), level.unsqueeze(-1)
        identity = torch.eye(3, dtype=torch.float64)
        means, covariances, evidences = [], [], []
        for scale in self.scales:
            precision = self.posterior.prior_precision / scale + self.posterior.data_precision + extra * identity
            lower = torch.linalg.cholesky(precision)
            mean = solve(lower.expand(len(vector), *lower.shape[1:]), vector)
            logdet = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 3 * math.log(scale)
            means.append(mean)
            covariances.append(torch.cholesky_inverse(lower).expand(len(vector), *lower.shape[1:]))
            evidences.append(self._count * ((vector.conj() * mean).real.sum(-1) - logdet))
        share = torch.stack(evidences).softmax(0)[..., None]
        mean = (share * torch.stack(means)).sum(0)
        spread = torch.stack(means) - mean
        outer = spread[..., :, None] * spread[..., None, :].conj()
        return mean, (share[..., None] * (torch.stack(covariances) + outer)).sum(0)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """D* = E[x | x_t, y], (B, C, H, W)."""
        return field(self.moments(x_t, sigma)[0], TORUS)

    def residual(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """D* − μ, what a perfect network would add to the Gaussian posterior of Γ."""
        return self.denoise(x_t, sigma) - self.posterior.given(x_t, sigma).mean
