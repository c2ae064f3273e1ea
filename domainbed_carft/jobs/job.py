"""One training: its arguments, and its identity, command line and seed as in DomainBed.

Arguments, seeds and folder names are those of upstream file domainbed/scripts/sweep.py at b93c22a,
so that either tool can resume the other's folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
# What a value is expected to be, and a check. A text such as "no" would count as true.
SWITCH = ("true or false", lambda value: isinstance(value, int) and value in (0, 1))
_SIZE = (
    "a whole number of at least 1 and less than 2147483648",
    lambda value: type(value) is int and 1 <= value < 2**31,
)
# The hyperparameters that train itself reads, whatever the algorithm.
READ_BY_TRAIN = {
    **dict.fromkeys(("data_augmentation", "class_balanced"), SWITCH),
    **dict.fromkeys(("batch_size", "shots"), _SIZE),
}
IDENTITY = {"dataset": str, "algorithm": str, "trial_seed": int, "hparams_seed": int}


class Key(NamedTuple):
    """The identity of a job within its sweep; ``choice`` is the hparams seed."""

    dataset: str
    algorithm: str
    test_envs: frozenset[int]
    trial: int
    choice: int


@dataclass(frozen=True, order=True)
class Choice:
    """What a selection method chooses among: an hparams seed, and values of a declared search.

    ``member``: the number of these values in the declared order; ``values``: as JSON, "" if nothing
    is searched. Choices sort as candidates do: of equally good ones the last counts.
    """

    hparams_seed: int
    member: int = 0
    values: str = ""

    @property
    def searched_values(self) -> dict[str, Any]:
        """Searched hyperparameter -> its value; empty if nothing is searched."""
        return dict(json.loads(self.values)) if self.values else {}

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.searched_values.items()]
        if self.hparams_seed or not parts:
            parts.insert(0, f"hparams_seed {self.hparams_seed}")
        return " ".join(parts)


class Candidate(NamedTuple):
    """A job among those that a cell of the tables is selected from.

    ``row``: what tables call the cell's row; ``choice``: may be a member of a search.
    """

    dataset: str
    row: str
    test_envs: frozenset[int]
    trial: int
    choice: Choice


@dataclass(frozen=True)
class Role:
    """What a job is for in its sweep, as the manifest says; no part of the job's identity.

    ``cell``: the name of the variant that the job belongs to, whatever is searched. ``values``:
    searched hyperparameter -> its value in this job; ``member``: the number of these values in the
    declared order. ``stage``: CHOOSE or REPEAT, "" for a sweep without stages; ``members``: of a
    REPEAT job, among how many members its values were chosen. ``holds_out_together``: whether
    every test environment is a target, such as those of a job with a single source.
    """

    cell: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    member: int = 0
    stage: str = ""
    members: int = 0
    holds_out_together: bool = False


# The stages of a search: every member is trained, then the chosen one on other trials.
CHOOSE = "choose"
REPEAT = "repeat"


@dataclass(frozen=True)
class Job:
    """One call of train: its arguments without the folder, the folder, the variant's name.

    ``variant`` is the folder of the sweep that the job's folder lies in, "" for the sweep's own.
    ``row_name``: what ``--by`` calls the job's row, "" for the algorithm's name.
    """

    args: Mapping[str, Any]
    folder: Path
    variant: str = ""
    role: Role = Role()
    row_name: str = ""

    @functools.cached_property
    def key(self) -> Key:
        """The job's identity; raises KeyError and TypeError for arguments that name no job."""
        key = Key(
            dataset=self.args["dataset"],
            algorithm=self.args["algorithm"],
            test_envs=frozenset(self.args["test_envs"]),
            trial=self.args["trial_seed"],
            choice=self.args["hparams_seed"],
        )
        # The exact types: to Python, ``true`` is a whole number, and equal to 1.
        has_types = all(type(self.args[name]) is kind for name, kind in IDENTITY.items())
        if not has_types or any(type(env) is not int for env in key.test_envs):
            raise TypeError(f"{self}: expected two names, then whole numbers")
        return key

    @functools.cached_property
    def choice(self) -> Choice:
        """What the job is among the candidates of its cell; errors as of ``key``."""
        values = json.dumps(dict(self.role.values)) if self.role.values else ""
        return Choice(self.key.choice, self.role.member, values)

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The job among those of its cell; errors as of ``key``."""
        key = self.key
        return Candidate(key.dataset, self.row, key.test_envs, key.trial, self.choice)

    @property
    def row(self) -> str:
        """What tables call the job's row: the algorithm's name, unless ``--by`` divides it."""
        return self.row_name or str(self.args["algorithm"])

    @property
    def command(self) -> list[str]:
        """The words of the command line, ``python -m domainbed.scripts.train`` first."""
        return command({**self.args, "output_dir": str(self.folder)})

    @property
    def line(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(self.command)

    def __str__(self) -> str:
        args = {**dict.fromkeys(IDENTITY, "?"), **self.args}
        left_out = " ".join(map(str, args.get("test_envs") or ())) or "none"
        variant = f"{self.variant} " if self.variant else ""
        return (
            f"{variant}{args['dataset']} {args['algorithm']}, test environments {left_out}, "
            f"trial {args['trial_seed']}, hparams seed {args['hparams_seed']}"
        )


def identity(args: Mapping[str, Any]) -> str:
    """The name of a job's folder: the md5 of its arguments, in hexadecimal digits."""
    text = json.dumps(args, sort_keys=True)
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def seed_hash(*args: Any) -> int:
    """DomainBed's seed of some values (domainbed/lib/misc.py at b93c22a), in [0, 2^31)."""
    digest = hashlib.md5(str(args).encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def command(args: Mapping[str, Any]) -> list[str]:
    """The words of ``python -m domainbed.scripts.train``, the arguments sorted by name.

    A flag without a value is True; what is None or False is left out, and a mapping is JSON.
    """
    words = ["python", "-m", "domainbed.scripts.train"]
    for name, value in sorted(args.items()):
        if value is None or value is False:
            continue

        words.append(f"--{name}")
        if isinstance(value, Mapping):
            words.append(json.dumps(value, sort_keys=True))
        elif isinstance(value, (list, tuple)):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words


def overrides(args: Mapping[str, Any]) -> dict[str, Any]:
    """The hparams set by ``--hparams``, under which a run is recorded as JSON or as an object."""
    hparams = args.get("hparams") or {}
    if isinstance(hparams, str):
        with contextlib.suppress(ValueError):
            hparams = json.loads(hparams)
    return dict(hparams) if isinstance(hparams, Mapping) else {"--hparams": hparams}


def get_base_hparams(
    registry: Any,
    algorithm_class: Any,
    args: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The hyperparameters of a job as they are where ``overrides``, its ``--hparams``, set none.

    These are the defaults of a host's ``registry``, or for an hparams seed other than 0 its random
    draw, and over them what the class takes as implied by ``overrides`` and ``--steps``.
    ``algorithm_class``: None in a host whose classes imply nothing.
    """
    algorithm, dataset = args["algorithm"], args["dataset"]
    seed: int | None = None
    if args["hparams_seed"]:
        seed = seed_hash(args["hparams_seed"], args["trial_seed"])
        values = registry.random_hparams(algorithm, dataset, seed)
    else:
        values = registry.default_hparams(algorithm, dataset)

    implied: Mapping[str, Any] = {}
    if algorithm_class is not None:
        implied = algorithm_class.implied_hparams(dataset, overrides, seed, steps=args.get("steps"))
    return {**values, **implied}


def data_independent_key(args: Mapping[str, Any]) -> str:
    """The arguments of a job that can change its result, as one text to compare them by.

    Left out is the folder of the data. ``args`` may also be those of a record.
    """
    names = "dataset algorithm holdout_fraction hparams_seed trial_seed seed steps".split()
    relevant: dict[str, Any] = {name: args.get(name) for name in names}
    relevant["test_envs"] = list(args.get("test_envs") or [])
    relevant["task"] = args.get("task", "domain_generalization")
    relevant["hparams"] = parse_overrides(args)
    return json.dumps(relevant, sort_keys=True)
