"""Which files are a job's own, so that no command writes its results over them."""

from __future__ import annotations

import os
import re

from domainbed_carft.job_folder import (
    DESCRIPTION,
    DONE,
    ERRORS,
    OUTPUT,
    RECORDS,
    WEIGHTS,
    JobFolder,
)

_HERE = JobFolder("")
NAMES = frozenset(
    {
        *(RECORDS, OUTPUT, ERRORS, DESCRIPTION, DONE, *WEIGHTS.values()),
        *(_HERE.state_path.name, _HERE.lock_path.name, _HERE.attempts_path.name),
    }
)


def is_of_a_job(path: str | os.PathLike[str]) -> bool:
    """Whether a path, or what it links to, is a job's file: it has such a name and is beside
    records or weights. It need not be there: a new ``done`` would end a job, too.
    """
    return any(map(_is_of_a_job, {os.path.abspath(path), os.path.realpath(path)}))


def _is_of_a_job(path: str) -> bool:
    folder, name = os.path.split(path)
    own = name in NAMES or re.fullmatch(r"model_step\d+\.pkl", name)
    beside = (RECORDS, *WEIGHTS.values())
    return bool(own) and any(os.path.exists(os.path.join(folder, other)) for other in beside)
