"""What the stated variance of real pixels does not say: whether their noise is correlated."""

import numpy as np
from scipy.ndimage import uniform_filter

from jointdiff.scene import Observation

CORRELATED = 0.2
"""Correlation of neighbouring pixels above which noise does not count as white."""

_SIGMA_PER_MAD = 1.4826
_SKY = 3.0
"""Deviations within which a pixel, or the mean around it, counts as sky."""
_FAINT = 0.8
"""Mean of 5 × 5 pixels over their stated error that is a source's, however crowded the field."""
_LEAST = 0.1
"""Share of the observed pixels below which the sky left is too little to judge, or full of wings."""
_ROUNDS = 6


def noise_correlation(observation: Observation) -> float:
    """Correlation of the noise between neighbouring pixels of an image (B = 1); NaN where too little sky is seen.

    Measured on sky pixels, over the level of the 9 × 9 sky pixels around. Sky is what lies within three deviations, by
    itself and in the mean of 5 × 5, as judged by the image's own scatter, since stated errors of correlated pixels are
    often too large; the stated errors are bounds, lest a source that fills the image pass for its noise.
    """
    good = _numpy(observation.ivar[0]) > 0
    image = np.where(good, _numpy(observation.image[0]) * np.sqrt(_numpy(observation.ivar[0])), 0.0)
    sky = good
    for _ in range(_ROUNDS):  # the level is better known once sources are out
        excess = image - _mean(image, sky, 9)
        sky = good & _within(excess, sky, _SKY) & _within(_mean(excess, good, 5), sky, _FAINT)
    if sky.sum() <= _LEAST * good.sum():
        return float("nan")
    excess = image - _mean(image, sky, 9)
    products = squares = 0.0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        both = sky[one] & sky[other]
        a, b = excess[one][both], excess[other][both]
        products, squares = products + float(a @ b), squares + float(a @ a + b @ b) / 2
    return products / squares if squares > 0 else float("nan")


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
