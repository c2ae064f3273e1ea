"""A declaration from a file or from DomainBed's own flags, with all its problems."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    "trials": Seeds, "hparams_seeds": Seeds, "overrides": Override, "variants": Variant,
}  # fmt: skip


def _place(path: YamlPath) -> str:
    """``overrides[0].hparams.lr: ``; nothing for the top."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{''.join(parts).lstrip('.')}: " if path else ""


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
    """The sweep that a file declares, or an included one by its bare name, such as ``demo``.

    Raises CarftError with the problems, as ``file:line: path: what``.
    """
    shipped, path = ours_by_name(), Path(file)
    if not path.is_file():
        if str(file) not in shipped:
            raise CarftError(f"{unknown('sweep', str(file), shipped)}, or the path of a file")
        path = shipped[str(file)]
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

    def said(path: YamlPath, what: str) -> str:
        prefixes = (path[:n] for n in range(len(path), -1, -1))
        line = next((lines[prefix] for prefix in prefixes if prefix in lines), 1)
        return f"{name}:{line}: {_place(path)}{what}"

    return _build(data, said, text=text)


def from_flags(given: Mapping[str, Any]) -> Declaration:
    """The sweep that DomainBed's own flags ask for. Raises CarftError with their problems.

    Their defaults are upstream's (domainbed/scripts/sweep.py at b93c22a).
    """
    same = ("datasets", "algorithms", "holdout_fraction", "steps")
    data = {name: given[name] for name in same if given.get(name) is not None}
    first, beyond = given.get("n_hparams_from", 0), given.get("n_hparams", 20)
    pairs = [] if given.get("single_test_envs") else ["leave-one-domain-out"]
    data |= {
        "name": "flags",
        "trials": given.get("n_trials", 3),
        "hparams_seeds": {"from": first, "n": beyond - first},
        "selection": ["training-domain", "oracle", *pairs],
    }
    if beyond <= first:
        raise_for([f"--n_hparams: got {beyond}, expected more than --n_hparams_from = {first}"])
    if given.get("task", TASK) != TASK:
        raise_for([f"--task: got {given['task']}, expected {TASK}: sweeps have no unlabeled items"])
    if hparams := given.get("hparams"):
        try:
            data["hparams"] = parsing.parse_json(hparams, unique_keys=True)
        except ValueError as error:
            raise_for([f"--hparams: not valid JSON ({error})"])

    def said(path: YamlPath, what: str) -> str:
        key = str(path[0])
        return f"--{_FLAG_OF.get(key, key)}: {_place(path[1:]) if key == 'hparams' else ''}{what}"

    return _build(data, said, hparams_text=given.get("hparams"))


def _build(data: Any, said: Callable[[YamlPath, str], str], **source: Any) -> Declaration:
    """Report all errors of form at once; if there are none, all unknown names."""
    if not isinstance(data, dict):
        text = f"got {data!r:.60}, expected a mapping with name, datasets and algorithms"
        raise_for([said((), text)])
    try:
        given = Shape.model_validate(data)
    except ValidationError as error:
        wrong = dict.fromkeys(map(_told, error.errors(include_url=False)))
        raise_for(said(*one) for one in wrong)
    n_points = math.prod(map(len, given.grid.values())) * max(1, len(given.variants))
    cells = len(given.datasets) * len(given.algorithms) * n_points
    if len(given.trial_seeds) * len(given.choices) * cells > MOST_JOBS:
        text = f"the sweep has more than {MOST_JOBS:,} jobs; split it into several sweeps"
        raise_for([said(("datasets",), text)])
    facts, told = names.problems(given)
    if len(given.settings) < n_points:
        text = "several combinations would share a folder; use named variants instead"
        told.append((("grid",), text))
    made = Declaration.model_construct(**dict(given), facts=facts, **source)
    raise_for(said(*one) for one in told)
    return made


def _told(error: Any) -> tuple[YamlPath, str]:
    path = tuple(part for part in error["loc"] if part != "[key]" and str(part)[:1] != "<")
    if error["type"] == "missing":
        return path[:-1], f"the key {path[-1]!r} is missing"
    if error["type"] == "extra_forbidden":
        fields = _WITHIN[path[0]].model_fields if len(path) > 1 else Shape.model_fields
        known = sorted(field.alias or name for name, field in fields.items())
        return path, unknown("key", str(path[-1]), known)
    what = re.sub("^(Value error,|Input|String|List) ", "", error["msg"])
    return path, f"got {error['input']!r:.60}, {what}"


def ours_by_name() -> dict[str, Path]:
    """The included sweeps: in ``sweeps/`` of the source tree, or in the package."""
    package = Path(ours.__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps beside an installed package need not be ours.
    chosen = next((f for f in folders if (f / "demo.yaml").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob("*.yaml"))}
