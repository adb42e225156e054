"""The suites of evaluate: what the command leaves behind, and that it goes on where it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

from jointdiff import cli, config, suites
from jointdiff.diffusion.denoiser import Denoiser
from jointdiff.errors import InputError
from jointdiff.evaluate import length_study, solver_study
from jointdiff.evaluate.suite import Kept, format_rows, table_of
from jointdiff.reconstruct.checkpoint import save_denoiser
from tests.denoisers import DEMO_BANDS, galaxy_prior
from tests.runs import TINY, make_library, pictures, tiny_config

pytestmark = pytest.mark.usefixtures("own_process")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run with the model of an untrained network."""
    folder = make_library(tmp_path_factory.mktemp("run"))
    prior = galaxy_prior(len(DEMO_BANDS))
    denoiser = Denoiser(DEMO_BANDS, 0.1, 0.2, len(prior.wavenumbers), (16, 16), 1)
    denoiser.set_prior(prior)
    save_denoiser(denoiser.eval(), folder / "model")
    return folder


def evaluate(run: Path, *options: str) -> int:
    return cli.main(["evaluate", "--config", str(TINY), "--run", str(run), *options])


def test_a_suite_leaves_its_table_and_figure_and_goes_on_where_it_was(run, monkeypatch, capsys):
    monkeypatch.setattr(solver_study, "EVALUATIONS", (3, 4))
    assert evaluate(run, "--suite", "solver") == 0
    folder = run / "evaluation" / "solver"
    told = capsys.readouterr().out
    assert "CRPS/sd" in told
    assert (folder / "table.txt").read_text().strip() in told
    table = Table.read(folder / "table.ecsv", format="ascii.ecsv")
    assert set(table["solver"]) == {"multistep", "ancestral", "dpm", "heun", "wiener"}
    assert {(row["solver"], row["evaluations"]) for row in table if row["solver"] == "heun"} == {("heun", 4)}
    assert table.meta["method"] == "diffusion"
    assert (folder / "solvers.png").is_file()
    assert "suites/solver/solvers" in pictures(run)
    assert not (run / "evaluation" / "scoreboard.txt").exists()
    (folder / "rows" / "dpm_04.json").unlink()
    monkeypatch.setattr(solver_study, "EVALUATIONS", (4,))
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    assert evaluate(run, "--suite", "solver") == 0
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {"dpm_04.json"}
    monkeypatch.setattr(solver_study, "_score", lambda *_: pytest.fail("made again"))
    with pytest.raises(BaseException, match="made again"):
        evaluate(run, "--suite", "solver", "--sampling.samples", "4")


def test_morphology_of_a_few_scenes(run, monkeypatch, capsys):
    from jointdiff.evaluate import morphology_study

    pytest.importorskip("statmorph", reason="statmorph comes with the extras morphology and dev")
    monkeypatch.setattr(morphology_study, "SAMPLES", 2)
    assert evaluate(run, "--suite", "morphology", "--sampling.scenes", "1") == 0
    folder = run / "evaluation" / "morphology"
    table = Table.read(folder / "table.ecsv", format="ascii.ecsv")
    assert set(table["quantity"]) == set(morphology_study.QUANTITIES) and set(table["method"]) == {
        "jointdiff",
        "wiener",
    }
    assert (table["sources"] > 0).all() and (table["flagged_truth"] + table["scored"] <= table["sources"]).all()
    assert (folder / "morphology.png").is_file() and "coverage" in capsys.readouterr().out


BENCHMARK = """
suite: benchmark
benchmark:
  methods: []
  kinds: [crowded]
  geometries: [lsst]
  seeing: [1.0]
  scenes: 4
  samples: 3
  slow: []
  slow_scenes: 1
  growth_sizes: []
  workers: 2
"""


