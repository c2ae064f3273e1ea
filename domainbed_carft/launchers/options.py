"""The options of each launcher: documented dataclasses, checked when they are made."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError

# What #SBATCH lines that we write already say, and the option that says it.
TAKEN = {
    "partition": "partition", "account": "account", "time": "time", "qos": "qos",
    "gpus_per_node": "gpus", "gpus": "gpus", "cpus_per_task": "cpus", "mem": "memory_gb",
    "array": "array_size and array_cap", "signal": "signal_seconds",
    "dependency": None, "requeue": None, "output": None, "error": None, "open_mode": None,
    "no_requeue": None, "nodes": None, "ntasks": None, "ntasks_per_node": None,
}  # fmt: skip


def whole(least: int) -> Callable[[Any], int]:
    """A converter to whole numbers from `least`."""

    def convert(value: Any) -> int:
        text = str(value).strip()
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise ValueError(f"expected a whole number from {least}")
        return int(text)

    return convert


def gigabytes(value: Any) -> float:
    """A number of gigabytes above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf or isinstance(value, bool):
        raise ValueError("expected a number of gigabytes above 0")
    return number


def word(value: Any) -> str:
    """Text that fits into a line of a batch file."""
    text = str(value).strip()
    if not text or not text.isprintable():
        raise ValueError("expected text on one line")
    return text


def minutes(value: Any) -> int:
    """Minutes, rounded up, of a number or of one of SLURM's spellings of a time."""
    text = str(value).strip()
    clock = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})", text)
    if clock:
        parts = [int(part) for part in clock["clock"].split(":")]
        if clock["days"] is not None:  # D-HH, D-HH:MM, D-HH:MM:SS
            hours, mins, seconds = [*parts, 0, 0][:3]
        else:  # MM, MM:SS, HH:MM:SS
            hours, mins, seconds = [[0, *parts, 0], [0, *parts], parts][len(parts) - 1]
        total = (int(clock["days"] or 0) * 24 + hours) * 60 + mins + math.ceil(seconds / 60)
        if total:
            return total
    raise ValueError("expected minutes from 1, or MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")


def lines(value: Any) -> tuple[str, ...]:
    """Lines of shell, from a text or from a list of them."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, Iterable) or not all(isinstance(item, str) for item in found):
        raise ValueError("expected lines of shell, as text or as a list")
    return tuple(line for item in found for line in item.splitlines() if line.strip())


def parameters(value: Any) -> dict[str, str | bool]:
    """Parameters of sbatch without an option of their own, from a mapping or KEY=VALUE texts.

    KEY alone, or the value true, is a flag without a value.
    """
    if isinstance(value, Mapping):
        pairs = {str(key): given for key, given in value.items()}
    else:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Iterable):
            raise ValueError("expected a mapping, or KEY=VALUE")
        split = [str(text).partition("=") for text in texts]
        pairs = {key: given if equals else True for key, equals, given in split}
    checked = {}
    for key, given in pairs.items():
        name = key.strip().lstrip("-").replace("-", "_")
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(f"{key!r} is no parameter of sbatch; expected KEY=VALUE")
        if name in TAKEN:
            option = TAKEN[name]
            raise ValueError(f"{key!r} is {f'said by {option}' if option else 'set by us'}")
        flag = given is True or str(given).lower() == "true"
        checked[name] = True if flag else word(given)
    return checked


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
        whole(1), None, "jobs at a time (default: jobs_per_gpu on each GPU, else one a core)"
    )
    jobs_per_gpu: int | None = option(whole(1), None, "jobs at a time on each GPU (default: 1)")


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

    partition: str | None = option(word, None, "partition (default: the cluster's)")
    account: str | None = option(word, None, "account to charge")
    qos: str | None = option(word, None, "quality of service")
    time: int = option(minutes, 24 * 60, "time limit of a job: minutes or D-HH:MM:SS")
    gpus: int = option(whole(0), 0, "GPUs of a job")
    cpus: int = option(whole(1), 1, "cores of a job, and its threads")
    memory_gb: float | None = option(gigabytes, None, "main memory of a job")
    array_cap: int = option(whole(1), 100, "jobs at a time")
    array_size: int = option(whole(1), 1000, "jobs of one submission; more are chained")
    signal_seconds: int = option(
        whole(10), 120, "seconds before the time limit at which a job saves its state"
    )
    setup: tuple[str, ...] = option(
        lines, (), "line of shell before the job, such as 'module load cuda'", repeated=True
    )
    extra: Mapping[str, str | bool] | None = option(
        parameters, None, "KEY=VALUE for sbatch, such as constraint=a100", repeated=True
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


VARIABLE = "DOMAINBED_CARFT_LAUNCHER"
DEFAULT = "launchers.yaml"


def found_for(launcher: str) -> dict[str, Any]:
    """The options of `launcher` in the file, if there is a file and it has some.

    Raises:
        CarftError: naming the file and all that is wrong in it, for whatever launcher.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return read(Path(named).expanduser()).get(launcher, {})
    return read(Path(DEFAULT)).get(launcher, {}) if Path(DEFAULT).exists() else {}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read and check a file of options; all values are texts, as flags have them."""
    import yaml

    try:
        # The base loader makes every value a text, so that 1:30:00 is not read as a number.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"{path} cannot be read: {error} (named by ${VARIABLE}?)") from error
    except yaml.YAMLError as error:
        raise CarftError(f"{path} is not YAML: {error}") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, Mapping):
        raise CarftError(
            f"{path} should map launchers ({', '.join(OPTIONS)}) to their options, but "
            f"is a {type(content).__name__}"
        )
    wrong, found = [], {}
    for launcher, given in content.items():
        # An option without a value is one that is not set.
        given = {} if given == "" else given
        if not isinstance(given, Mapping):
            wrong.append(f"{launcher} should map options to values, but is {given!r}")
            continue
        found[launcher] = {name: value for name, value in given.items() if value != ""}
        wrong += problems(launcher, found[launcher])
    if wrong:
        raise CarftError(f"{path}: {'; '.join(wrong)}")
    return found
