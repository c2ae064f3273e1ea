"""The options of each launcher: documented dataclasses, checked when they are made."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import values


def option(convert: Any, default: Any, text: str, repeated: bool = False) -> Any:
    """A field with what makes its values, and what a flag for it would say.

    Args:
        repeated: a flag for it may be given several times.
    """
    metadata = {"convert": convert, "help": text, "repeated": repeated}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Options of a launcher that has none, and what those of the others have in common."""

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        converted, wrong = _convert(type(self), given)
        if wrong:
            raise CarftError("; ".join(wrong))
        for name, value in converted.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class PoolOptions(Options):
    """How many jobs run at a time on this machine.

    Args:
        jobs: jobs at a time; by default as many as the GPUs hold, or one a core where there are
            none.
        jobs_per_gpu: jobs at a time on each GPU.
    """

    jobs: int | None = option(
        values.whole(1), None, "jobs at a time (default: jobs_per_gpu on each GPU, else one a core)"
    )
    jobs_per_gpu: int | None = option(
        values.whole(1), None, "jobs at a time on each GPU (default: 1)"
    )


# SLURM's controller looks twice a minute whose limit comes near.
WARNS_EARLY_SECONDS = 30


@dataclass(frozen=True)
class SlurmOptions(Options):
    """What is asked of SLURM for each job.

    Args:
        time: minutes, or one of SLURM's spellings; in quotes in YAML, as it reads 1:30:00 as a
            number.
        array_cap: jobs that run at a time, over all arrays of one launch.
        array_size: elements of one array; SLURM's own limit holds as well.
        signal_seconds: how long before the time limit, and on preemption, jobs are to save.
        setup: lines of shell before the job, such as `module load cuda`.
        extra: parameters of sbatch that have no option here.
    """

    partition: str | None = option(values.word, None, "partition (default: the cluster's)")
    account: str | None = option(values.word, None, "account to charge")
    qos: str | None = option(values.word, None, "quality of service")
    time: int = option(values.minutes, 24 * 60, "time limit of a job: minutes or D-HH:MM:SS")
    gpus: int = option(values.whole(0), 0, "GPUs of a job")
    cpus: int = option(values.whole(1), 1, "cores of a job, and its threads")
    memory_gb: float | None = option(values.gigabytes, None, "main memory of a job")
    array_cap: int = option(values.whole(1), 100, "jobs at a time")
    array_size: int = option(values.whole(1), 1000, "jobs of one submission; more are chained")
    signal_seconds: int = option(
        values.whole(10), 120, "seconds before the time limit at which a job saves its state"
    )
    setup: tuple[str, ...] = option(
        values.lines, (), "line of shell before the job, such as 'module load cuda'", repeated=True
    )
    extra: Mapping[str, str | bool] | None = option(
        values.parameters, None, "KEY=VALUE for sbatch, such as constraint=a100", repeated=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = self.signal_seconds + WARNS_EARLY_SECONDS
        if needed >= 60 * self.time:
            raise CarftError(
                f"signal_seconds = {self.signal_seconds} is too long for the time limit of "
                f"{self.time} minutes: SLURM warns up to {WARNS_EARLY_SECONDS} s earlier, and a "
                "warning that comes as the job starts is lost. Expected a time limit of more than "
                f"{needed} s, or a smaller signal_seconds"
            )


@dataclass(frozen=True)
class NoOptions(Options):
    """`local` and `dummy` have none."""


OPTIONS: dict[str, type[Options]] = {
    "dummy": NoOptions,
    "local": NoOptions,
    "pool": PoolOptions,
    "slurm": SlurmOptions,
}


def build(launcher: str, given: Mapping[str, Any]) -> Options:
    """The options of a launcher.

    Raises:
        CarftError: naming all launchers, options and values that are wrong, and the valid ones.
    """
    if found := problems(launcher, given):
        raise CarftError("; ".join(found))
    return OPTIONS[launcher](**given)


def problems(launcher: str, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with these options of this launcher."""
    if launcher not in OPTIONS:
        return [_unknown("launcher", launcher, OPTIONS)]
    cls = OPTIONS[launcher]
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = [
        _unknown(f"option of {launcher}", str(name), known) for name in given if name not in known
    ]
    values_given = {name: value for name, value in given.items() if name in known}
    wrong = _convert(cls, values_given)[1]
    if not unknown and not wrong:
        try:
            cls(**given)
        except CarftError as error:
            return [str(error)]
    return unknown + [f"{launcher}: {problem}" for problem in wrong]


def _convert(cls: type[Options], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    converted, found = {}, []
    for name, value in given.items():
        if value is None or value == fields[name].default:
            converted[name] = fields[name].default
            continue
        try:
            converted[name] = fields[name].metadata["convert"](value)
        except ValueError as error:
            found.append(f"{name} = {value!r}: {error}")
    return converted, found


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    valid = ", ".join(names) or "none"
    return f"there is no {kind} called {name!r}{meant} (there are: {valid})"
