"""The command line: ``python -m jointdiff simulate|train|reconstruct|evaluate|ingest|data`` and scripts/*.py.

Each command reads YAML (``--config``) and dotted overrides (``--training.steps 500``) into a config
dataclass and calls the function of the same name in config.py. A user's mistake is one line and status 2.
"""

import re
import sys
import warnings
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from itertools import chain, takewhile
from typing import Any, get_origin, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from jointdiff import archives, config
from jointdiff.errors import InputError, closest

COMMANDS = {
    "simulate": config.Config,
    "train": config.Config,
    "reconstruct": config.ReconstructConfig,
    "evaluate": config.EvaluateConfig,
    "ingest": archives.IngestConfig,
    "data": archives.DataConfig,
}

_WORDS = {"ingest": ("survey", "files"), "data": ("action", "folder")}
"""Options that may be given as words before the first option: scripts/ingest.py euclid-q1 a.fits --output out."""

_REPEATED = {
    "reconstruct": ("scene", "A scene.yaml; repeat the option for more."),
    "evaluate": (
        "leave_one_out",
        "A scene.yaml whose observations are each predicted from the others; repeat the option for more.",
    ),
    "ingest": ("files", "A file of the archive; repeat the option for more."),
}
"""The option of a command that is a list, given by repeating it."""

_SWITCHES = {"ingest": ("add", "Add the bands to the scene that is in the folder.")}
"""The option of a command that needs no value."""


def main(arguments: list[str]) -> int:
    """Run one command, ``[name, option, …]``; returns the exit status, 2 for a user's mistake."""
    command = arguments[0] if arguments else "--help"
    try:
        if command in ("-h", "--help"):
            print(_usage())
        elif command == "--version":
            print(version("jointdiff"))
        elif command not in COMMANDS:
            raise InputError(f"unknown command {command}; did you mean {closest(command, COMMANDS)}?")
        else:
            with _one_line_warnings():
                _function(command)(parse(command, arguments[1:]))
    except InputError as error:
        print("jointdiff:", *str(error).splitlines(), file=sys.stderr)
        return 2
    return 0


def _function(command: str) -> Callable[[Any], None]:
    """What a command does: the function of its name."""
    return getattr(archives if hasattr(archives, command) else config, command)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """What is odd but usable is told as a mistake is: in one line, without the code that noticed it."""

    def one_line(message, category, filename, lineno, line=None) -> str:
        return " ".join(["jointdiff: warning:", *str(message).split()]) + "\n"

    usual = warnings.formatwarning
    warnings.formatwarning = one_line  # only the format: who records warnings still gets them
    try:
        yield
    finally:
        warnings.formatwarning = usual


def parse(command: str, arguments: list[str]) -> Any:
    """The config dataclass of ``command``, filled from its defaults, YAML files and options, in this order.

    Raises InputError naming the file (or the command line), the key and, for an unknown one, the closest valid key.
    """
    kind = COMMANDS[command]
    parser = build_parser(command)
    arguments = _named(command, arguments)
    files = list(_config_files(arguments))
    for path in files:
        _check_file(path, kind, parser)
    _check_options(arguments, command)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise InputError(f"command line: {_explain(error)}") from error
    try:
        return _build(kind, parser.instantiate(values))
    except InputError as error:
        key = str(error).split()[0]
        typed = any(argument.split("=")[0] == f"--{key}" for argument in arguments)
        source = ", ".join(files) if files and not typed else "command line"
        raise InputError(f"{source}: {error}") from error


