"""Which weights of a job's folder a command reads, unless --which says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.runs import saved
from domainbed_carft.text import shown


def choose_weights(path: Path, which: str | None) -> Path:
    """The file that a command reads: in a folder ``which``, else the one that the tables are of.

    That is model_best.pkl if the job left environments out and has that file, else model.pkl.
    Raises CarftError for a folder without the file.
    """
    best = path / WEIGHTS["best"]
    if which is None and os.path.isdir(path) and best.exists():
        # Without records the weights themselves say what was left out.
        arguments: Mapping[str, Any] = records.recorded_arguments(path) or saved.open_run(best).args
        which = "best" if arguments["test_envs"] else None
    return saved.weights_file(path, which)


def describe_choice(path: Path, which: str | None, file: Path) -> str:
    """A sentence on the ``file`` that `choose_weights` took; "" if the user named it."""
    if which is not None or path == file:
        return ""

    if file.name == WEIGHTS["best"]:
        reason = "selected by training-domain validation"
        alternative = "last"
    else:
        reason = "of the last step"
        alternative = "best"

    alternative_file = WEIGHTS[alternative]
    hint = ""
    if (path / alternative_file).exists():
        hint = f" (for {alternative_file}: --which {alternative})"
    return shown(f"Weights: {file.name} of {path}, {reason}{hint}")
