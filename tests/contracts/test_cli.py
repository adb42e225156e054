"""The command line: typed YAML, dotted overrides, and one line for every mistake."""

import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace

import pytest
import yaml

from jointdiff import cli, config, suites
from jointdiff.config import Config, ReconstructConfig
from jointdiff.errors import InputError

COMMANDS = ["simulate", "train", "reconstruct", "evaluate", "ingest", "data"]


@pytest.fixture
def yaml_file(tmp_path):
    """Write text to a YAML file and give its name."""

    def write(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def mistake(capsys, arguments: list[str]) -> str:
    """The one line that a wrong command line prints."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jointdiff: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_imports_nothing_heavy(command):
    code = (
        "import sys; from jointdiff.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "finally: print(sorted({'torch', 'numpy', 'galsim', 'astropy', 'matplotlib'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5  # 0.2 s on an idle core; the bound forgives a loaded machine
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"jointdiff {command}" in done.stdout


@pytest.mark.parametrize("launch", [["-m", "jointdiff", "train"], ["scripts/train.py"]])
def test_script_and_module_are_the_same_command(launch, repository):
    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *launch, *options], capture_output=True, text=True, cwd=repository)

    assert "--training.steps" in run("--help").stdout
    wrong = run("--training.stepz", "3")
    assert wrong.returncode == 2
    assert wrong.stderr == "jointdiff: command line: unknown option --training.stepz; did you mean --training.steps?\n"


def test_usage_lists_every_command(capsys):
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(f"  {command} " in usage for command in COMMANDS)


def test_demo_yaml_is_the_default(repository):
    path = str(repository / "configs" / "demo.yaml")
    assert cli.parse("train", ["--config", path]) == Config() == cli.parse("train", [])
    content = yaml.safe_load((repository / "configs" / "demo.yaml").read_text())
    assert content.keys() == asdict(Config()).keys(), "the demo's file shows every key"
    for name, section in asdict(Config()).items():
        if isinstance(section, dict):
            assert content[name].keys() == section.keys(), name


def test_the_survey_config_has_the_usual_errors(repository):
    scene = cli.parse("train", ["--config", str(repository / "configs" / "survey.yaml")]).scene
    assert (scene.jitter, scene.zero_point_error, scene.psf_error, scene.sky_error) == (0.02, 0.01, 0.015, 0.1)


def test_options_override_the_file(yaml_file):
    path = yaml_file("seed: 3\ntraining: {steps: 7, batch_size: 2}\n")
    parsed = cli.parse("train", ["--config", path, "--training.steps", "9", "--resume"])
    training = replace(Config().training, steps=9, batch_size=2)
    assert parsed == Config(seed=3, training=training, resume=True)


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_scientific_notation_is_a_number(number, yaml_file):
    path = yaml_file(f"training:\n  learning_rate: {number}\n")
    assert cli.parse("train", ["--config", path]).training.learning_rate == 1e-4
    assert cli.parse("train", ["--training.learning_rate", number]).training.learning_rate == 1e-4


def test_printed_config_reads_back(capsys, yaml_file):
    options = ["--training.learning_rate", "3e-5", "--bands", "[VIS,u]", "--filters.u", "cfht-u", "--resume"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--print_config", *options])
    assert stop.value.code == 0
    path = yaml_file(capsys.readouterr().out)
    assert cli.parse("train", ["--config", path]) == cli.parse("train", options) != Config()


@pytest.mark.parametrize(
    ("command", "saved"),
    [
        ("train", Config(seed=5, training=replace(Config().training, learning_rate=1e-5), resume=True)),
        ("reconstruct", ReconstructConfig(scene=("a.yaml", "b.yaml"), output="out", checkpoint="model")),
        ("reconstruct", ReconstructConfig(scene=("a.yaml",), output="out", checkpoint=None)),
    ],
)
def test_saved_config_reads_back(command, saved, tmp_path):
    path = tmp_path / "run" / "config.yaml"
    config.save_config(saved, path)
    assert cli.parse(command, ["--config", str(path)]) == saved
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


def test_scene_is_repeatable(yaml_file):
    parsed = cli.parse("reconstruct", ["--scene", "a.yaml", "--scene=b.yaml", "--output", "out", "--method", "wiener"])
    assert parsed == ReconstructConfig(scene=("a.yaml", "b.yaml"), output="out", method="wiener")
    path = yaml_file("scene: [a.yaml]\noutput: out\n")
    assert cli.parse("reconstruct", ["--config", path, "--scene", "b.yaml"]).scene == ("a.yaml", "b.yaml")
    assert cli.parse("reconstruct", ["--config", path]).scene == ("a.yaml",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training: {stepz: 3}", "unknown key training.stepz; did you mean training.steps?"),
        ("traning: {steps: 3}", "unknown key traning; did you mean training?"),
        ("learning_rate: 3", "unknown key learning_rate; did you mean training.learning_rate?"),
        ("class_path: os.system", "unknown key class_path; did you mean "),
        ("training: {steps: many}", "training.steps is many, expected int"),
        ("training: {steps: 1.5}", "training.steps is 1.5, expected int"),
        ("training: {steps: -5}", "training.steps is -5, expected more than 0"),
        ("training: {learning_rate: .inf}", "training.learning_rate is inf, expected "),
        ("training: 3", "training is 3, expected keys such as training.steps"),
        ("bands: VIS", "bands is 'VIS', expected a list"),
        ("bands: [VIS, g, g]", "bands is ['VIS', 'g', 'g'], expected band g once"),
        ("bands: [g, r]", "bands is ['g', 'r'], expected VIS among them"),
        ("scene: {mean_sources: 0.5}", "scene.mean_sources is 0.5, expected at least 1"),
        ("scene: {target_fwhm: 0.05}", "scene.target_fwhm is 0.05, expected at least 0.2"),
        ("scene: {target_fwhm: .nan}", "scene.target_fwhm is nan, expected at least 0.2"),
        ("bands: [VIS, u]", "filters.u is missing, expected a filter for every band"),
        ("resume: 3", "resume is 3, expected true or false"),
        ("scene: {geometries: [euclid]}", "scene.geometries is euclid, expected one of ['lsst', 'hsc', 'mer']"),
        ("- 3", "expected keys such as run, got [3]"),
        ("", "expected keys such as run, got None"),
    ],
)
def test_mistake_in_a_file_names_file_and_key(text, told, yaml_file, capsys):
    path = yaml_file(text)
    assert f"{path}: {told}" in mistake(capsys, ["train", "--config", path])


def test_broken_yaml_names_the_line(yaml_file, capsys):
    path = yaml_file("seed: 1\ntraining: [1\n")
    assert f"{path}, line 3: " in mistake(capsys, ["train", f"--config={path}"])


def test_missing_file_is_named(tmp_path, capsys):
    path = str(tmp_path / "none.yaml")
    assert f"{path}: No such file" in mistake(capsys, ["train", "--config", path])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("trin", "unknown command trin; did you mean train?"),
        ("train --training.step 4", "unknown option --training.step; did you mean --training.steps?"),
        ("train --print_conf", "unknown option --print_conf; did you mean --print_config?"),
        ("train --training.steps x", "training.steps is x, expected int"),
        ("train --training.steps", "expected one argument"),
        ("train --scene.drop_band 1.5", "scene.drop_band is 1.5, expected a fraction from 0 to 1"),
        ("train --seed -1", "seed is -1, expected at least 0"),
        ("train steps=3", "unrecognized arguments: steps=3"),
        ("evaluate --resume", "--resume is an option of train, not of evaluate"),
        ("simulate --no_resume", "--no_resume is an option of train, not of simulate"),
        ("reconstruct --resume", "--resume is an option of train, not of reconstruct"),
        ("reconstruct --output out", "scene is missing, expected --scene FILE"),
        ("reconstruct --scene a.yaml", "output is missing, expected --output FOLDER"),
        ("reconstruct --method magic", "method is magic, expected one of ['diffusion', 'wiener', 'wiener-band', "),
        ("evaluate --sampling.baselines [magic]", "expected one of ['wiener-band', 'richardson-lucy', "),
    ],
)
def test_mistake_on_the_command_line(arguments, told, capsys):
    assert told in mistake(capsys, arguments.split())


def test_mistake_found_by_a_stage_is_one_line(monkeypatch, capsys):
    def stage(parsed: ReconstructConfig) -> None:
        raise InputError(f"g: PSF sums to 0.52, expected 0.9 to 1.1 ({parsed.scene[0]})")

    monkeypatch.setattr(config, "reconstruct", stage)
    told = mistake(capsys, ["reconstruct", "--scene", "a.yaml", "--output", "out"])
    assert told == "jointdiff: g: PSF sums to 0.52, expected 0.9 to 1.1 (a.yaml)\n"


def test_a_warning_is_one_line(monkeypatch, capsys):
    """On stderr, and only while a command runs: the format belongs to the process."""

    def stage(parsed: Config) -> None:
        warnings.warn("g: noise is correlated\n (lag-1 0.70)", stacklevel=1)

    usual = warnings.formatwarning
    monkeypatch.setattr(config, "train", stage)
    monkeypatch.setattr(warnings, "showwarning", lambda *w: sys.stderr.write(warnings.formatwarning(*w[:4])))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["train"]) == 0
    assert capsys.readouterr().err == "jointdiff: warning: g: noise is correlated (lag-1 0.70)\n"
    assert warnings.formatwarning is usual


def test_only_train_offers_to_resume(yaml_file):
    """But every command takes the file of a run, which has the key."""
    path = yaml_file("resume: true\n")
    for command in ("simulate", "train", "evaluate"):
        assert cli.parse(command, ["--config", path]).resume
        assert ("--resume" in cli.build_parser(command).format_help()) == (command == "train")


def test_other_errors_keep_their_traceback(monkeypatch):
    def stage(parsed: Config) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(config, "train", stage)
    with pytest.raises(ValueError, match="ours"):
        cli.main(["train"])


def test_the_launcher_adds_nothing_to_a_mistake(repository):
    """README's command: neither accelerate's warning of defaults above our line, nor its traceback below."""
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    launch = [*launcher, "--config_file", "configs/accelerate/single.yaml", "scripts/train.py"]
    done = subprocess.run([*launch, "--training.stepz", "3"], capture_output=True, text=True, cwd=repository)
    assert done.stdout == ""
    assert done.stderr == "jointdiff: command line: unknown option --training.stepz; did you mean --training.steps?\n"
    assert done.returncode == 1  # of accelerate, whatever ours was


@pytest.mark.parametrize("name", ["single", "cpu", "multi_gpu", "multi_node"])
def test_accelerate_reads_its_configs(name, repository):
    from accelerate.commands.config.config_args import load_config_from_file

    path = repository / "configs" / "accelerate" / f"{name}.yaml"
    loaded = load_config_from_file(str(path))
    assert loaded.use_cpu == (name == "cpu")
    assert loaded.mixed_precision == "no"
    assert (loaded.num_machines > 1) == (name == "multi_node")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--run runs/demo"),
        (["--sampling.evaluations", "16"], "--run runs/demo --sampling.evaluations 16"),
        (
            ["--run", "my runs/a", "--benchmark.slow", "[dps]", "--benchmark.workers", "3"],
            "--run 'my runs/a' --benchmark.slow",
        ),
        (
            ["--scene.jitter", "0.02", "--filters.g", "lsst-g", "--seed", "4"],
            "--seed 4 --filters.g lsst-g --scene.jitter",
        ),
    ],
)
def test_the_benchmark_tells_a_command_that_makes_it_again(options, told, repository, monkeypatch):
    """Whatever was changed; configs/benchmark.yaml itself is the defaults, so that --config is all that it takes."""
    monkeypatch.chdir(repository)
    made = cli.parse("evaluate", ["--config", "configs/benchmark.yaml", *options])
    if not options:
        assert made == suites.EvaluateConfig(suite="benchmark")
    command = suites.benchmark_command(made)
    assert told in command
    python, script, *again = shlex.split(command)
    assert (python, script) == ("python", "scripts/evaluate.py")
    workers = replace(made.benchmark, workers=0)
    assert cli.parse("evaluate", again) == replace(made, benchmark=workers)
