"""What the stated variance of real pixels does not say: how much of their noise they share."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.signal import fftconvolve

from jointdiff.correlation import correlation_function, power_spectrum
from jointdiff.decimate import oversampled
from jointdiff.io.observations import place_on_sky
from jointdiff.io.scene_files import MAX_LAG
from jointdiff.io.surveys.product import Product
from jointdiff.scene import Observation

CORRELATED = 0.2
"""Correlation of neighbouring pixels above which noise does not count as white."""

REACH = 3
"""Largest lag, in pixels along each axis, at which resampled noise is still looked for: two native pixels of HSC or
MegaCam on 0.1 arcsec, as far as a bilinear kernel goes. Farther ones show the wings of sources instead."""

PLAUSIBLE = (0.05, 1.2)
"""Variance of sky pixels over the stated one that resampling explains: it takes variance from a pixel. More is that of
sources too faint and many to tell apart; less is of images that hold no noise."""

ENOUGH = 400
"""Sky pixels below which lags cannot be told: with as many, each is off by a twentieth."""

MOST = 2048
"""Side of the part of an image, pixels, on which the noise of a large one is measured: 100 times ENOUGH's precision."""

_SIGMA_PER_MAD = 1.4826
_SKY = 3.0
"""Deviations within which a pixel, or the mean around it, counts as sky."""
_CLIPPED = 0.973**2
"""Share of the variance of Gaussian noise that is left within _SKY deviations, of pixels and of the means around."""
_FAINT = 0.8
"""Mean of 5 × 5 pixels over their stated error that is a source's, however crowded the field."""
_LEAST = 0.1
"""Share of the observed pixels below which the sky left is too little to judge, or full of wings."""
_ROUNDS = 6
_LEVEL, _WIDE_LEVEL = 9, 11
"""Side of the box whose mean is the local level, for the correlation of neighbours and for all lags."""


@dataclass(frozen=True)
class SkyNoise:
    """The noise of sky pixels: its variance over the stated one, and c(l), (2 · REACH + 1,) * 2 lags."""

    level: float
    function: np.ndarray

    def of(self, observation: Observation) -> Observation:
        """An observation that says so of its noise: everywhere, for resampling averages the noise of sources, too."""
        lags = torch.as_tensor(self.function)[None].to(observation.ivar)
        power = power_spectrum(lags, observation.frame.grid.shape)
        return replace(observation, ivar=observation.ivar / self.level, correlation=power)


@dataclass(frozen=True)
class SharedNoise:
    """That neighbouring pixels share their noise: their correlation; the noise itself, None where it is not known."""

    correlation: float
    noise: SkyNoise | None

    def __str__(self) -> str:
        if self.noise is not None:
            remedy = f"spectrum and level, {self.noise.level:.2f} of the stated variance, are taken from the sky"
        else:
            remedy = "stated errors assume white noise; noise: in scene.yaml can name its spectrum"
        return f"noise is correlated (lag-1 {self.correlation:.2f}): {remedy}"


def shared_noise(observation: Observation, scale: float) -> SharedNoise | None:
    """What the sky of an image (B = 1) says of correlated noise that nobody told; None where noise passes for white.

    Spectrum and level are only of images finer than their PSF and the scene's pixels (``scale``, arcsec) need, whose
    resampling explains them: on others what neighbours share may well be faint light, and taken for noise it would
    leave the rest of the image far too sure.
    """
    correlation = noise_correlation(observation) if observation.correlation is None else 0.0
    if not correlation > CORRELATED:
        return None
    noise = sky_noise(observation) if oversampled(observation.frame, scale) else None
    plausible = noise is not None and PLAUSIBLE[0] <= noise.level <= PLAUSIBLE[1]
    return SharedNoise(correlation, noise if plausible else None)


