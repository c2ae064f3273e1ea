"""What the declaration of a sweep, which lies in its output folder, says of its results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from domainbed_carft.collect import selection
from domainbed_carft.collect.faults import Fault
from domainbed_carft.errors import CarftError

DECLARATION = "sweep.yaml"  # what `carft sweep launch` leaves in its output folder
_DEFAULT = ("training-domain", "oracle")  # as domainbed_carft.sweep has it, which a test compares


def compare_with(folders: Iterable[Path | str]) -> list[str]:
    """The published methods that the declared sweeps in ``folders`` are about.

    Raises CarftError for a declaration that cannot be read.
    """
    found: dict[str, None] = {}
    for folder in folders:
        path = Path(folder) / DECLARATION
        try:
            found |= dict.fromkeys((_read(path) or {}).get("compare_with", ()))
        except (OSError, ValueError, TypeError) as error:
            raise CarftError(
                f"{path} cannot be read ({error}); expected the copy of the declaration that "
                "`carft sweep launch` left there. Without that file all published figures count"
            ) from error
    return list(found)


def selections(folders: Iterable[Path | str]) -> tuple[list[list[str] | None], list[Fault]]:
    """The methods of selection that the sweep in each folder declares; None where none does."""
    found: list[list[str] | None] = []
    faults = []
    for folder in folders:
        path = Path(folder) / DECLARATION
        try:
            found.append(_selection(_read(path)))
        except (OSError, ValueError) as error:
            what = f"{error}; passed over, and so are the methods of selection that it declares"
            faults.append(Fault("unreadable", str(path), what))
            found.append(None)
    return found, faults


def _selection(declared: dict[str, Any] | None) -> list[str] | None:
    # Others have files of that name, too.
    if declared is None or not {"datasets", "algorithms"} <= declared.keys():
        return None
    chosen = declared.get("selection", _DEFAULT)
    names = [name for name in selection.METHODS if name != selection.IN_DOMAIN]
    if not isinstance(chosen, list | tuple) or not chosen or any(n not in names for n in chosen):
        raise ValueError(f"selection is {chosen!r}, expected a list of {', '.join(names)}")
    return list(chosen)


def _read(path: Path) -> dict[str, Any] | None:
    """The declaration, None if there is none; raises OSError or ValueError if it is no mapping."""
    if not path.is_file():
        return None
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(declared, dict):
        raise ValueError(f"it is {type(declared).__name__}, expected a mapping")
    return declared
