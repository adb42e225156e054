"""The settings that a run folder holds: one run's, never mixed with another's, and compared between runs.

Only the standard library is imported at the top: ``--help`` must not wait for torch.
"""

from dataclasses import asdict
from pathlib import Path

from jointdiff.errors import InputError
from jointdiff.settings import Config, require

_VALIDATION = ("validate_every", "validation_scenes", "validation_cut_scenes", "validation_samples")
_MONITORING = ("log_every", "checkpoint_every", *_VALIDATION)

_FREE = frozenset(
    [
        *("resume", "run", "sampling", "calibration", "suite", "leave_one_out", "runs", "benchmark", "library.workers"),
        *(f"training.{name}" for name in _MONITORING),
    ]
)
"""Settings that may change within a run: they change nothing of what is learnt."""

LENGTH = "training.steps"


def flat(tree: dict, ignored: frozenset = frozenset(), prefix: str = "") -> dict:
    """Dotted key → number or text."""
    found: dict = {}
    for name, value in tree.items():
        if prefix + name in ignored:
            continue
        if isinstance(value, dict):
            found |= flat(value, ignored, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(list(value)) if isinstance(value, (list, tuple)) else value
    return found


def refuse_other_run(config: Config, run: Path) -> None:
    """A run folder holds one run: its library, prior, network and training are not mixed with others.

    Raises InputError for other settings than those of the folder, if it has any, or a broken config.yaml.
    """
    if not (path := run / "config.yaml").is_file():
        return
    new, old = flat(asdict(config), _FREE), _held(path)
    for name in sorted(old.keys() | new.keys()):
        expected = f"{old.get(name)} as in {path}, or another run"
        require(str(old.get(name)) == str(new.get(name)), name, new.get(name), expected)


def length_of(run: Path, model: Path) -> int:
    """Steps of a finished run that differs from another, ``model``, in these alone.

    Raises InputError for one that differs in what else is learnt, or is not finished.
    """
    from jointdiff.training import resume_states

    for folder in (run, model):
        if not (folder / "config.yaml").is_file():
            raise InputError(f"runs: no config.yaml, so not the folder of a run ({folder})")
    own, other = _held(run / "config.yaml"), _held(model / "config.yaml")
    for name in sorted((own.keys() | other.keys()) - {LENGTH}):
        if str(own.get(name)) != str(other.get(name)):
            told = f"{name} is {own.get(name)}, expected {other.get(name)} as in {model}"
            raise InputError(f"runs: {told}: they may differ in {LENGTH} alone ({run})")
    steps, states = int(own[LENGTH]), resume_states(run)
    if states and states[-1].name != f"step_{steps:08d}":
        raise InputError(f"runs: {states[-1].name} of {steps} steps, expected a finished run ({run})")
    return steps


def _held(path: Path) -> dict:
    """What a config.yaml says of all that is learnt, flat."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML text, so not the configuration of a run") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected the configuration of a run, got {type(content).__name__}")
    # A setting that is newer than the run had its default then.
    added = {key: value for key, value in flat(asdict(Config()), _FREE).items() if not key.startswith("filters.")}
    return added | flat(content, _FREE)
