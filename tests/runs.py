"""Runs of tests/tiny.yaml: their library, made once, their processes and what they logged."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from jointdiff import cli
from jointdiff.config import Config, simulate

TINY = Path(__file__).with_name("tiny.yaml")
TIMEOUT = 150
"""Seconds after which a run counts as hanging."""


def tiny_config(run: Path, *options: str) -> Config:
    """The resolved configuration of a run in that folder."""
    return cli.parse("train", ["--config", str(TINY), "--run", str(run), *options])


def make_library(folder: Path) -> Path:
    """The library and ready scenes of a tiny run."""
    simulate(tiny_config(folder))
    return folder


def new_run(folder: Path, simulated: Path) -> Path:
    """A run folder with a copy of the library, ready to be trained."""
    shutil.copytree(simulated / "library", folder / "library")
    return folder


def start(run: Path, *options: str, processes: int = 1) -> subprocess.Popen:
    """Start ``jointdiff train`` on the CPU, output to run/output.txt."""
    script = str(Path(__file__).parents[1] / "scripts" / "train.py")
    # After "--" the launcher leaves our options alone: it has some of its own that begin with --run.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "--"]
    command = [sys.executable, *(launcher if processes > 1 else []), script]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    with open(run / "output.txt", "a") as output:
        return subprocess.Popen(
            [*command, "--config", str(TINY), "--run", str(run), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def finish(process: subprocess.Popen) -> int:
    """Wait for a run; its exit status. One that hangs is killed."""
    try:
        return process.wait(TIMEOUT)
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, to the process and all that it started: launchers give their workers a session of their own."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, process]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=10)


def kill_after(process: subprocess.Popen, path: Path) -> None:
    """Kill a run as soon as a file or folder is there."""
    end = time.monotonic() + TIMEOUT
    while not path.exists():
        assert process.poll() is None, f"the run ended with status {process.returncode} before {path} was written"
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.005)
    kill(process)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → (step, value) of everything in a run's TensorBoard files, repeated steps included."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((run / "tensorboard").rglob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                tensor = make_ndarray(value.tensor) if value.HasField("tensor") else None
                if tensor is not None and tensor.dtype.kind == "f" and tensor.size == 1:
                    found.setdefault(value.tag, []).append((event.step, float(tensor)))
    return found


def pictures(run: Path) -> set[str]:
    """Tags of the images in a run's TensorBoard files."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    paths: Sequence[Path] = sorted((run / "tensorboard").rglob("events.*"))
    events = (event for path in paths for event in EventFileLoader(str(path)).Load())
    return {v.tag for event in events for v in event.summary.value if v.metadata.plugin_data.plugin_name == "images"}


def hyperparameters(run: Path) -> tuple[dict[str, object], set[str]]:
    """Settings, and tags of the scores beside them, in a run's HParams."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    settings: dict[str, object] = {}
    compared: set[str] = set()
    for path in sorted((run / "tensorboard").rglob("events.*")):
        for value in (v for event in EventFileLoader(str(path)).Load() for v in event.summary.value):
            if value.metadata.plugin_data.plugin_name == "hparams":
                held = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                started = held.session_start_info.hparams
                settings |= {key: getattr(cell, cell.WhichOneof("kind")) for key, cell in started.items()}
                compared |= {metric.name.tag for metric in held.experiment.metric_infos}
    return settings, compared
