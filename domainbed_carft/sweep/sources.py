"""From a file, or DomainBed's own flags, to a declaration, with all that is wrong told at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.files import parsing
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names, shape
from domainbed_carft.sweep.declaration import TASK, Declaration
from domainbed_carft.sweep.shape import Problem, Shape, Variant
from domainbed_carft.text import unknown

TASKS = (TASK, "domain_adaptation")
SUFFIX = ".yaml"
MOST_JOBS = 100_000

# Upstream's defaults (domainbed/scripts/sweep.py at b93c22a).
FLAGS: dict[str, Any] = {
    "n_trials": 3, "n_hparams_from": 0, "n_hparams": 20, "steps": None, "hparams": None,
    "holdout_fraction": 0.2, "single_test_envs": False, "task": TASK,
}  # fmt: skip
_FLAG_OF = {"trials": "n_trials", "hparams_seeds": "n_hparams"}


def asked(file: str | None, given: Mapping[str, Any]) -> Declaration:
    """The sweep of a file, or else of DomainBed's flags that were given."""
    if file is None:
        if "algorithms" in given and "datasets" in given:
            return from_flags(given)
        shipped = ", ".join(ours_by_name())
        raise CarftError(
            f"name a sweep (a file, or one of {shipped}), or give --algorithms and --datasets"
        )
    if given:
        raise CarftError(
            f"--{', --'.join(given)} and the sweep {file}: expected one of the two. Copy the file "
            "to change what it declares"
        )
    return load(file)


