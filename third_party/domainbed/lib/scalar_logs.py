"""The scalars of the records, also for TensorBoard and for Weights & Biases, while the run goes on.

The records are the truth. A log is begun from all of them that the run has so far, so that one
that was killed between a record and its log, or could not be written for a while, ends up as one
that never was disturbed. What fails once the training has begun is a warning.

Upstream has nothing like it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from domainbed.lib import errors, tensorboard_log, wandb_log

# Where a launcher says what all jobs are to log to: the names, with blanks between them.
VARIABLE = "DOMAINBED_LOG"


class Log(Protocol):
    """One place to log to; `problems` and `forget` of its module belong to it."""

    title: str

    def open(self) -> str:
        """Begin, to be given all records of the run from the first on; return where it is seen."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log one record."""

    def replaces_earlier(self) -> None:
        """Remove what earlier processes of this run have logged: it has all been added again."""

    def close(self, done: bool) -> None:
        """End the log of a run that is done, or that is going to go on."""


KINDS: dict[str, Callable[[str, str, Mapping[str, Any], Mapping[str, Any]], Log]] = {
    "tensorboard": tensorboard_log.TensorBoard,
    "wandb": wandb_log.WeightsAndBiases,
}
_PROBLEMS = {"tensorboard": tensorboard_log.problems, "wandb": wandb_log.problems}


class LogError(errors.Failure):
    """A log cannot be begun; the message says what to do."""


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--log`, which no record and no job's identity has among its arguments."""
    parser.add_argument(
        "--log",
        nargs="*",
        choices=KINDS,
        default=os.environ.get(VARIABLE, "").split(),
        help="where the scalars of the records go as well, while training (no name: nowhere); the "
        f"libraries are extras; ${VARIABLE} says it for all jobs",
    )


def problems(kinds: Sequence[str]) -> list[str]:
    """Say which kinds there are not, which libraries are missing, and whether a login is."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    found = [
        f"{VARIABLE} has {kind!r}, expected names out of {', '.join(KINDS)}, with blanks between."
        for kind in unknown
    ]
    for kind in dict.fromkeys(kinds):
        found += _PROBLEMS[kind]() if kind in KINDS else []
    return found


def hand_on(kinds: Sequence[str], sweep_output_dir: str) -> None:
    """Let the jobs that this process starts log so, in W&B as a group called as the folder."""
    os.environ[VARIABLE] = " ".join(kinds)
    if "wandb" in kinds:
        name = os.path.basename(os.path.abspath(sweep_output_dir))
        os.environ.setdefault(wandb_log.GROUP, name)


def forget(folder: str) -> None:
    """Remove what `--log` has left in a job's folder, and nothing else."""
    tensorboard_log.forget(folder)
    wandb_log.forget(folder)


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return what is numeric of a record, by its name there; the step is where it is logged."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
    }


def name_of(args: Mapping[str, Any]) -> str:
    """Return what a person calls a run, as a file may be called: CARFT_PACS_test0_trial1_..."""
    environments = "+".join(map(str, args["test_envs"])) or "none"
    dataset = os.path.basename(str(args["dataset"]).rstrip("/"))
    seeds = f"trial{args['trial_seed']}_hparams{args['hparams_seed']}"
    return re.sub(r"[^\w+.-]", "-", f"{args['algorithm']}_{dataset}_test{environments}_{seeds}")


class Logs:
    """The logs of one run; closed at the end of a `with` block.

    Args:
        kinds: keys of KINDS.
        args, hparams: as they are in the records.
    """

    def __init__(
        self, kinds: Iterable[str], args: Mapping[str, Any], hparams: Mapping[str, Any]
    ) -> None:
        name = name_of(args)
        self._logs = [
            KINDS[kind](args["output_dir"], name, args, hparams) for kind in dict.fromkeys(kinds)
        ]
        self._open: list[Log] = []
        self._read = 0
        self._added: list[tuple[int, dict[str, float]]] = []

    def begin(self, records: str) -> None:
        """Open all logs and give them the records of earlier processes of this run, as JSON lines.

        Raises:
            LogError: one cannot be opened.
        """
        self._take(records)
        for log in self._logs:
            try:
                self._begin(log)
            except Exception as error:
                raise LogError(f"{log.title} cannot be begun: {_told(error)}") from error

    def _begin(self, log: Log) -> None:
        where = log.open()
        self._open.append(log)
        for step, scalars in self._added:
            log.add(step, scalars)
        log.replaces_earlier()
        print(f"{log.title}: {where}")

    def _take(self, records: str) -> list[tuple[int, dict[str, float]]]:
        lines = records[self._read :].splitlines()
        self._read = len(records)
        new = [(record["step"], scalars_of(record)) for record in map(json.loads, lines)]
        self._added += new
        return new

    def catch_up(self, records: str) -> None:
        """Log what is new in the records of this run, which are given from the first on."""
        new = self._take(records)
        for log in list(self._open):
            try:
                for step, scalars in new:
                    log.add(step, scalars)
            except Exception as error:
                self._give_up(log, error)

    def _give_up(self, log: Log, error: Exception) -> None:
        self._open.remove(log)
        with contextlib.suppress(Exception):
            log.close(False)
        print(
            f"Warning: {log.title} is not logged to any more: {_told(error)}. The training goes "
            "on, and results.jsonl has everything; when the run is done, or goes on after an "
            "interruption, logging all of it is tried again."
        )

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        done = kind is None
        for log in self._logs:
            try:
                if done and log not in self._open:
                    self._begin(log)
                if log in self._open:
                    log.close(done)
            except Exception as error:
                print(f"Warning: {log.title} has not got everything: {_told(error)}.")


def _told(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
