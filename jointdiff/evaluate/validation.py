"""Validation: the same simulated scenes, of galaxies never trained on, reconstructed and scored again and again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from astropy.table import Table
from torch import Tensor

from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.evaluate import dashboard, tarp
from jointdiff.evaluate.bars import format_bars, judge
from jointdiff.evaluate.figures import save_figure, scene_figure, views_of
from jointdiff.evaluate.report import format_table
from jointdiff.evaluate.score_figures import PALETTE, binned_figure, photometry_figure
from jointdiff.evaluate.scores import Binned, Scores, score, score_by
from jointdiff.evaluate.sources import ORACLE, Estimate, ScoredScene, Sources, measure_scenes
from jointdiff.evaluate.templates import Templates, oracle
from jointdiff.io.atomic import atomic_path
from jointdiff.io.products import merge_catalogs, write_catalog
from jointdiff.measure.catalog import find_sources, measure
from jointdiff.measure.conformal import Calibration
from jointdiff.measure.data_checks import Data
from jointdiff.reconstruct.api import build_reconstructor
from jointdiff.reconstruct.base import NoiseStream, Reconstructor, single_scenes
from jointdiff.reconstruct.diffusion import Diffusion
from jointdiff.reconstruct.wiener import Wiener
from jointdiff.scene import Grid, Observation
from jointdiff.simulate.mock import Mock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = "jointdiff"
"""The name of our own method in tables and TensorBoard; it comes first."""

METHODS = (METHOD, Wiener.method)
"""Those that are always compared, in the order of the tables; others follow."""

MAGNITUDES = (19.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0)
"""Bins in observed AB magnitude."""

SNRS = (5.0, 20.0, 100.0, float("inf"))
"""Bins in observed signal to noise."""


@dataclass(frozen=True)
class Trial:
    """One simulated scene: its name, truth (C, H, W) and observations (B = 1)."""

    name: str
    truth: Tensor
    observations: list[Observation]


@dataclass(frozen=True)
class Report:
    """What a validation found.

    by_magnitude, by_snr: the scores in bins, MAGNITUDES and SNRS. bars: METHOD's errors against what they are to meet.
    catalogs: METHOD's, one per scene. tarp: method → where the truth of all fluxes together lies among its samples.
    """

    scenes: list[ScoredScene]
    sources: Sources
    scores: Scores
    by_magnitude: Binned
    by_snr: Binned
    bars: Table
    catalogs: list[Table]
    tarp: dict[str, np.ndarray]


def method_of(name: str, denoiser: Denoiser) -> Reconstructor:
    """The method of a scoreboard's name that needs no truth: one of settings.Method, or templates."""
    return Templates(denoiser) if name == Templates.method else build_reconstructor(name, denoiser)


