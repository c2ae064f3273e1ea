"""What ``carft collect`` and ``carft top`` do, from folders to the printed page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import faults as told
from domainbed_carft.jobs import reading
from domainbed_carft.jobs.faults import Fault
from domainbed_carft.jobs.planned import Planned
from domainbed_carft.jobs.records import Read, Run
from domainbed_carft.results import output
from domainbed_carft.text import counted, inflected, shown

INCOMPLETE = 3  # exit status of --strict


class Collection(NamedTuple):
    """Runs in groups that may be averaged, by which methods, and what was wrong.

    ``optional``: of the methods those that nobody has asked for or run jobs for; what their cells
    lack is said, and is no gap.
    """

    groups: Sequence[Any]
    methods: Sequence[str]
    faults: Sequence[Fault]
    records: int
    jobs: int
    optional: Sequence[str] = ()


def gather(
    folders: Sequence[Path | str],
    methods: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    processes: int = 1,
    also: str | None = None,
) -> Collection:
    """Read ``folders``, keep apart what does not belong together, count each job once.

    ``methods``: None for those that the sweeps declare, else those that there are jobs for, and
    the one called ``also``.
    Raises CarftError if there is no record, no job for one of ``methods``, or if a job was run
    twice with different records.
    """
    ahead: list[tuple[list[Planned], list[Fault]]] = []
    found = reading.read(folders, processes, lambda: ahead.append(_declared(folders)))
    wanted, untold = ahead[0] if ahead else _declared(folders)
    from domainbed_carft.results import declared, drift, jobs, settings

    if not found.runs:
        wrong = "".join(f"\n{line}" for line in told.lines(found.faults))
        raise CarftError(
            f"no record below {', '.join(map(str, folders))}; expected the output folder of a "
            f"sweep, with a folder a job and results.jsonl in it{wrong}"
        )
    groups = []
    passed_over: list[Fault] = []
    for group in declared.placed(settings.groups(found.runs, [*found.planned, *wanted], ignored)):
        kept, faults = jobs.distinct(group.runs)
        groups.append(group._replace(runs=kept, notes=[*group.notes, *drift.notes(kept)]))
        passed_over += faults
    count = sum(len(group.runs) for group in groups)
    faults = [*found.faults, *passed_over, *untold]
    optional: list[str] = []
    if methods:
        _require_jobs(methods, [*found.runs, *found.planned, *wanted])
    else:
        methods, optional, more = _methods(found, wanted, folders, also)
        faults += [fault for fault in more if fault.path not in {other.path for other in untold}]
    return Collection(groups, methods, faults, found.records, count, optional)


def _require_jobs(methods: Sequence[str], jobs: Sequence[Run | Planned]) -> None:
    from domainbed_carft.results import selection

    kinds = {bool(job.test_envs) for job in jobs}
    there = [name for name in selection.METHODS if (name != selection.IN_DOMAIN) in kinds]
    for name in methods:
        selection.require_jobs(name, there)


def _declared(folders: Sequence[Path | str]) -> tuple[list[Planned], list[Fault]]:
    """What ``declared.jobs`` returns; loads pandas, on which most of a start is spent."""
    from domainbed_carft.results import declared, tables  # noqa: F401

    return declared.jobs(folders)


def _methods(
    found: Read, wanted: Sequence[Planned], folders: Sequence[Path | str], also: str | None
) -> tuple[list[str], list[str], list[Fault]]:
    """The methods, those of them that are optional, and what was wrong with declarations.

    Without a declaration leave-one-domain-out is always one, so that nobody misses it; it is
    optional where there are no jobs for it.
    """
    from domainbed_carft.results import declared, selection

    left_out = [run.test_envs for run in found.runs] + [job.test_envs for job in wanted]
    described = [job.test_envs for job in found.planned]
    selections, faults = declared.selections(folders)
    asked = {also, *(name for names in selections for name in names or ())}
    asked |= {selection.LEAVE_ONE_OUT} if any(len(e) == 2 for e in left_out + described) else set()
    methods = [name for name in selection.METHODS if name != selection.IN_DOMAIN]
    if None not in selections:
        methods = [name for name in methods if name in asked]
    if not any(left_out):
        methods = []
    if not all(left_out):
        methods.append(selection.IN_DOMAIN)
    optional = [] if selection.LEAVE_ONE_OUT in asked else [selection.LEAVE_ONE_OUT]
    return methods, [name for name in optional if name in methods], faults


def run(arguments: argparse.Namespace) -> int:
    """``carft collect``; its exit status."""
    from domainbed_carft.results import declared, formats, page

    extras = [name for name in ("compare", "paired") if getattr(arguments, name)]
    if arguments.format == "csv" and len(extras) > 1:
        raise CarftError(
            "--format csv is one table, and --compare and --paired are two; expected one of them"
        )
    if arguments.output:
        output.require_no_input(arguments.output)
    collection = gather(arguments.folders, arguments.select, arguments.ignore, reading.processors())
    named = declared.compare_with(arguments.folders) if arguments.compare else []
    built = page.build(collection, arguments.paired, bool(arguments.compare), named)
    text = formats.render(built.document, arguments.format)
    if arguments.output:
        output.write(text, arguments.output)
    else:
        sys.stdout.write(text)
    notes = built.remarks if arguments.format == "csv" else []  # it has no room for them
    for line in [*notes, *_summary(collection, built.incomplete, built.cells)]:
        print(shown(line), file=sys.stderr)
    if arguments.strict and (why := _strict(collection, built.incomplete)):
        print(f"carft: --strict: {why}", file=sys.stderr)
        return INCOMPLETE
    return 0


def _strict(collection: Collection, incomplete: int) -> str:
    """What ``--strict`` finds fault with; "" if nothing."""
    lacking = f"{counted(incomplete, 'cell lacks', 'cells lack')} something, see the notes"
    found = [lacking] if incomplete else []
    for kind in told.LOST:
        if count := sum(fault.kind == kind for fault in collection.faults):
            found.append(f"{count} named above as: {kind}")
    return "; ".join(found)


def run_top(arguments: argparse.Namespace) -> None:
    """``carft top``: a JSON list."""
    collection = gather(arguments.folders, arguments.select, arguments.ignore, reading.processors())
    from domainbed_carft.results import selection, top
    from domainbed_carft.results.formats import as_json

    wanted = {name: getattr(arguments, name) for name in ("dataset", "algorithm", "test_env")}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    entries = list(top.best(collection.groups, collection.methods))
    idle = {*(arguments.select or ())} - {entry["selection"] for entry in entries}
    selection.require_selected("--select", [name for name in collection.methods if name in idle])
    _require_known(wanted, entries)
    chosen = [e for e in entries if all(e[name] == value for name, value in wanted.items())]
    sys.stdout.write(as_json.text(chosen))
    for line in told.lines(collection.faults):
        print(line, file=sys.stderr)


def _require_known(wanted: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
    problems = []
    for name, value in wanted.items():
        there = sorted({entry[name] for entry in entries if entry[name] is not None})
        if value not in there:
            listed = ", ".join(map(str, there)) or "none"
            problems.append(f"--{name} {value}: nothing was selected for it; there are: {listed}")
    if problems:
        raise CarftError("\n".join(problems))


def _summary(collection: Collection, incomplete: int, cells: int) -> Iterator[str]:
    yield from told.lines(collection.faults)
    if len(collection.groups) > 1:
        yield (
            f"The runs were made under {len(collection.groups)} settings, which are never "
            "averaged: each has tables of its own."
        )
    lack = inflected(incomplete, "lacks", "lack")
    gaps = f"; {incomplete:,} of {counted(cells, 'cell')} {lack} something, see the notes"
    gaps = gaps if incomplete else ""
    yield f"{counted(collection.records, 'record')} of {counted(collection.jobs, 'job')}{gaps}."