def test_a_benchmark_goes_on_where_it_was_and_says_the_same(run, tmp_path, monkeypatch, capsys):
    """What was kept is used; what is made again says the same, timings aside."""
    monkeypatch.setattr("jointdiff.evaluate.benchmark.table.RESAMPLES", 20)
    settings = tmp_path / "benchmark.yaml"
    settings.write_text(BENCHMARK)
    assert evaluate(run, "--config", str(settings)) == 0
    folder = run / "evaluation" / "benchmark"
    told = capsys.readouterr().out
    assert "all scenes (4)" in told
    assert (folder / "table.txt").read_text().strip() in told
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    assert (folder / "readme.md").read_text().startswith("| method | image error |")
    assert "suites/benchmark/cost" in pictures(run)
    table = Table.read(folder / "table.ecsv", format="ascii.ecsv")
    assert set(table["method"]) == {"jointdiff", "wiener"}
    evaluations = table[(table["method"] == "jointdiff") & (table["score"] == "evaluations")]
    assert evaluations["value"].tolist() == [4.0], "tests/tiny.yaml asks for so many"
    kept = {path: path.stat().st_mtime_ns for path in (folder / "rows").rglob("*.safetensors")}
    assert len(kept) == 2
    removed = folder / "rows" / "jointdiff" / "crowded_lsst_1.safetensors"
    removed.unlink()
    assert evaluate(run, "--config", str(settings)) == 0
    changed = {path for path, when in kept.items() if path.stat().st_mtime_ns != when}
    assert changed == {removed}
    again = Table.read(folder / "table.ecsv", format="ascii.ecsv")
    timed = ["seconds_per_scene", "seconds_per_sample", "wall_per_scene", "memory_mib"]
    for old, new in zip(table, again, strict=True):
        assert old["score"] in timed or str(tuple(old)) == str(tuple(new))


@pytest.fixture(scope="module")
def lengths(run, tmp_path_factory) -> list[Path]:
    """Runs of 8 and 4 steps, the first with the library."""
    folders = [run, tmp_path_factory.mktemp("length")]
    for folder, steps in zip(folders, ("8", "4"), strict=True):
        config.save_config(tiny_config(folder, "--training.steps", steps), folder / "config.yaml")
    save_denoiser(untrained_with(4), folders[1] / "model")
    return folders


def untrained_with(seed: int, scale: float | torch.Tensor = 1.0) -> Denoiser:
    """A network that says something of its own. scale: of Γ (K, C, C)."""
    prior = galaxy_prior(len(DEMO_BANDS))
    denoiser = Denoiser(DEMO_BANDS, 0.1, 0.2, len(prior.wavenumbers), (16, 16), 1)
    denoiser.set_prior(replace(prior, covariances=scale * prior.covariances))
    exit_ = denoiser.network.exit.weight
    exit_.data = 0.02 * torch.randn(exit_.shape, generator=torch.Generator().manual_seed(seed))
    return denoiser.eval()


def test_scores_against_the_length_of_training(lengths, monkeypatch, capsys):
    run, other = lengths
    runs = ("--suite", "length", "--runs", f"[{other}]", "--sampling.scenes", "2", "--calibration.scenes", "1")
    assert evaluate(run, *runs) == 0
    folder, told = run / "evaluation" / "length", capsys.readouterr().out
    assert "4 steps: " in told and "8 steps: " in told and " bars met" in told and (folder / "length.png").is_file()
    table = Table.read(folder / "table.ecsv", format="ascii.ecsv")
    assert set(table["steps"]) == {4, 8} and set(table["band"]) == {"VIS", *"grizy"}
    every = table[np.isinf(table["snr_low"]) & np.isinf(table["snr_high"])]
    assert len(every) == 12
    for name in ("pull_width", "coverage", "coverage_scaled", "crps_ratio", "image_error_typical_ratio"):
        low, value, high = (every[name + end] for end in ("_low", "", "_high"))
        assert np.isfinite(value).all() and (low <= high).all(), name
    one, two = (every[every["steps"] == steps] for steps in (4, 8))
    assert list(one["sources"]) == list(two["sources"]), "the same scenes, sources of the same reference"
    assert (np.asarray(one["crps_ratio"]) != two["crps_ratio"]).all()
    monkeypatch.setattr(length_study, "score_rows", lambda *_: pytest.fail("made again"))
    assert evaluate(run, *runs) == 0, "rows of runs that were scored are kept"
    assert not (other / "evaluation").exists() and not (other / "model" / "calibration.json").exists()


def _unfinished(folder: Path) -> None:
    (folder / "checkpoints" / "step_00000003").mkdir(parents=True)


