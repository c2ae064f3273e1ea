"""Draw single wrong changes of the source, and see which of them the tests notice.

    python tools/mutants.py draw                    writes tools/mutants.csv (60, by a fixed seed)
    python -m pytest --cov --cov-context=test --cov-report= ...    writes .coverage (pytest-cov)
    python tools/mutants.py run .coverage           the tests that cover each line, until one fails
    python tools/mutants.py together 3 17 24        all of these at once, against the whole suite

A mutant is applied in place and taken back, so nothing else may use this checkout meanwhile. Its
place is the text of its line within its function, so the list stays valid while lines move.
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "mutants.csv"
SOURCES = (
    "domainbed_carft/method",
    "domainbed_carft/results/selection.py",
    "domainbed_carft/results/comparisons.py",
    "domainbed_carft/jobs",
    "domainbed_carft/launchers",
    "domainbed_carft/runs",
    "domainbed_carft/sweep/states.py",
    "third_party/domainbed/lib",
)
COUNT = 60
SEED = 2
TIMEOUT = 400  # Seconds. A mutant that never ends is noticed.

OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.And: "or",
    ast.Or: "and",
}


class Mutant(NamedTuple):
    """One wrong change: the nth occurrence of these lines in this function of this file."""

    file: str
    function: str
    occurrence: int
    kind: str
    before: str
    after: str


class Change(NamedTuple):
    """Where a syntax tree changes: characters of the source and what replaces them."""

    start: int
    end: int
    kind: str
    text: str


def draw() -> list[Mutant]:
    """Return 60 mutants, drawn from all sites of the sources."""
    sites = [
        (file, change)
        for source in SOURCES
        for file in _python_files(ROOT / source)
        for change in sorted(_changes(file.read_text(encoding="utf-8")))
    ]
    chosen = random.Random(SEED).sample(sites, COUNT)
    print(f"{len(sites)} sites, {COUNT} drawn")
    return [_mutant(file, change) for file, change in chosen]


def _python_files(source: Path) -> list[Path]:
    return [source] if source.suffix == ".py" else sorted(source.rglob("*.py"))


def _changes(text: str) -> Iterator[Change]:
    """Each site of the source: an operator, a constant, a condition, the order of two arguments."""
    tree = ast.parse(text)
    starts = _line_starts(text)

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin = starts[node.lineno - 1] + _characters(text, starts, node.lineno, node.col_offset)
        end = starts[node.end_lineno - 1] + _characters(
            text, starts, node.end_lineno, node.end_col_offset
        )
        return begin, end

    for node in _executed(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            between = span(node.left)[1], span(node.comparators[0])[0]
            yield _operator(text, *between, OPERATORS[type(node.ops[0])])
        elif isinstance(node, ast.BoolOp):
            between = span(node.values[0])[1], span(node.values[1])[0]
            if len(node.values) == 2:
                yield _operator(text, *between, OPERATORS[type(node.op)])
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            between = span(node.left)[1], span(node.right)[0]
            yield _operator(text, *between, OPERATORS[type(node.op)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield Change(*span(node), "constant", str(not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            yield Change(*span(node), "constant", repr(node.value + 1))
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            begin, end = span(node.test)
            yield Change(begin, end, "condition", f"not ({text[begin:end]})")
        elif isinstance(node, ast.Call) and len(node.args) >= 2:
            first, second = node.args[:2]
            if not any(isinstance(argument, ast.Starred) for argument in (first, second)):
                (begin, middle), (after, end) = span(first), span(second)
                swapped = text[after:end] + text[middle:after] + text[begin:middle]
                if swapped != text[begin:end]:
                    yield Change(begin, end, "order", swapped)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations and blocks for type checkers."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            yield node
            yield from _executed(node)


def _operator(text: str, start: int, end: int, operator: str) -> Change:
    """The change of what stands between two operands, whose brackets and spaces stay."""
    old = text[start:end]
    word = old.strip(" ()\n")
    begin = start + old.index(word)
    return Change(begin, begin + len(word), "operator", operator)


def _line_starts(text: str) -> list[int]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def _characters(text: str, starts: list[int], line: int, offset: int) -> int:
    """The characters of an offset in bytes."""
    content = text[starts[line - 1] : starts[line]]
    return len(content.encode()[:offset].decode())


def _mutant(file: Path, change: Change) -> Mutant:
    """Describe the change by whole lines, which are found again after others have moved."""
    text = file.read_text(encoding="utf-8")
    begin = text.rfind("\n", 0, change.start) + 1
    end = text.find("\n", change.end)
    before = text[begin:end]
    after = text[begin : change.start] + change.text + text[change.end : end]
    function, first = _function_at(text, text.count("\n", 0, change.start) + 1)
    starts = _line_starts(text)
    occurrence = text[starts[first - 1] : begin].count(before)
    path = file.relative_to(ROOT).as_posix()
    return Mutant(path, function, occurrence, change.kind, before, after)


def _function_at(text: str, line: int) -> tuple[str, int]:
    """The innermost function or class with this line, "" for the module, and its first line."""
    innermost = ("", 1)
    for name, first, last in _functions(ast.parse(text)):
        if first <= line <= last and first >= innermost[1]:
            innermost = (name, first)
    return innermost


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            assert child.end_lineno is not None
            yield name, child.lineno, child.end_lineno
            yield from _functions(child, f"{name}.")
        else:
            yield from _functions(child, prefix)


def _place(mutant: Mutant, text: str) -> int | None:
    """Where the mutant's lines begin in the file, None if they are no longer there."""
    spans = [(1, text.count("\n") + 1)]
    if mutant.function:
        spans = [(a, b) for name, a, b in _functions(ast.parse(text)) if name == mutant.function]
    starts = _line_starts(text)
    for first, last in spans:
        position = starts[first - 1] - 1
        for _ in range(mutant.occurrence + 1):
            position = text.find(mutant.before, position + 1, starts[min(last, len(starts) - 1)])
            if position < 0:
                break
        if position >= 0:
            return position
    return None


