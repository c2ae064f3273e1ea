"""The complete records among the lines of a file results.jsonl, and what is wrong with others."""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft import files
from domainbed_carft.files import parsing
from domainbed_carft.jobs.job import IDENTITY, Job
from domainbed_carft.jobs.setting import ARGUMENTS
from domainbed_carft.text import limited, printable

NUMBERS = {float, int}
NO_ACCURACIES = (
    "records without accuracies: this checkout's train does not evaluate, so no table can use them"
)

_ACCURACY = re.compile(r"env[0-9]+_[a-z]+_acc")

# Hyperparameters that were added after release 0.1.0. Where a later version has resumed a run of an
# earlier one, only the later records have them. A test compares them with `method.hparams`.
YOUNGER_HPARAMS = frozenset(
    "lora_rank lora_alpha lora_scaling lora_dropout swad_converge swad_tolerance swad_ratio "
    "carot_distillation carot_orthogonality carot_interval".split()
)


class RecordWarning(NamedTuple):
    """Something wrong in a file that was read: its ``kind``, such as "cut line", and what."""

    kind: str
    path: str
    text: str


def describe_warnings(warnings: Iterable[RecordWarning]) -> list[str]:
    """One line per warning, grouped by kind; of a kind with many, the first and their number."""
    lines_by_kind: dict[str, list[str]] = {}
    for kind, path, text in warnings:
        lines_by_kind.setdefault(kind, []).append(printable(f"{kind}: {path}: {text}"))
    return [line for lines in lines_by_kind.values() for line in limited(lines)]


def keyed_records(
    path: Path | str, warnings: list[RecordWarning]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each complete record of a file, with a key that identifies its run."""
    import orjson

    try:
        lines = files.read_small(path).split(b"\n")
    except OSError as error:
        warnings.append(RecordWarning("unreadable", str(path), f"{error.strerror}; skipped"))
        return

    key = ""
    previous: dict[str, Any] = {}
    needed = set[str]()
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue

        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:  # NaN is no JSON, and Python writes it
            record = parse_line(line)

        # Most records are of the run of the last: what both have need not be checked again.
        if not (needed and _is_of_same_run(record, previous, needed)):
            needed = accuracies_needed(record)
            if not needed:
                warning = _warning_on_line(record, number, path)
                if warning not in warnings:  # records without accuracies: one warning per file
                    warnings.append(warning)
                continue

            previous = record
            key = run_key(record["args"], record.get("hparams"), len(needed))
        yield key, record


def _is_of_same_run(record: Any, previous: Mapping[str, Any], needed: set[str]) -> bool:
    """Whether a record is complete since it is like the ``previous``, which has all ``needed``."""
    return (
        type(record) is dict
        and is_step(record.get("step"))
        and record.get("args") == previous["args"]
        and record.get("hparams") == previous.get("hparams")
        and needed <= record.keys()
    )


def _warning_on_line(record: Any, number: int, path: Path | str) -> RecordWarning:
    """What is wrong with line ``number``, which is not a complete record."""
    if _lacks_only_accuracies(record):
        return RecordWarning("no accuracies", str(path), NO_ACCURACIES)
    return RecordWarning("cut line", str(path), f"line {number} is not a complete record; skipped")


def _lacks_only_accuracies(record: Any) -> bool:
    """Whether it would be a record, but has no accuracies at all."""
    if not isinstance(record, dict) or any(_ACCURACY.fullmatch(name) for name in record):
        return False
    return is_step(record.get("step")) and isinstance(record.get("args"), dict)


def parse_line(line: bytes) -> Any:
    """The content of a line, which may have NaN; None if it is no JSON."""
    with contextlib.suppress(ValueError):
        return parsing.parse_json(line)


def accuracies_needed(record: Any) -> set[str]:
    """Names of the accuracies that selection needs; none if it is not a whole record."""
    try:
        args = record["args"]
        targets = args["test_envs"]
        count = 0
        while f"env{count}_out_acc" in record:
            count += 1
        needed = {f"env{env}_out_acc" for env in range(count)}
        needed |= {f"env{target}_in_acc" for target in targets}

        is_whole = (
            is_step(record["step"])
            and (args.get("steps") is None or is_step(args["steps"]))
            and all(0 <= target < count for target in Job(args, Path()).key.test_envs)
            and len(needed) == count + len(targets)
            and needed <= record.keys()
            and isinstance(args.get("hparams"), (str, dict, type(None)))
            and isinstance(record.get("hparams"), (dict, type(None)))
            and not parsing.is_deep(record)
        )
    except (KeyError, TypeError):
        return set()
    return needed if is_whole else set()


def is_broken_loss(name: str, value: Any) -> bool:
    """Whether a recorded value is a loss that is not finite: the training has diverged by then."""
    return "loss" in name and isinstance(value, float) and not math.isfinite(value)


def is_step(step: Any) -> bool:
    """Whether ``step`` is a finite number, and no bool."""
    return type(step) in NUMBERS and abs(step) <= sys.float_info.max


def run_key(args: Mapping[str, Any], hparams: Mapping[str, Any] | None, n_accuracies: int) -> str:
    """The key that records of one run share, and those of other runs in its folder do not."""
    names = (*IDENTITY, "test_envs", "seed", *ARGUMENTS, "hparams")
    compared_hparams = {
        name: value for name, value in (hparams or {}).items() if name not in YOUNGER_HPARAMS
    }
    return repr([*map(args.get, names), sorted(compared_hparams.items()), n_accuracies])