def build_parser(command: str) -> ArgumentParser:
    """The parser of ``command``: one option per leaf of its config dataclass."""
    kind = COMMANDS[command]
    parser = ArgumentParser(
        prog=f"jointdiff {command}",
        usage=f"python -m jointdiff {' '.join([command, *map(str.upper, _WORDS.get(command, ()))])} "
        "[--config FILE] [--KEY VALUE …]",
        description=_function(command).__doc__,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file; options override it.")
    lists, switches = ([told[command]] if command in told else [] for told in (_REPEATED, _SWITCHES))
    if issubclass(kind, config.Config):  # a file for train has the key
        switches.append(("resume", "Continue from the last checkpoint." if command == "train" else SUPPRESS))
    parser.add_class_arguments(kind, skip={name for name, _ in (*lists, *switches)})
    for name, told in lists:
        parser.add_argument(f"--{name}", action="append", default=[], metavar="FILE", help=told)
    for name, told in switches:
        parser.add_argument(f"--{name}", action=ActionYesNo, default=False, help=told)
    sections = {key for key, type_ in _keys(kind) if is_dataclass(type_)}
    for action in parser._actions:
        if action.dest in sections:  # one way to give a section: --config, or a dotted option for each key
            action.help = SUPPRESS
    return parser


def _usage() -> str:
    lines = ["usage: python -m jointdiff COMMAND [--config FILE] [--KEY VALUE …]", ""]
    lines += [f"  {name:<12} {(_function(name).__doc__ or '').splitlines()[0]}" for name in COMMANDS]
    return "\n".join([*lines, "", "COMMAND --help lists the keys, --print_config the resolved configuration."])


def _keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key below a config dataclass with its type, sections included."""
    for name, type_ in get_type_hints(kind).items():
        yield prefix + name, type_
        if is_dataclass(type_):
            yield from _keys(type_, f"{prefix}{name}.")  # type: ignore[arg-type]


def _named(command: str, arguments: list[str]) -> list[str]:
    """The words before the first option as the options that they stand for; the last takes all that are left."""
    names = _WORDS.get(command, ())
    words = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    taken = words if names and names[-1] == _REPEATED.get(command, ("",))[0] else words[: len(names)]
    options = [(f"--{names[min(place, len(names) - 1)]}", word) for place, word in enumerate(taken)]
    return [*chain.from_iterable(options), *arguments[len(taken) :]]


def _config_files(arguments: list[str]) -> Iterator[str]:
    for option, value in zip(arguments, [*arguments[1:], None], strict=False):
        if option == "--config" and value is not None:
            yield value
        elif option.startswith("--config="):
            yield option.removeprefix("--config=")


def _check_file(path: str, kind: type, parser: ArgumentParser) -> None:
    """Read a YAML file on its own, so that its mistakes are told with its name."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}, line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML text") from error
    keys = dict(_keys(kind))
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: expected keys such as {next(iter(keys))}, got {content!r}")
    _check_mapping(path, content, keys)
    try:
        parser.parse_path(path)
    except ArgumentError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def _check_mapping(path: str, content: dict, keys: dict[str, Any], prefix: str = "") -> None:
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key not in keys:
            raise InputError(f"{path}: unknown key {key}; did you mean {closest(key, keys)}?")
        if is_dataclass(keys[key]):
            if not isinstance(value, dict):
                raise InputError(f"{path}: {key} is {value!r}, expected keys such as {_first_below(key, keys)}")
            _check_mapping(path, value, keys, f"{key}.")
        elif get_origin(keys[key]) is tuple and not isinstance(value, list):
            raise InputError(f"{path}: {key} is {value!r}, expected a list")
        elif keys[key] is bool and not isinstance(value, bool):
            raise InputError(f"{path}: {key} is {value!r}, expected true or false")


def _first_below(section: str, keys: dict[str, Any]) -> str:
    return next(key for key in keys if key.startswith(f"{section}."))


def _check_options(arguments: list[str], command: str) -> None:
    types = dict(_keys(COMMANDS[command]))
    options = [key for key, type_ in types.items() if not is_dataclass(type_)] + ["config", "help", "print_config"]
    mappings = tuple(f"{key}." for key, type_ in types.items() if get_origin(type_) is dict)
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        key = argument[2:].split("=")[0].removesuffix("+")
        if key in ("resume", "no_resume") and command != "train":
            raise InputError(f"command line: --{key} is an option of train, not of {command}")
        if key not in options and key.removeprefix("no_") not in options and not key.startswith(mappings):
            raise InputError(f"command line: unknown option --{key}; did you mean --{closest(key, options)}?")


def _explain(error: ArgumentError) -> str:
    """jsonargparse's message in one line, in the words of our own."""
    text = " ".join(str(error).split())
    told = re.fullmatch(r'Parser key "(.+?)": Expected an? (.+)\. Got value: (.*)', text)
    if told is None:
        return text
    key, expected, value = told.groups()
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.Literal", "one of ")
    return f"{key} is {value}, expected {'a list such as [a,b]' if expected == 'tuple' else expected}"


def _build(kind: type, values: Namespace) -> Any:
    content = {field.name: values[field.name] for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})
