"""The benchmark: every method on the same scenes, each in processes of its own, kept lot by lot.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from jointdiff import build
from jointdiff.settings import Compared, Config, Geometry, positive, require

Kind = Literal["isolated", "blended", "faint", "crowded"]

FAINT = 24.5
"""VIS magnitude from which sources count as faint."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """The benchmark: every method on the same scenes of galaxies never trained on.

    Attributes:
        methods: What is compared with jointdiff and the joint Wiener filter.
        kinds: Skies of one source, of blends, of sources fainter than 24.5 mag, or of many.
        geometries: Ground pixel grids.
        seeing: FWHM of the ground's PSFs over the survey's usual ones.
        scenes: Scenes of each kind, geometry and seeing.
        samples: Samples a scene.
        slow: Methods that see some of the scenes alone; every other one is scored on these by themselves, too. They
            are begun in this order: the longest first, so that no process is left with one of them at the end.
        slow_scenes: How many, of all kinds, geometries and seeing.
        slow_samples: Their samples a scene.
        growth_sizes: Scene sides in pixels at which the growth of costs is measured; none for no such figure.
        workers: Processes; 0 means every core.
    """

    methods: tuple[Compared, ...] = (
        *("wiener-band", "richardson-lucy", "isra", "starlet", "scarlet2", "templates", "oracle"),
        *("dps", "dps-vis", "pigdm", "pigdm-vis", "mmps", "mmps-vis"),
    )
    kinds: tuple[Kind, ...] = ("isolated", "blended", "faint", "crowded")
    geometries: tuple[Geometry, ...] = ("hsc", "lsst")
    seeing: tuple[float, ...] = (0.8, 1.0, 1.25)
    scenes: int = 8
    samples: int = 15
    slow: tuple[Compared, ...] = (*("dps", "dps-vis", "scarlet2", "starlet", "pigdm", "pigdm-vis", "mmps", "mmps-vis"),)
    slow_scenes: int = 24
    slow_samples: int = 4
    growth_sizes: tuple[int, ...] = (32, 64, 128)
    workers: int = 0

    def __post_init__(self) -> None:
        positive(self, "benchmark.", "scenes slow_scenes")
        for name in ("kinds", "geometries", "seeing"):
            values = getattr(self, name)
            require(bool(values), f"benchmark.{name}", "empty", "at least one")
            require(len(set(values)) == len(values), f"benchmark.{name}", list(values), "each value once")
        cells = len(self.kinds) * len(self.geometries) * len(self.seeing)
        require(self.slow_scenes <= cells, "benchmark.slow_scenes", self.slow_scenes, f"at most {cells}, one a lot")
        for name in ("samples", "slow_samples"):
            value = getattr(self, name)
            require(value >= 2, f"benchmark.{name}", value, "at least 2, whose scatter is the error")
        require(all(0.5 <= s <= 2 for s in self.seeing), "benchmark.seeing", list(self.seeing), "0.5 to 2")
        require(self.workers >= 0, "benchmark.workers", self.workers, "at least 0")


@dataclass(frozen=True)
class Lot:
    """Scenes of one kind, seen by one geometry through one seeing."""

    kind: Kind
    geometry: Geometry
    seeing: float

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.geometry}_{self.seeing:g}"


def lots(settings: BenchmarkConfig) -> list[Lot]:
    """All of them; any first n are of kinds, geometries and seeing as evenly as n allows."""
    left = [Lot(*cell) for cell in product(settings.kinds, settings.geometries, settings.seeing)]
    ordered: list[Lot] = []
    seen: Counter = Counter()
    while left:
        rarest = min(left, key=lambda lot: seen[lot.kind] + seen[lot.geometry] + seen[lot.seeing])
        left.remove(rarest)
        ordered.append(rarest)
        seen.update([rarest.kind, rarest.geometry, rarest.seeing])
    return ordered


@dataclass(frozen=True)
class Task:
    """What one process does: one method on some lots. scenes: of each lot, the first so many."""

    config: Config
    settings: BenchmarkConfig
    method: str
    lots: tuple[Lot, ...]
    scenes: int
    samples: int
    folder: Path
    key: str

    def path(self, lot: Lot, method: str | None = None) -> Path:
        return self.folder / (method or self.method) / f"{lot.name}.safetensors"

    @property
    def size(self) -> int:
        return len(self.lots)

    def left(self) -> "Task":
        """What of it is not done yet."""
        from jointdiff.evaluate.benchmark.record import has_records

        return replace(self, lots=tuple(lot for lot in self.lots if not has_records(self.path(lot), self.record_key)))

    @property
    def record_key(self) -> str:
        return f"{self.key}  scenes={self.scenes} of {self.settings.scenes}  samples={self.samples}"

    def run(self) -> None:
        """Try the method on every scene of the lots; alone on one core, so that times mean something."""
        import torch

        from jointdiff.evaluate.benchmark.examine import Examiner
        from jointdiff.evaluate.benchmark.record import read_records, write_records
        from jointdiff.evaluate.validation import METHOD
        from jointdiff.measure.conformal import read_calibration
        from jointdiff.reconstruct.checkpoint import load_denoiser

        torch.set_num_threads(1)
        model, config = Path(self.config.run) / "model", self.config
        denoiser, calibration = load_denoiser(model, "cpu"), read_calibration(model)
        fits = calibration and calibration.network_errors == denoiser.network_errors
        errors = calibration.errors if calibration and fits and self.method == METHOD else None
        grid, drawn = mocks(config, self.settings, self.lots)
        size = (self.samples, config.sampling.evaluations, config.seed)
        examiner, shown = Examiner(self.method, denoiser, grid, *size, errors), pictured(self.settings)
        for lot, trials in drawn.items():
            reference = None if self.method == REFERENCE else read_records(self.path(lot, REFERENCE), self._reference)
            records = [
                examiner.record(trial, reference[number].places if reference else None, not number and lot in shown)
                for number, trial in enumerate(trials[: self.scenes])
            ]
            write_records(self.path(lot), self.record_key, records)

    @property
    def _reference(self) -> str:
        return replace(self, scenes=self.settings.scenes, samples=self.settings.samples).record_key


@dataclass(frozen=True)
class Growth:
    """What one process does: one method at scenes of all sizes, for the growth of its cost."""

    config: Config
    settings: BenchmarkConfig
    method: str
    folder: Path
    key: str
    size: int = 1

    @property
    def _path(self) -> Path:
        return self.folder / "growth" / f"{self.method}.json"

    @property
    def _key(self) -> str:
        return f"{self.key}  sizes={list(self.settings.growth_sizes)}"

    def rows(self) -> list[dict]:
        """The method's rows, as they were kept; raises InputError for a broken file."""
        from jointdiff.evaluate.suite import Kept

        return Kept(self._path.parent, self._key).rows(self.method, self._measured)

    def left(self) -> "Growth":
        """What of it is not done yet."""
        done = self._path.is_file() and json.dumps(self._key) in self._path.read_text(encoding="utf-8")
        return replace(self, size=int(not done))

    def run(self) -> None:
        self.rows()

    def _measured(self) -> list[dict]:
        import torch

        from jointdiff.evaluate.benchmark.growth import grow
        from jointdiff.reconstruct.checkpoint import load_denoiser

        torch.set_num_threads(1)
        config, scenes = self.config, {}
        usual = config.scene.size
        for size in sorted({*self.settings.growth_sizes, usual}):
            sized = replace(config, scene=replace(config.scene, size=size))
            source = build.simulator(sized, "test", 0, self.settings.geometries[:1])
            scenes[size] = source.grid, source.draw(1, build.number_of(config, "growth", size)).observations
        denoiser = load_denoiser(Path(config.run) / "model", "cpu")
        found = grow(self.method, denoiser, scenes, usual, config.sampling.evaluations)
        return [{"method": self.method} | row for row in found]


