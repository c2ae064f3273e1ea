"""The options of launchers, and the YAML file with options for DomainBed's own sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from domainbed_carft import process_variables, suggestions
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.files import parsing, validation

with contextlib.suppress(ModuleNotFoundError):  # `carft doctor` reports it if it is missing
    from annotated_types import Ge, Gt  # faster to import than pydantic, which depends on it

VARIABLE = process_variables.LAUNCHER_OPTIONS.name
DEFAULT = "launchers.yaml"


def _option(default: Any, metavar: str, description: str, repeated: bool = False) -> Any:
    """Make a field with the help text of its flag; repeated flags can be passed several times."""
    metadata = {"metavar": metavar, "help": description, "repeated": repeated}
    return dataclasses.field(default=default, metadata=metadata)


_GPUS = "GPUs per job, with one process on each (default: 1; slurm: 0)"


@dataclass(frozen=True)
class LocalOptions:
    """Resources of each job on this machine."""

    gpus: Annotated[int, Ge(1)] | None = _option(None, "N", _GPUS)


@dataclass(frozen=True)
class PoolOptions(LocalOptions):
    """Resources of each job on this machine, and the number of jobs at a time."""

    jobs: Annotated[int, Ge(1)] | None = _option(
        None,
        "N",
        "number of jobs at a time (default: --jobs-per-gpu on each GPU, or without GPUs one per "
        "core)",
    )
    jobs_per_gpu: Annotated[int, Ge(1)] | None = _option(
        None, "N", "number of jobs at a time on each GPU (default: 1)"
    )


@dataclass(frozen=True)
class SlurmOptions:
    """Resources requested from SLURM for each job; True in `extra` stands for a bare flag."""

    __pydantic_config__ = {"coerce_numbers_to_str": True}

    partition: str | None = _option(None, "NAME", "partition of the jobs (default: the cluster's)")
    account: str | None = _option(None, "NAME", "account to charge for the jobs")
    qos: str | None = _option(None, "NAME", "quality of service (QOS) of the jobs")
    time: str = _option(
        "1-0",
        "TIME",
        "time limit after which a job is saved, requeued and resumed: minutes or D-HH:MM:SS",
    )
    gpus: Annotated[int, Ge(0)] = _option(0, "N", _GPUS)
    cpus: Annotated[int, Ge(1)] = _option(
        1, "N", "CPU cores per job, for its threads and data loaders"
    )
    memory_gb: Annotated[float, Gt(0)] | None = _option(None, "N", "main memory per job, in GB")
    array_cap: Annotated[int, Ge(1)] = _option(
        100, "N", "maximum number of jobs that SLURM runs at a time"
    )
    setup: tuple[str, ...] = _option(
        (),
        "COMMAND",
        "shell command to run before each job, for example 'module load cuda'",
        repeated=True,
    )
    extra: Mapping[str, str | bool] | None = _option(
        None,
        "KEY=VALUE",
        "another option of sbatch, for example constraint=a100",
        repeated=True,
    )


OPTIONS: dict[str, type] = {
    "dummy": dataclasses.make_dataclass("NoOptions", ()),
    "local": LocalOptions,
    "pool": PoolOptions,
    "slurm": SlurmOptions,
}


def resolve(launcher: str, caller_options: Mapping[str, Any]) -> Any:
    """Check the options of a launcher and complete them with defaults.

    Args:
        launcher: name of the launcher.
        caller_options: values or their text by option; None stands for the default.

    Returns:
        An object of the class in `OPTIONS`.

    Raises:
        CarftError: if the name or options are invalid. Lists all problems.
    """
    from pydantic import TypeAdapter, ValidationError

    if launcher not in OPTIONS:
        raise CarftError(suggestions.unknown("launcher", launcher, OPTIONS))

    set_options = {name: value for name, value in caller_options.items() if value is not None}
    valid_names = [field.name for field in dataclasses.fields(OPTIONS[launcher])]
    problems = [
        suggestions.unknown(f"option of {launcher}", name, valid_names)
        for name in sorted(set_options.keys() - set(valid_names))
    ]

    values = {
        name: _expand(name, value) for name, value in set_options.items() if name in valid_names
    }
    try:
        resolved: Any = TypeAdapter(OPTIONS[launcher]).validate_python(values)
    except ValidationError as error:
        problems += [_type_problem(launcher, details) for details in error.errors()]
    raise_for(problems)
    return resolved


def _type_problem(launcher: str, error: Mapping[str, Any]) -> str:
    """Describe an error of pydantic."""
    # The first two parts name the option and an item; further parts only name allowed types.
    path = ".".join(map(str, error["loc"][:2]))
    return invalid(f"{launcher}: {path}", error["input"], validation.expectation(error))


def read_file(launcher: str) -> dict[str, Any]:
    """Read the options of a launcher from the YAML file, if there is one, and print its path.

    Raises CarftError if the file is invalid.
    """
    chosen_path = process_variables.LAUNCHER_OPTIONS.read()
    path = Path(chosen_path or DEFAULT).expanduser()
    if not chosen_path and not path.exists():
        return {}

    try:
        text_of_file = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"{path} cannot be read: {error}") from error

    content = parsing.parse_yaml(text_of_file, str(path))[0] or {}
    section = content.get(launcher) or {} if isinstance(content, dict) else None
    if not isinstance(section, dict) or not content.keys() <= OPTIONS.keys():
        names = ", ".join(OPTIONS)
        raise CarftError(f"{path}: expected names of launchers ({names}), each with its options")
    if section:
        print(f"{launcher}: options read from {path.absolute()}", file=sys.stderr)
    return section


def _expand(name: str, value: Any) -> Any:
    """Convert the words of repeated flags, or one word in a file, to the value of an option."""
    if name in ("setup", "extra") and isinstance(value, str):
        value = [value]
    if name != "extra" or not isinstance(value, (list, tuple)):
        return value

    parameters: dict[str, str | bool] = {}
    for item in value:
        key, equals, text_of_value = str(item).lstrip("-").partition("=")
        parameters[key.replace("-", "_")] = text_of_value if equals else True
    return parameters
