"""The jobs of what was launched last into an output folder, as it was declared then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.sweep import checks, declaration, flags, jobs, output, yaml_source
from domainbed_carft.sweep import names as host
from domainbed_carft.sweep.declaration import Declaration


def declared(folder: Path, ask: bool = True) -> tuple[Declaration, list[jobs.Job]] | None:
    """The sweep, and its jobs in the folders that a launch gives them.

    None for a folder that ``carft sweep`` did not launch into, or where the copy of the declaration
    is gone. Raises CarftError or OSError where it cannot be read. ``ask``: whether the domainbed in
    use may be asked, which loads torch, for data sets that were not those launched.
    """
    launched = output.recall(folder)
    if launched is None:
        return None
    host.assume(launched.datasets)
    found = _declaration(folder, launched, ask)
    return None if found is None else (found, jobs.make(found, launched.data_dir, folder))


def _declaration(folder: Path, launched: output.Launched, ask: bool) -> Declaration | None:
    if launched.flags is not None:
        if not ask:
            _require_known(launched.flags)
        return flags.declared(launched.flags, checked=True)
    copy = folder / output.DECLARATION
    if not copy.is_file():
        return None
    text, name = copy.read_text(encoding="utf-8"), str(copy)
    if not ask:
        _require_known(yaml_source.read(text, name)[0])
    return declaration.parse(text, name, checked=True)


def _require_known(data: Any) -> None:
    """Of plain data of any shape, which is checked later."""
    names = data.get("datasets") if isinstance(data, Mapping) else None
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and not host.is_known(checks.spelled(name)):
            raise CarftError(f"nothing is known of its data set {name}, which was not launched")
