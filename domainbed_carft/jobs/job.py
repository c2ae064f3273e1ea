"""A job: its arguments, identity, command line and seed.

Arguments, seeds and folder names are computed as in domainbed/scripts/sweep.py at b93c22a, so that
either tool can resume the other's folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FOLDER_NAME = re.compile(r"[0-9a-f]{32}")
IDENTITY = {"dataset": str, "algorithm": str, "trial_seed": int, "hparams_seed": int}


class Key(NamedTuple):
    """The identity of a job within its sweep."""

    dataset: str
    algorithm: str
    test_envs: frozenset[int]
    trial: int
    choice: int  # the hparams seed


@dataclass(frozen=True, order=True)
class Choice:
    """Hyperparameters that a selection rule can choose.

    If several choices are equally good, the last one in sorted order is selected.
    """

    hparams_seed: int
    member: int = 0  # position of the searched values in the declared order
    values: str = ""  # searched values as JSON, empty if nothing is searched

    @property
    def searched_values(self) -> dict[str, Any]:
        """Values by searched hyperparameter; empty if nothing is searched."""
        return dict(json.loads(self.values)) if self.values else {}

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.searched_values.items()]
        if self.hparams_seed or not parts:
            parts.insert(0, f"hparams_seed {self.hparams_seed}")
        return " ".join(parts)


class Candidate(NamedTuple):
    """A job from which a cell of the tables can be selected."""

    dataset: str
    row: str  # name of the row in tables
    held_out: str  # numbers of the test environments, such as "0 2"
    trial: int
    choice: Choice


@dataclass(frozen=True)
class Role:
    """The role of a job in its sweep, from the manifest. It is not part of the job's identity."""

    cell: str = ""  # name of the job's variant, without searched values
    values: Mapping[str, Any] = field(default_factory=dict)  # by searched hyperparameter
    member: int = 0  # position of these values in the declared order
    stage: str = ""  # CHOOSE or REPEAT, empty for a sweep without stages
    members: int = 0  # number of members from which the values of a REPEAT job were chosen
    holds_out_together: bool = False  # all test environments are targets (one training domain)


# The stages of a search: train every member, then repeat the chosen one on other trials.
CHOOSE = "choose"
REPEAT = "repeat"


@dataclass(frozen=True)
class Job:
    """One call of train."""

    args: Mapping[str, Any]  # arguments of train without the output folder
    folder: Path
    variant: str = ""  # subfolder of the sweep that contains the job's folder, or empty
    role: Role = Role()
    row_name: str = ""  # name of the row with ``--by``, empty for the algorithm's name
    # Process variables: settings that are not part of the job's identity.
    variables: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> Key:
        """The job's identity. Raises KeyError or TypeError for missing or invalid arguments."""
        key = Key(
            dataset=self.args["dataset"],
            algorithm=self.args["algorithm"],
            test_envs=frozenset(self.args["test_envs"]),
            trial=self.args["trial_seed"],
            choice=self.args["hparams_seed"],
        )
        # Types are compared exactly, because Python's True is an integer equal to 1.
        values = [(self.args[name], kind) for name, kind in IDENTITY.items()]
        values += [(env, int) for env in key.test_envs]
        if any(type(value) is not kind for value, kind in values):
            raise TypeError(f"{self}: expected two names, then whole numbers")
        return key

    @functools.cached_property
    def choice(self) -> Choice:
        """The hyperparameters of the job. Raises the errors of ``key``."""
        values = json.dumps(dict(self.role.values)) if self.role.values else ""
        return Choice(self.key.choice, self.role.member, values)

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The job as a candidate for its cell. Raises the errors of ``key``."""
        key = self.key
        return Candidate(
            dataset=key.dataset,
            row=self.row,
            held_out=format_held_out(key.test_envs),
            trial=key.trial,
            choice=self.choice,
        )

    @property
    def row(self) -> str:
        """Name of the row in tables: the algorithm's name, unless ``--by`` divides it."""
        return self.row_name or str(self.args["algorithm"])

    @property
    def command(self) -> list[str]:
        """The words of the command line, beginning with ``python -m domainbed.scripts.train``."""
        return make_train_command({**self.args, "output_dir": str(self.folder)})

    @property
    def line(self) -> str:
        """The command line, quoted for a shell."""
        return shlex.join(self.command)

    def __str__(self) -> str:
        args = {**dict.fromkeys(IDENTITY, "?"), **self.args}
        targets = " ".join(map(str, args.get("test_envs") or ())) or "none"
        variant = f"{self.variant} " if self.variant else ""
        return (
            f"{variant}{args['dataset']} {args['algorithm']}, test environments {targets}, "
            f"trial {args['trial_seed']}, hparams seed {args['hparams_seed']}"
        )


def format_held_out(test_envs: Iterable[int]) -> str:
    """Return the numbers of test environments as one text, such as "0 2"."""
    return " ".join(map(str, sorted(test_envs)))


def make_job(args: Mapping[str, Any], output: Path) -> Job:
    """Return the job with these arguments in the output folder of a sweep of DomainBed."""
    return Job(args, output / get_folder_name(args))


def get_folder_name(args: Mapping[str, Any]) -> str:
    """Return the name of a job's folder: the MD5 of its arguments, in hexadecimal digits."""
    text = json.dumps(args, sort_keys=True)
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def seed_hash(*args: Any) -> int:
    """Return DomainBed's seed of some values (domainbed/lib/misc.py at b93c22a), in [0, 2^31)."""
    digest = hashlib.md5(str(args).encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def make_train_command(args: Mapping[str, Any]) -> list[str]:
    """Return the words of ``python -m domainbed.scripts.train`` with arguments sorted by name.

    True stands for a flag without a value, None and False for no flag. Mappings become JSON.
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


def parse_overrides(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters set by ``--hparams``, which records have as JSON or an object."""
    hparams = args.get("hparams") or {}
    if isinstance(hparams, str):
        with contextlib.suppress(ValueError):
            hparams = json.loads(hparams)
    return dict(hparams) if isinstance(hparams, Mapping) else {"--hparams": hparams}


def get_data_independent_key(args: Mapping[str, Any]) -> str:
    """Return the arguments that can change the result, except the data folder, as one text.

    Args:
        args: the arguments of a job or of a record.
    """
    names = "dataset algorithm holdout_fraction hparams_seed trial_seed seed steps".split()
    relevant: dict[str, Any] = {name: args.get(name) for name in names}
    relevant["test_envs"] = list(args.get("test_envs") or [])
    relevant["task"] = args.get("task", "domain_generalization")
    relevant["hparams"] = parse_overrides(args)
    return json.dumps(relevant, sort_keys=True)