def middle_of(shape: tuple[int, ...]) -> list[range]:
    """Rows and columns of an image's middle, on which its noise is measured: all, where they are not many."""
    firsts = [max(side - MOST, 0) // 2 for side in shape]
    return [range(first, min(first + MOST, side)) for first, side in zip(firsts, shape, strict=True)]


def with_noise(product: Product, scale: float) -> Product:
    """A product of an archive with the noise that its sky shows, as reconstruction would find it; a note says so.

    Measured before a small field is cut out of a mosaic, it is of far more sky; of the largest, the middle is enough.
    scale: of the scene's pixels, arcsec.
    """
    exposure = product.exposure
    part = exposure.part(*(slice(span.start, span.stop) for span in middle_of(exposure.image.shape)))
    observation = place_on_sky(part, part)
    shared = shared_noise(observation, scale)
    if shared is None:
        return product
    if shared.noise is not None:
        power = shared.noise.of(observation).correlation
        assert power is not None
        lags = correlation_function(power, part.image.shape, MAX_LAG)[0]
        told = exposure.ivar / np.float32(shared.noise.level)
        exposure = replace(exposure, ivar=told, correlation=_numpy(lags))
    return replace(product, exposure=replace(exposure, noise_measured=True), notes=(*product.notes, str(shared)))


def noise_correlation(observation: Observation) -> float:
    """Correlation of the noise between neighbouring pixels of an image (B = 1); NaN where too little sky is seen.

    Measured on sky pixels, over the level of the 9 × 9 sky pixels around.
    """
    image, sky = _sky_pixels(observation)
    if not sky.any():
        return float("nan")
    excess = image - _mean(image, sky, _LEVEL)
    products = squares = 0.0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        both = sky[one] & sky[other]
        a, b = excess[one][both], excess[other][both]
        products, squares = products + float(a @ b), squares + float(a @ a + b @ b) / 2
    return products / squares if squares > 0 else float("nan")


def sky_noise(observation: Observation) -> SkyNoise | None:
    """The variance and correlation function of an image's noise (B = 1); None where too little sky is seen.

    The autocovariance of sky pixels over the level of the 11 × 11 around, alike under the mirror images and quarter
    turns of the axes as resampling kernels are. What the level takes away is given back: it is linear in the lags, and
    all beyond REACH count as zero. So is what clipping at _SKY deviations takes. Means of shared noise scatter more
    than stated errors suggest, so what counts as a source's is told anew once the noise is known.
    """
    noise, spread = None, 1.0
    for _ in range(2):
        image, sky = _sky_pixels(observation, spread)
        if sky.sum() < ENOUGH:
            return None
        measured = _symmetric(_autocovariance(image - _mean(image, sky, _WIDE_LEVEL), sky))
        covariance = np.linalg.solve(_levelled(), measured.ravel()).reshape(measured.shape) / _CLIPPED
        level = float(covariance[REACH, REACH])
        if level <= 0:
            return None
        noise, spread = SkyNoise(level, covariance / level), float(np.sqrt(max(1.0, covariance.sum())))
    return noise


def _sky_pixels(observation: Observation, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The image (h, w) in stated deviations, and which of its pixels are sky; none where too few are.

    Sky is what lies within three deviations, by itself and in the mean of 5 × 5, as judged by the image's own scatter,
    since stated errors of correlated pixels are often too large; the stated errors are bounds, lest a source that fills
    the image pass for its noise. spread: of means of shared noise, over those of white noise of the stated errors.
    """
    good = _numpy(observation.ivar[0]) > 0
    image = np.where(good, _numpy(observation.image[0]) * np.sqrt(_numpy(observation.ivar[0])), 0.0)
    sky = good
    for _ in range(_ROUNDS):  # the level is better known once sources are out
        excess = image - _mean(image, sky, _LEVEL)
        sky = good & _within(excess, sky, _SKY) & _within(_mean(excess, good, 5), sky, spread * _FAINT)
    return image, sky if sky.sum() > _LEAST * good.sum() else np.zeros_like(good)


def _autocovariance(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Mean product (2 · REACH + 1,) * 2 of the used pixels that lie a lag apart."""
    padded = [side + REACH for side in used.shape]  # no lag meets the other edge
    sums = [
        np.fft.irfft2(np.abs(np.fft.rfft2(a, padded)) ** 2, padded) for a in (np.where(used, values, 0.0), used * 1.0)
    ]
    size = 2 * REACH + 1
    total, count = (np.roll(a, (REACH, REACH), (0, 1))[:size, :size] for a in sums)
    return total / np.maximum(count, 0.5)


def _symmetric(lags: np.ndarray) -> np.ndarray:
    lags = lags + lags[::-1]
    lags = lags + lags[:, ::-1]
    return (lags + lags.T) / 8


def _levelled() -> np.ndarray:
    """The matrix from the lags of noise to those of noise less the mean of a box around each pixel."""
    side = _WIDE_LEVEL
    kernel = np.full((side, side), -1 / side**2)
    kernel[side // 2, side // 2] += 1
    spread = fftconvolve(kernel, kernel)  # its autocorrelation, lag zero at (side - 1)²
    axis = np.arange(-REACH, REACH + 1)
    lags = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    apart = lags[:, None] - lags[None] + side - 1
    return spread[apart[..., 0], apart[..., 1]]


def _mean(image: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """Mean of the used pixels in a box around each pixel; 0 where there are none."""
    total, count = (uniform_filter(a.astype(float), size, mode="constant") for a in (image * used, used))
    return total / np.maximum(count, 0.5 / size**2)


def _within(values: np.ndarray, used: np.ndarray, bound: float) -> np.ndarray:
    """True within _SKY robust deviations of the used values' median, and within the bound of it."""
    if not used.any():
        return used
    middle = np.median(values[used])
    deviation = _SIGMA_PER_MAD * np.median(np.abs(values[used] - middle))
    return np.abs(values - middle) < min(_SKY * deviation, bound)


def _numpy(tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