def _of_another_prior(folder: Path) -> None:
    save_denoiser(untrained_with(1, scale=1.1), folder / "model")


def _of_another_prior_of_small_scales(folder: Path) -> None:
    """Where Γ is below a thousandth of its largest value."""
    knots = len(galaxy_prior(len(DEMO_BANDS)).wavenumbers)
    save_denoiser(
        untrained_with(1, scale=torch.linspace(0, 1, knots).gt(0.7).view(-1, 1, 1) * 0.1 + 1), folder / "model"
    )


@pytest.mark.parametrize(
    ("options", "spoil", "told"),
    [
        ([], lambda folder: (folder / "config.yaml").unlink(), "no config.yaml, so not the folder of a run"),
        (["--training.batch_size", "3"], None, "training.batch_size is 3, expected 2 as in"),
        (["--seed", "1"], None, "seed is 1, expected 0 as in"),
        (["--training.steps", "8"], None, "of 8 steps, expected one run of each length"),
        ([], _unfinished, "step_00000003 of 12 steps, expected a finished run"),
        ([], _of_another_prior, "Γ is not that of"),
        ([], _of_another_prior_of_small_scales, "Γ is not that of"),
    ],
)
def test_runs_that_are_not_of_one_curve_are_refused(options, spoil, told, lengths, tmp_path, capsys):
    run, other = lengths[0], tmp_path / "other"
    shutil.copytree(lengths[1] / "model", other / "model")
    config.save_config(tiny_config(other, "--training.steps", "12", *options), other / "config.yaml")
    if spoil is not None:
        spoil(other)
    assert evaluate(run, "--suite", "length", "--runs", f"[{other}]") == 2
    line = capsys.readouterr().err
    assert "runs" in line and told in line and str(other) in line and line.count("\n") == 1


def test_every_suite_of_the_command_has_a_function():
    from typing import get_args

    from jointdiff.suites import Suite

    assert {"scoreboard", *suites.SUITES} == set(get_args(Suite))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--suite", "solvers"], "solvers"),
        (["--suite", "blank", "--leave_one_out", "a.yaml"], "suite is blank, expected scoreboard, which it leaves out"),
        (["--suite", "length"], "runs is [], expected folders of runs with suite length"),
        (["--runs", "[a]"], "runs is ['a'], expected folders of runs with suite length, and with no other suite"),
        (["--leave_one_out", "no_such/scene.yaml"], "no_such/scene.yaml"),
    ],
)
def test_mistakes_are_one_line(run, options, told, capsys):
    assert evaluate(run, *options) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_leave_one_out_of_a_ready_scene(run, capsys):
    scene = run / "scenes" / "lsst" / "scene.yaml"
    assert evaluate(run, "--leave_one_out", str(scene), "--sampling.samples", "4") == 0
    table = Table.read(run / "evaluation" / "leave_one_out" / "table.ecsv", format="ascii.ecsv")
    assert list(table["band"][table["method"] == "wiener"]) == ["VIS", *"grizy"]
    assert (run / "evaluation" / "leave_one_out" / "leave_one_out.png").is_file()
    assert "chi2/N" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"key": "1"}'])
def test_broken_rows_are_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: not the rows of a suite"):
        Kept(tmp_path, "1").rows("a", list)


def test_rows_of_another_key_are_made_again(tmp_path):
    assert Kept(tmp_path, "1").rows("a", lambda: [{"x": 1.0}]) == [{"x": 1.0}]
    assert Kept(tmp_path, "1").rows("a", lambda: pytest.fail("made again")) == [{"x": 1.0}]
    assert Kept(tmp_path, "2").rows("a", lambda: [{"x": 2.0}]) == [{"x": 2.0}]
    assert json.loads((tmp_path / "a.json").read_text())["key"] == "2"


def test_a_printed_table_leaves_out_what_there_is_not():
    rows = [{"name": "a", "x": 1.25}, {"name": "long"}]
    text = format_rows(rows, {"name": ("name", "{}"), "x": ("number", "{:.1f}")})
    assert text.splitlines() == ["name  number", "------------", "a        1.2", "long"]
    assert table_of(rows)["x"].tolist()[0] == 1.25
