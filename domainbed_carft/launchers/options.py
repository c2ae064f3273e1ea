"""The options of each launcher, and the YAML file for DomainBed's own sweep, which has no flags."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from domainbed_carft import process_variables, text
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.files import parsing, validation

with contextlib.suppress(ModuleNotFoundError):  # `carft doctor` starts without, and says so
    from annotated_types import Ge, Gt  # of pydantic, which itself takes half a second to import

VARIABLE = process_variables.LAUNCHER_OPTIONS.name
DEFAULT = "launchers.yaml"


def _option(default: Any, description: str, repeated: bool = False) -> Any:
    """A field with the help of its flag, which may be given several times if it is repeated."""
    return dataclasses.field(default=default, metadata={"help": description, "repeated": repeated})


_GPUS = "GPUs of each job, which starts a process per GPU (default: 1; slurm: 0)"


@dataclass(frozen=True)
class LocalOptions:
    """What each job gets on this machine."""

    gpus: Annotated[int, Ge(1)] | None = _option(None, _GPUS)


@dataclass(frozen=True)
class PoolOptions(LocalOptions):
    """The number of jobs that run at a time on this machine, too."""

    jobs: Annotated[int, Ge(1)] | None = _option(
        None, "jobs that run at the same time (default: jobs_per_gpu per GPU, or one per core)"
    )
    jobs_per_gpu: Annotated[int, Ge(1)] | None = _option(None, "jobs on each GPU (default: 1)")


@dataclass(frozen=True)
class SlurmOptions:
    """The resources requested from SLURM for each job; True in `extra` is a flag of sbatch."""

    __pydantic_config__ = {"coerce_numbers_to_str": True}

    partition: str | None = _option(None, "partition (default: the cluster's)")
    account: str | None = _option(None, "account to charge")
    qos: str | None = _option(None, "quality of service")
    time: str = _option(
        "1-0",
        "time limit, in minutes or as D-HH:MM:SS; a job that reaches it resumes in the next turn",
    )
    gpus: Annotated[int, Ge(0)] = _option(0, _GPUS)
    cpus: Annotated[int, Ge(1)] = _option(1, "cores per job, for its threads and loaders")
    memory_gb: Annotated[float, Gt(0)] | None = _option(None, "main memory per job, in GB")
    array_cap: Annotated[int, Ge(1)] = _option(100, "jobs that run at the same time (default: 100)")
    setup: tuple[str, ...] = _option(
        (), "shell command to run before each job, such as 'module load cuda'", repeated=True
    )
    extra: Mapping[str, str | bool] | None = _option(
        None, "further option of sbatch as KEY=VALUE, such as constraint=a100", repeated=True
    )


OPTIONS: dict[str, type] = {
    "dummy": dataclasses.make_dataclass("NoOptions", ()),
    "local": LocalOptions,
    "pool": PoolOptions,
    "slurm": SlurmOptions,
}


def resolve(launcher: str, caller_options: Mapping[str, Any]) -> Any:
    """The options of a launcher: the caller's that are not None, else defaults.

    Raises CarftError with all problems and what was expected.
    """
    from pydantic import TypeAdapter, ValidationError

    if launcher not in OPTIONS:
        raise CarftError(text.unknown("launcher", launcher, OPTIONS))

    given = {name: value for name, value in caller_options.items() if value is not None}
    valid_names = [field.name for field in dataclasses.fields(OPTIONS[launcher])]
    problems = [
        text.unknown(f"option of {launcher}", name, valid_names)
        for name in sorted(given.keys() - set(valid_names))
    ]

    values = {name: _expand(name, value) for name, value in given.items() if name in valid_names}
    try:
        resolved: Any = TypeAdapter(OPTIONS[launcher]).validate_python(values)
    except ValidationError as error:
        problems += [_type_problem(launcher, details) for details in error.errors()]
    raise_for(problems)
    return resolved


def _type_problem(launcher: str, error: Mapping[str, Any]) -> str:
    """One of pydantic's errors, in our words."""
    # Below the item of a list or a mapping are only the types that it may have.
    path = ".".join(map(str, error["loc"][:2]))
    return invalid(f"{launcher}: {path}", error["input"], validation.expectation(error))


def read_file(launcher: str) -> dict[str, Any]:
    """The options of a launcher in the YAML file, if there is one; prints that it was read.

    Raises CarftError for another file.
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
    """The value that several flags, or one word in a file, stand for."""
    if name in ("setup", "extra") and isinstance(value, str):
        value = [value]
    if name != "extra" or not isinstance(value, (list, tuple)):
        return value

    parameters: dict[str, str | bool] = {}
    for item in value:
        key, equals, text_of_value = str(item).lstrip("-").partition("=")
        parameters[key.replace("-", "_")] = text_of_value if equals else True
    return parameters
