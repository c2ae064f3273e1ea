"""Options of launchers from a file, for a DomainBed whose sweep has no flags for them.

A YAML file that maps a launcher's name to its options, such as:

    slurm:
      partition: gpu
      gpus: 1
      time: "12:00:00"

It is the file that $DOMAINBED_CARFT_LAUNCHER names, else launchers.yaml in the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import options

VARIABLE = "DOMAINBED_CARFT_LAUNCHER"
DEFAULT = "launchers.yaml"


def found_for(launcher: str) -> dict[str, Any]:
    """The options of `launcher` in the file, if there is a file and it has some.

    Raises:
        CarftError: naming the file and all that is wrong in it, for whatever launcher.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return read(Path(named).expanduser()).get(launcher, {})
    return read(Path(DEFAULT)).get(launcher, {}) if Path(DEFAULT).exists() else {}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read and check a file of options; all values are texts, as flags have them."""
    import yaml

    try:
        # The base loader makes every value a text, so that 1:30:00 is not read as a number.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"{path} cannot be read: {error} (named by ${VARIABLE}?)") from error
    except yaml.YAMLError as error:
        raise CarftError(f"{path} is not YAML: {error}") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, Mapping):
        raise CarftError(
            f"{path} should map launchers ({', '.join(options.OPTIONS)}) to their options, but "
            f"is a {type(content).__name__}"
        )
    wrong, found = [], {}
    for launcher, given in content.items():
        # An option without a value is one that is not set.
        given = {} if given == "" else given
        if not isinstance(given, Mapping):
            wrong.append(f"{launcher} should map options to values, but is {given!r}")
            continue
        found[launcher] = {name: value for name, value in given.items() if value != ""}
        wrong += options.problems(launcher, found[launcher])
    if wrong:
        raise CarftError(f"{path}: {'; '.join(wrong)}")
    return found
