"""From a file, or DomainBed's own flags, to a declaration, with all that is wrong told at once."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.files import parsing
from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names
from domainbed_carft.sweep.declaration import TASK, Declaration, Override, Seeds, Shape, Variant
from domainbed_carft.text import unknown

MOST_JOBS = 100_000

_FLAG_OF = {"trials": "n_trials", "hparams_seeds": "n_hparams"}
_WITHIN: dict[Any, type[BaseModel]] = {
    "hparams_seeds": Seeds, "overrides": Override, "variants": Variant,
}  # fmt: skip


class Problem(NamedTuple):
    """What is wrong and what was expected, and where."""

    path: YamlPath
    text: str

    @property
    def place(self) -> str:
        """``overrides[0].hparams.lr: ``; nothing for the top."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return f"{''.join(parts).lstrip('.')}: " if self.path else ""


def asked(file: str | None, given: Mapping[str, Any]) -> Declaration:
    """The sweep of a file, or else of DomainBed's flags that were given."""
    if file is None and {"algorithms", "datasets"} <= given.keys():
        return from_flags(given)
    if file is not None and not given:
        return load(file)
    what = f"got {file or 'no sweep'} and {' '.join(f'--{name}' for name in given) or 'no flags'}"
    listed = ", ".join(ours_by_name())
    raise CarftError(
        f"{what}; expected a sweep (a file, or one of {listed}), or --algorithms and --datasets"
    )


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

    made, problems = _build(data, text=text)
    problems.sort(key=line)
    raise_for(f"{name}:{line(one)}: {one.place}{one.text}" for one in problems)
    return made


def from_flags(given: Mapping[str, Any]) -> Declaration:
    """The sweep that DomainBed's own flags ask for. Raises CarftError with all their problems.

    Their defaults are upstream's (domainbed/scripts/sweep.py at b93c22a).
    """
    same = ("datasets", "algorithms", "holdout_fraction", "steps")
    data = {name: given[name] for name in same if given.get(name) is not None}
    first, beyond = given.get("n_hparams_from", 0), given.get("n_hparams", 20)
    pairs = [] if given.get("single_test_envs") else ["leave-one-domain-out"]
    data |= {
        "name": "flags",
        "trials": given.get("n_trials", 3),
        "hparams_seeds": {"from": first, "n": max(1, beyond - first)},
        "selection": ["training-domain", "oracle", *pairs],
    }
    problems = []
    if beyond <= first:
        text = f"it is {beyond}, expected more than --n_hparams_from = {first}"
        problems.append(Problem(("hparams_seeds",), text))
    if hparams := given.get("hparams"):
        try:
            data["hparams"] = parsing.parse_json(hparams, unique_keys=True)
        except ValueError as error:
            problems.append(Problem(("hparams",), f"it is not valid JSON ({error})"))
    if given.get("task", TASK) != TASK:
        text = "it needs unlabeled items, and the jobs of a sweep have none"
        problems.append(Problem(("task",), text))
    made, found = _build(data, hparams_text=given.get("hparams"))
    raise_for(
        f"--{_FLAG_OF.get(str(top), top)}: {Problem(below, '').place}{text}"
        for (top, *rest), text in [*problems, *found]
        for below in [tuple(rest) if top == "hparams" else ()]
    )
    return made


def _build(data: Any, **source: Any) -> tuple[Declaration, list[Problem]]:
    """A declaration of plain data, and all that is wrong with it."""
    # Names can be judged wherever the shape is right, so that one run tells all there is to mend.
    given, problems = read(data)
    n_points = math.prod(map(len, given.grid.values()))
    facts: dict[str, Any] = {}
    if sound := given.trials * len(given.choices) * n_points <= MOST_JOBS:
        facts, told = names.problems(given)
        problems += [Problem(*one) for one in told]
        if len(given.settings) < n_points:
            text = "several combinations would share a folder; name them as variants"
            problems.append(Problem(("grid",), text))
    made = Declaration.model_construct(**dict(given), facts=facts, **source)
    if not sound or (not problems and made.n_jobs > MOST_JOBS):
        text = f"these are more than {MOST_JOBS:,} jobs; make several sweeps of them"
        problems.append(Problem(("datasets",), text))
    return made, problems


def read(data: Any) -> tuple[Shape, list[Problem]]:
    """What ``data`` declares, without the keys that are wrong, and everything that is wrong."""
    if not isinstance(data, dict):
        text = f"it is {data!r:.60}, expected a mapping with name, datasets and algorithms"
        return Shape(), [Problem((), text)]
    needed = ("name", "datasets", "algorithms")
    problems = [Problem((), f"the key {key!r} is missing") for key in needed if key not in data]
    sound = copy.deepcopy(data)
    while True:
        try:
            return Shape.model_validate(sound), problems
        except ValidationError as error:
            found = [_told(one) for one in error.errors(include_url=False)]
            problems += dict.fromkeys(found)
            for problem in found:
                _remove(sound, problem.path)


def _told(error: Any) -> Problem:
    path = tuple(part for part in error["loc"] if part != "[key]" and str(part)[:1] != "<")
    if error["type"] == "extra_forbidden":
        fields = _WITHIN[path[0]].model_fields if len(path) > 1 else Shape.model_fields
        known = sorted(field.alias or name for name, field in fields.items())
        return Problem(path, unknown("key", str(path[-1]), known))
    what = re.sub("^(Value error,|Input|String|List) ", "", error["msg"])
    return Problem(path, f"it is {error['input']!r:.60}, {what}")


def _remove(data: dict[str, Any], path: YamlPath) -> None:
    """Take the nearest key of a path out, with all below it; what is in lists keeps its place."""
    last = max(index for index, part in enumerate(path) if isinstance(part, str))
    above: Any = data
    try:
        for part in path[:last]:
            above = above[part]
        del above[path[last]]
    except (LookupError, TypeError):  # it went with something above it
        data.pop(str(path[0]), None)


def find(file: str | Path) -> Path:
    """The file of that path; for a bare name the sweep of ours called so."""
    shipped = ours_by_name()
    if Path(file).is_file() or str(file) in shipped:
        return Path(file) if Path(file).is_file() else shipped[str(file)]
    raise CarftError(f"{unknown('sweep', str(file), shipped)}, or the path of a file")


def ours_by_name() -> dict[str, Path]:
    """The sweeps that come with the project: in ``sweeps/`` of its source, or in the package."""
    package = Path(ours.__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps beside an installed package need not be ours.
    chosen = next((f for f in folders if (f / "demo.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob("*.yaml"))}