REFERENCE = "wiener"
"""The method on whose means sources are found: evaluate.sources.REFERENCE, which imports torch."""


def pictured(settings: BenchmarkConfig) -> list[Lot]:
    """The first lot of each kind among those that slow methods see: their first scene is shown."""
    first: dict[str, Lot] = {}
    for lot in lots(settings)[: settings.slow_scenes]:
        first.setdefault(lot.kind, lot)
    return list(first.values())


def mocks(config: Config, settings: BenchmarkConfig, chosen: Sequence[Lot]) -> tuple:
    """The grid, and each lot's trials: whole scenes of galaxies kept for tests, every band observed."""
    from jointdiff.evaluate.validation import Trial
    from jointdiff.reconstruct.base import single_scenes
    from jointdiff.simulate.compose import Crowding

    crowding = {
        "isolated": Crowding(1.0, empty=0.0),
        "blended": Crowding(3.0, empty=0.0, blended=1.0),
        "faint": Crowding(4.0, empty=0.0),
        "crowded": Crowding(12.0, empty=0.0),
    }
    geometries = dict.fromkeys(lot.geometry for lot in chosen)
    simulators = {name: build.simulator(config, "test", 0, (name,)) for name in geometries}
    drawn = {}
    for lot in chosen:
        source = simulators[lot.geometry]
        conditions = replace(source.conditions, seeing=0.0, blur=lot.seeing)
        library = source.library.fainter(FAINT) if lot.kind == "faint" else source.library
        seed = build.number_of(config, f"benchmark {lot.name}", 0)
        mock = source.but(library, conditions, crowding[lot.kind]).draw(settings.scenes, seed)
        scenes = zip(mock.truth, single_scenes(mock.observations), strict=True)
        drawn[lot] = [Trial(f"{lot.name}_{number:02d}", *scene) for number, scene in enumerate(scenes)]
    return source.grid, drawn


