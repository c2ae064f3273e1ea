"""A declaration from a file, or all that is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.files import parsing
from domainbed_carft.files.parsing import YamlPath
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import name_checks
from domainbed_carft.sweep.declaration import Declaration, Override, Seeds, Shape, Variant
from domainbed_carft.sweep.name_checks import Told
from domainbed_carft.text import unknown

MOST_JOBS = 100_000

_WITHIN: dict[Any, type[BaseModel]] = {
    "trials": Seeds, "hparams_seeds": Seeds, "overrides": Override, "variants": Variant,
}  # fmt: skip


def load(file: str | Path) -> Declaration:
    """The sweep that a file declares, or an included one by its bare name, such as ``demo``.

    Raises CarftError with the problems, as ``file:line: path: what``.
    """
    shipped, path = ours_by_name(), Path(file)
    if not path.is_file():
        if str(file) not in shipped:
            raise CarftError(f"{unknown('sweep', str(file), shipped)}, or the path of a file")
        path = shipped[str(file)]
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, name: str) -> Declaration:
    """The sweep that ``text`` declares. Raises CarftError as ``load`` does, first for its form."""
    try:
        data, lines = parsing.parse_yaml(text)
    except ValueError as error:
        raise_for([f"{name}:{error}"])

    def refuse(told: Iterable[Told]) -> None:
        raise_for(f"{name}:{_place(path, lines)}{what}" for path, what in told)

    if not isinstance(data, dict):
        what = f"got {data!r:.60}, expected a mapping with name, datasets and algorithms"
        refuse([((), what)])
    try:
        given = Shape.model_validate(data)
    except ValidationError as error:
        refuse(dict.fromkeys(map(_told, error.errors(include_url=False))))
    n_points = math.prod(map(len, given.grid.values())) * max(1, len(given.variants))
    cells = len(given.datasets) * len(given.algorithms) * n_points
    if len(given.trial_seeds) * len(given.choices) * cells > MOST_JOBS:
        what = f"the sweep has more than {MOST_JOBS:,} jobs; split it into several sweeps"
        refuse([(("datasets",), what)])
    facts, told = name_checks.problems(given)
    if len(given.settings) < n_points:
        what = "several combinations would share a folder; use named variants instead"
        told.append((("grid",), what))
    refuse(told)
    return Declaration.model_construct(**dict(given), facts=facts, text=text)


def _place(path: YamlPath, lines: Mapping[YamlPath, int]) -> str:
    """``9: overrides[0].hparams.lr: ``, with the line of the innermost part that is there."""
    line = next(lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines)
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return f"{line}: {''.join(parts).lstrip('.')}: " if path else f"{line}: "


def _told(error: Any) -> Told:
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