def load(file: str | Path) -> Declaration:
    """The sweep that a file declares, or one of ours by its bare name, such as ``demo``.

    Raises CarftError with everything that is wrong, as ``file:line: path: what``.
    """
    path = find(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"the sweep {path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> Declaration:
    """The sweep that ``text`` declares; ``name`` is what messages call it."""
    try:
        data, lines = parsing.parse_yaml(text)
    except ValueError as error:
        raise_for([f"{name}:{error}"])

    def line(problem: Problem) -> int:
        path = problem.path
        prefixes = (path[:n] for n in range(len(path), -1, -1))
        return next((lines[prefix] for prefix in prefixes if prefix in lines), 1)

    made, problems = _build(data)
    problems.sort(key=line)
    raise_for(f"{name}:{line(one)}: {_place(one.path)}{one.text}" for one in problems)
    assert made is not None  # else there were problems
    return replace(made, text=text)


def from_flags(given: Mapping[str, Any]) -> Declaration:
    """The sweep that DomainBed's own flags ask for. Raises CarftError with all their problems."""
    values = {**FLAGS, **given}
    problems = []
    first, beyond = values["n_hparams_from"], values["n_hparams"]
    if beyond <= first:
        text = f"it is {beyond}, expected more than --n_hparams_from = {first}"
        problems.append(Problem(("hparams_seeds",), text))
    pairs = [] if values["single_test_envs"] else ["leave-one-domain-out"]
    data: dict[str, Any] = {
        "name": "flags",
        "datasets": values.get("datasets", []),
        "algorithms": values.get("algorithms", []),
        "trials": values["n_trials"],
        "hparams_seeds": {"from": first, "n": max(1, beyond - first)},
        "holdout_fraction": values["holdout_fraction"],
        "selection": ["training-domain", "oracle", *pairs],
    }
    if values["steps"] is not None:
        data["steps"] = values["steps"]
    if values["hparams"]:
        try:
            data["hparams"] = parsing.parse_json(values["hparams"], unique_keys=True)
        except ValueError as error:
            problems.append(Problem(("hparams",), f"it is not valid JSON ({error})"))
    if values["task"] != TASK:
        text = "it needs unlabeled items, and the jobs of a sweep have none"
        problems.append(Problem(("task",), text))
    made, found = _build(data)
    raise_for(
        f"--{_FLAG_OF.get(str(path[0]), path[0]) if path else 'datasets'}: "
        f"{_place(path[1:]) if path[:1] == ('hparams',) else ''}{text}"
        for path, text in [*problems, *found]
    )
    assert made is not None  # else there were problems
    return replace(made, hparams_text=values["hparams"])


def _place(path: parsing.YamlPath) -> str:
    """``overrides[0].hparams.lr: ``; nothing for the top."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def _build(data: Any) -> tuple[Declaration | None, list[Problem]]:
    """A declaration of plain data, and all that is wrong with it."""
    # Names can be judged wherever the shape is right, so that one run tells all there is to mend.
    given, problems = shape.read(data)
    seeds = given.hparams_seeds
    first, n_seeds = (0, seeds) if isinstance(seeds, int) else (seeds.first, seeds.n)
    n_points = math.prod(map(len, given.grid.values()))
    too_many = Problem((), f"these are more than {MOST_JOBS:,} jobs; make several sweeps of them")
    if given.trials * n_seeds * n_points > MOST_JOBS:
        return None, [*problems, too_many]
    facts, told = names.problems(given)
    problems += told
    variants = _variants(given)
    if len(variants) < n_points:
        text = "several combinations would share a folder; name them as variants"
        problems.append(Problem(("grid",), text))
    if problems:
        return None, problems
    steps = given.steps
    by_dataset = steps if isinstance(steps, dict) else dict.fromkeys(given.datasets, steps)
    made = Declaration(
        given.name,
        tuple(given.datasets),
        tuple(given.algorithms),
        facts,
        {name: _test_environments(given, name, facts[name]) for name in given.datasets},
        given.description,
        given.trials,
        range(first, first + n_seeds),
        by_dataset,
        given.hparams,
        given.overrides,
        variants,
        tuple(given.selection),
        given.protocol,
        float(given.holdout_fraction),
        tuple(given.compare_with),
    )
    if made.n_jobs > MOST_JOBS:
        return None, [too_many]
    return made, [
        Problem(
            ("hparams",),
            f"warmup_steps is {warmup} for {algorithm} on {dataset}, expected fewer than "
            f"total_steps = {total}; set both",
        )
        for dataset, algorithm, _, warmup, total, _ in made.schedules()
        if warmup >= total
    ]


def _test_environments(given: Shape, dataset: str, facts: Dataset) -> tuple[int, ...]:
    by_name = given.test_environments
    listed = by_name.get(dataset, ()) if isinstance(by_name, dict) else by_name
    found = {names.environment(one, dataset, facts.labels) for one in listed}
    return tuple(sorted(i for i in found if i is not None)) or tuple(range(len(facts.labels)))


def _variants(given: Shape) -> dict[str, Variant]:
    if not given.grid:
        return dict(given.variants) or {"": Variant()}
    points = [dict(zip(given.grid, v)) for v in itertools.product(*given.grid.values())]
    return {variant_name(point): Variant(hparams=point) for point in points}


def variant_name(setting: Mapping[str, Any]) -> str:
    """A folder's name for a point of a grid, such as ``kl_weight=3,amp=bf16``."""
    parts = (f"{key}={value}" for key, value in setting.items())
    return "".join(c if c.isalnum() or c in "._=,+-" else "-" for c in ",".join(parts))


def find(file: str | Path) -> Path:
    """The file of that path; for a bare name the sweep of ours called so."""
    path = Path(file)
    if path.is_file():
        return path
    shipped = ours_by_name()
    if str(file) in shipped:
        return shipped[str(file)]
    if len(path.parts) == 1 and path.suffix != SUFFIX:
        raise CarftError(unknown("sweep", str(file), sorted(shipped)) + ", or the path of a file")
    raise CarftError(
        f"{path} does not exist; expected a declared sweep (docs/sweeps.md), or one of ours by its "
        f"name: {', '.join(sorted(shipped))}"
    )


def ours_by_name() -> dict[str, Path]:
    """The sweeps that come with the project: in ``sweeps/`` of its source, or in the package."""
    package = Path(ours.__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps beside an installed package need not be ours.
    chosen = next((f for f in folders if (f / f"demo{SUFFIX}").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob(f"*{SUFFIX}"))}