def tasks(config: Config, settings: BenchmarkConfig, folder: Path, key: str) -> list[list[Task | Growth]]:
    """Stages, one after the other: the reference tells the others where sources are. In each, slow methods first.

    A slow method's lots are shared among all workers; another's are one process's. Growth, short pieces, comes last.
    """
    every, workers = tuple(lots(settings)), worker_count(settings)
    stages: list[list[Task | Growth]] = [[], []]
    order = [*settings.slow, *methods(settings)]
    names = sorted(methods(settings), key=order.index)
    for name in names:
        slow = name in settings.slow
        seen = every[: settings.slow_scenes] if slow else every
        size = (1, settings.slow_samples) if slow else (settings.scenes, settings.samples)
        shares = workers if slow or name == REFERENCE else 1
        for share in range(shares):
            if chosen := seen[share::shares]:
                stages[name != REFERENCE].append(Task(config, settings, name, chosen, *size, folder, key))
    if settings.growth_sizes:
        alike = {f"{name}-vis" for name in names}  # seen by the network or not, VIS costs the same
        grown = [name for name in names if name != "oracle" and name not in alike]
        stages[1] += [Growth(config, settings, name, folder, key) for name in grown]
    return stages


def methods(settings: BenchmarkConfig) -> list[str]:
    """All that is compared, ours first."""
    return list(dict.fromkeys(["jointdiff", REFERENCE, *settings.methods]))


def worker_count(settings: BenchmarkConfig) -> int:
    from jointdiff.simulate.library import available_cores

    return settings.workers or available_cores()


def run(
    config: Config, settings: BenchmarkConfig, names: Sequence[str], folder: Path, key: str, about: dict, command: str
):
    """The Outcome of the benchmark of a run's model; what its processes leave is kept in ``folder``.

    about, command: what it was made with, and by which command, for the report.
    """
    from jointdiff.evaluate.benchmark.processes import run_tasks
    from jointdiff.evaluate.benchmark.record import read_records
    from jointdiff.evaluate.benchmark.study import study

    stages = tasks(config, settings, folder, key)
    run_tasks(stages, worker_count(settings))
    records: dict[str, dict] = {name: {} for name in methods(settings)}
    growth: list[dict] = []
    for task in (task for stage in stages for task in stage):
        if isinstance(task, Growth):
            growth += task.rows()
            continue
        for lot in task.lots:
            held = read_records(task.path(lot), task.record_key)
            assert held is not None, f"{task.path(lot)} was just made"
            records[task.method] |= {record.scene: record for record in held}
    made = {**about, **{name: value for name, value in vars(settings).items() if name != "workers"}}
    sizes = (names, config.scene.pixel_scale, config.seed, made, command)
    return study(records, subsets(settings), groups(settings), growth, *sizes)


def subsets(settings: BenchmarkConfig) -> list:
    """All scenes, the common ones, and those of each kind, geometry and seeing."""
    from jointdiff.evaluate.benchmark.table import COMMON, Subset
    from jointdiff.evaluate.suite import ALL

    every = lots(settings)
    fast = [name for name in methods(settings) if name not in settings.slow]

    def scenes(chosen: Sequence[Lot], count: int = settings.scenes) -> list[str]:
        return [f"{lot.name}_{number:02d}" for lot in chosen for number in range(count)]

    found = [Subset(ALL, scenes(every), fast, bins=True)]
    found.append(Subset(COMMON, scenes(every[: settings.slow_scenes], 1), methods(settings), bins=True))
    for name in (name for names in groups(settings).values() for name in names):
        kept = [lot for lot in every if name in (lot.kind, lot.geometry, _seeing(lot.seeing))]
        found.append(Subset(name, scenes(kept), fast))
    return found


def groups(settings: BenchmarkConfig) -> dict[str, list[str]]:
    """Title → names of the subsets of scenes that differ in one thing."""
    seeing = [_seeing(value) for value in sorted(settings.seeing)]
    return {"sky": list(settings.kinds), "ground": list(settings.geometries), "seeing": seeing}


def _seeing(factor: float) -> str:
    return f"seeing {factor:g}"