class Validation:
    """Reconstructs simulated scenes with a denoiser, the joint Wiener filter of the same Γ and others; scores them all.

    mocks: batches on the grid's torus. margin: scene pixels around the core that is observed and scored; 0 for scenes
    seen whole. samples: per scene. evaluations: of the network per sample. baselines: names of settings.Compared.
    """

    def __init__(
        self,
        mocks: Sequence[Mock],
        grid: Grid,
        margin: int,
        samples: int,
        evaluations: int,
        seed: int,
        baselines: Sequence[str] = (),
    ):
        scenes = [
            (truth, scene)
            for mock in mocks
            for truth, scene in zip(mock.truth, single_scenes(mock.observations), strict=True)
        ]
        label = "cut" if margin else "scene"
        self.trials = [Trial(f"{label}_{i:04d}", *scene) for i, scene in enumerate(scenes)]
        self.weight = np.pad(np.ones([side - 2 * margin for side in grid.shape]), margin) if margin else None
        self.grid, self.samples, self.evaluations, self.seed = grid, samples, evaluations, seed
        self.baselines = tuple(baselines)
        self._wiener: dict[str, Estimate] = {}  # Γ is fixed during training

    def run(self, denoiser: Denoiser, progress: bool = False, calibration: Calibration | None = None) -> Report:
        """Sample every scene, measure and score it. progress: show a bar. calibration: whose errors are scored, too."""
        scenes, catalogs = self.scored(Diffusion(denoiser, self.evaluations), progress), []
        names = [band.name for band in denoiser.bands]
        for scene in scenes:
            ours, scale = scene.estimates[METHOD], self.grid.scale
            catalogs.append(
                measure(
                    ours.samples,
                    names,
                    scene.name,
                    scale,
                    weight=self.weight,
                    data=scene.data,
                    target_fwhm=denoiser.target_fwhm,
                    calibration=calibration,
                )
            )
        scales = {METHOD: calibration.errors} if calibration and calibration.errors else {}
        sources = measure_scenes(scenes, names, self.grid.scale, scales=scales)
        scores = score(sources, np.random.default_rng(self.seed))
        by_magnitude = score_by(sources, sources.magnitude, MAGNITUDES, np.random.default_rng(self.seed))
        by_snr = score_by(sources, sources.snr, SNRS, np.random.default_rng(self.seed))
        bars = judge(sources, METHOD, np.random.default_rng(self.seed))
        positions = tarp.of_sources(sources, np.random.default_rng(self.seed))
        for method, row in tarp.scores(positions, sources, np.random.default_rng(self.seed)).items():
            scores[method]["fluxes"] = row
        return Report(scenes, sources, scores, by_magnitude, by_snr, bars, catalogs, positions)

    def scored(self, method: Reconstructor, progress: bool = False) -> list[ScoredScene]:
        """Every scene with the estimates of a method, as METHOD, of the joint Wiener filter and of the baselines."""
        from rich.progress import track

        scenes, denoiser = [], method.denoiser
        for trial in track(self.trials, "reconstructing", disable=not progress):
            ours = self.estimate(method, trial)
            reference = self.reference(denoiser, trial)
            model = denoiser.forward_model(trial.observations, self.grid)
            data = Data.of(model, trial.observations, denoiser.bands)
            estimates = {METHOD: ours, Wiener.method: reference}
            estimates |= {name: self._baseline(name, denoiser, trial) for name in self.baselines}
            scenes.append(ScoredScene(trial.name, trial.truth, estimates, self.weight, data, denoiser.target_fwhm))
        return scenes

    def reference(self, denoiser: Denoiser, trial: Trial) -> Estimate:
        """What the joint Wiener filter of Γ says about one scene: found once, and kept."""
        if trial.name not in self._wiener:
            self._wiener[trial.name] = self.estimate(Wiener(denoiser), trial)
        return self._wiener[trial.name]

    def estimate(self, method: Reconstructor, trial: Trial) -> Estimate:
        """What a method says about one scene."""
        draws = method.sample(trial.observations, self.grid, self.samples, NoiseStream(self.seed, trial.name))
        return Estimate(draws.samples, draws.mean, isinstance(method, Templates), draws.offsets)

    def _baseline(self, name: str, denoiser: Denoiser, trial: Trial) -> Estimate:
        """One of settings.Compared."""
        if name != ORACLE:
            return self.estimate(method_of(name, denoiser), trial)
        base, names = self.reference(denoiser, trial), [band.name for band in denoiser.bands]
        fwhm, scale = denoiser.target_fwhm, self.grid.scale
        found = find_sources(base.samples, base.mean, names, self.weight, target_fwhm=fwhm, scale=scale)
        model = denoiser.forward_model(trial.observations, self.grid)
        stream = NoiseStream(self.seed, trial.name)
        return oracle(trial.truth, found, model, trial.observations, self.samples, stream)

    def figures(self, report: Report, pictured: int = 2) -> dict[str, "Figure"]:
        """Name → matplotlib Figure: photometry, scores in bins, and the first scenes with a bright source."""
        names = report.sources.names
        figures = {"photometry": photometry_figure(report.sources, np.random.default_rng(self.seed))}
        figures["tarp"] = tarp.figure(report.tarp, PALETTE)
        figures["magnitude"] = binned_figure(report.by_magnitude, MAGNITUDES, names, "AB magnitude")
        figures["snr"] = binned_figure(report.by_snr, SNRS, names, "signal to noise")
        brightest = sorted(self.trials, key=lambda trial: -float(trial.truth.sum()))
        shown = sorted(trial.name for trial in brightest[len(brightest) // 4 :][:pictured])
        for trial, scene in zip(self.trials, report.scenes, strict=True):
            if trial.name in shown:
                figures[trial.name] = self._picture(trial, scene, names)
        return figures

    def _picture(self, trial: Trial, scene: ScoredScene, names: Sequence[str]):
        ours = scene.estimates[METHOD]
        assert scene.data is not None
        views = views_of(trial.observations, scene.data.forward(ours.mean[None]))
        mean, samples, std = (t.cpu().numpy() for t in (ours.mean, ours.samples, ours.samples.std(0)))
        truth = trial.truth.cpu().numpy()
        return scene_figure(views, names, mean, samples, std, truth, self.grid.scale, trial.name)


def table(report: Report) -> str:
    """The printed scoreboard: METHOD beside the Wiener filter and others; below it METHOD's errors and their bars."""
    return f"{format_table(report.scores, report.sources.names)}\n\n{format_bars(report.bars)}"


def log(report: Report, figures: Mapping[str, "Figure"], writer, step: int, prefix: str = "") -> None:
    """Scores, figures and the table, to a TensorBoard SummaryWriter; prefix: what all tags begin with."""
    binned = {"magnitude": (report.by_magnitude, MAGNITUDES), "snr": (report.by_snr, SNRS)}
    dashboard.log(writer, step, prefix, report.scores, binned, figures, table(report))


def write(report: Report, figures: Mapping[str, "Figure"], folder: Path, provenance: Mapping[str, object]) -> None:
    """The joint-resolution catalog, the figures and the calibration table of a validation."""
    write_catalog(folder / "catalog.fits", merge_catalogs(report.catalogs), provenance)
    with atomic_path(folder / "calibration.ecsv") as temporary:
        report.bars.write(temporary, format="ascii.ecsv", overwrite=True)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
