"""Do both modes of sampling tell the same? A source on which they differ is one that the network was not trained for.

``amortized`` trusts the network with all the data, ``factorized`` with VIS alone, and takes in the ground by its
likelihood (METHOD section 7). Both are right where training was, so they differ there by little: how much is measured.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ModeCheck:
    """Beyond which disagreement a source is flagged, and how often that happens where nothing is wrong.

    samples: of the amortized and of the factorized mode. rate: share of sources that the threshold was to flag.
    alarms of sources: so many were flagged in ``scenes`` simulated scenes by thresholds fitted without their own scene.
    """

    threshold: float
    rate: float
    samples: tuple[int, int]
    scenes: int
    sources: int
    alarms: int

    @property
    def measured_rate(self) -> float:
        """False alarms per source."""
        return self.alarms / self.sources if self.sources else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the measured rate (Clopper & Pearson 1934, Biometrika 26, 404), as if sources were independent."""
        from scipy.stats import binomtest

        if not self.sources:
            return 0.0, 1.0
        low, high = binomtest(self.alarms, self.sources).proportion_ci(0.95)
        return float(low), float(high)

    @property
    def cards(self) -> dict[str, float]:
        """What the header of a catalog that was checked says of the flag."""
        low, high = self.interval
        told = {"MODETHR": self.threshold, "MODERATE": self.measured_rate, "MODELOW": low, "MODEHIGH": high}
        return told | {"MODESRC": self.sources, "MODENSMP": self.samples[1]}

    @property
    def text(self) -> str:
        """The false-alarm rate in words."""
        low, high = self.interval
        return (
            f"{self.measured_rate:.1%} of sources with nothing wrong are flagged ({low:.1%} to {high:.1%}: "
            f"{self.alarms} of {self.sources} in {self.scenes} simulated scenes)"
        )


UNMEASURED = (
    "how often it flags where nothing is wrong was not measured, and reconstruct refuses it: "
    "--calibration.mode_scenes 24 measures"
)
"""In place of a ModeCheck's text."""


def disagreement(amortized: np.ndarray, factorized: np.ndarray, used=slice(None)) -> np.ndarray:
    """Largest |z| of a source over the bands ``used``, (K,), from samples of its fluxes in each mode, (S, K, C).

    z = (difference of the means)/√(sum of the posterior variances). The means are over the samples whose noise both
    modes have drawn, so that most of it cancels. The modes share data, so z is not normal even where both are right:
    its threshold is fitted, not looked up. 0 for a flux without spread.
    """
    variance = amortized.var(0, ddof=1) + factorized.var(0, ddof=1)
    both = min(len(amortized), len(factorized))
    difference = np.abs(amortized[:both].mean(0) - factorized[:both].mean(0))
    z = np.divide(difference, np.sqrt(variance), out=np.zeros_like(difference), where=variance > 0)
    return z[:, used].max(1, initial=0.0)