@contextmanager
def applied(mutants: list[Mutant]) -> Iterator[None]:
    """Change the files; they are as before afterwards."""
    originals: dict[Path, str] = {}
    try:
        for mutant in mutants:
            file = ROOT / mutant.file
            text = file.read_text(encoding="utf-8")
            originals.setdefault(file, text)
            position = _place(mutant, text)
            if position is None:
                raise SystemExit(f"{mutant.file}: no longer has {mutant.before!r}")
            _write(file, text[:position] + mutant.after + text[position + len(mutant.before) :])
        yield
    finally:
        for file, text in originals.items():
            _write(file, text)


def _write(file: Path, text: str) -> None:
    """Write the source; its compiled form is not taken for that of an equally old one."""
    file.write_text(text, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.unlink()


def covering_tests(coverage_file: str, mutant: Mutant) -> list[str]:
    """Return the ids of the tests that execute one of the mutant's lines.

    First come those that execute the fewest lines of its file.
    """
    import coverage

    data = coverage.CoverageData(coverage_file)
    data.read()
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    position = _place(mutant, text)
    assert position is not None
    first = text.count("\n", 0, position) + 1
    lines = range(first, first + mutant.before.count("\n") + 1)
    by_line: dict[int, list[str]] = {}
    for name in data.measured_files():
        if Path(name).as_posix().endswith(mutant.file):
            by_line = data.contexts_by_lineno(name)
    lines_by_test = Counter(test for tests in by_line.values() for test in tests)
    tests = {test for line in lines for test in by_line.get(line, ()) if test}
    narrowest_first = sorted(tests, key=lambda test: (lines_by_test[test], test))
    return list(dict.fromkeys(test.rpartition("|")[0] or test for test in narrowest_first))


def run(coverage_file: str, numbers: list[int]) -> None:
    """Run each mutant's tests until one fails; print whether one did."""
    mutants = read()
    survivors = []
    for number in numbers or range(len(mutants)):
        mutant = mutants[number]
        if _place(mutant, (ROOT / mutant.file).read_text(encoding="utf-8")) is None:
            print(number, "gone", mutant.file, mutant.function, flush=True)
            continue
        tests = covering_tests(coverage_file, mutant)
        began = time.time()
        with applied([mutant]):
            failed = _first_failure(tests) if tests else ""
        if not failed:
            survivors.append(number)
        seconds = f"{time.time() - began:.0f} s"
        print(number, failed or "survives", f"({len(tests)} tests, {seconds})", flush=True)
    print("survivors:", *survivors)


def _first_failure(tests: list[str]) -> str:
    """The first test that fails, "timeout" if they never end, "" if all pass."""
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--no-header", *tests]
    command = [sys.executable, "-m", "pytest", *arguments]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return ""
    failures = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
    return failures[0][:150] if failures else f"status {done.returncode}: {done.stdout[-300:]}"


def read() -> list[Mutant]:
    """Return the mutants of the list."""
    with LIST.open(encoding="utf-8", newline="") as file:
        return [
            Mutant(**{**row, "occurrence": int(row["occurrence"])}) for row in csv.DictReader(file)
        ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("draw", "run", "together"))
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()

    if args.command == "draw":
        with LIST.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Mutant._fields)
            writer.writerows(draw())
    elif args.command == "run":
        run(args.arguments[0], [int(number) for number in args.arguments[1:]])
    else:
        mutants = read()
        with applied([mutants[int(number)] for number in args.arguments]):
            subprocess.run(["make", "test"], cwd=ROOT)


if __name__ == "__main__":
    main()
