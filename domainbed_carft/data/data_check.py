"""What every job's data is asked before anything is loaded, and how it is told.

On our harness broken data is refused, whatever the algorithm; in a foreign checkout it is not ours
to forbid, and there is a warning. Our own algorithms refuse it everywhere (``arguments``).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method.hparams import ALGORITHMS, UNCHECKED
from domainbed_carft.plugin import SWITCH, finder

if TYPE_CHECKING:
    from domainbed_carft.data.verify import Report

# How a command line asks our algorithms to train on what is refused.
BY_FLAG = f"""--hparams '{{"data_edition": "{UNCHECKED}"}}'"""

# What was found last, and where, for a job asks more than once and a large set takes seconds.
_last: dict[tuple[str, Path], Report] = {}

# Of which data a warning has been given: forks build a data set more than once.
_warned: set[Path] = set()


def report(name: str, folder: str | Path) -> Report:
    """What ``carft data verify`` says of the data set ``name`` in ``folder``, without decoding.

    Raises CarftError where the folder cannot be read.
    """
    _last.clear()
    found = _last[name, Path(folder).resolve()] = _examined(name, folder)
    return found


def taken(name: str, folder: str | Path) -> Report:
    """The same, as it was found last, if nobody has taken that yet; else looked at anew."""
    return _last.pop((name, Path(folder).resolve()), None) or _examined(name, folder)


def _examined(name: str, folder: str | Path) -> Report:
    from domainbed_carft.data import verify

    return verify.examine(name, Path(folder))


def refusals(
    folders: Mapping[str, str], algorithms: Sequence[str], hparams: Mapping[str, Any]
) -> list[str]:
    """Why no job of these should be trained on that data; what our harness asks.

    ``folders`` are those of the environments, by the data sets' names.
    """
    if hparams.get("data_edition") == UNCHECKED:
        return []
    unread, broken, trainable = [], [], True
    for name, folder in folders.items():
        try:
            found = report(name, folder)
        except CarftError as error:
            unread.append(f"{error}.")
            continue
        if found.problems:
            broken.append(refusal(name, folder, found.problems))
            trainable = trainable and found.trainable
    ours = {name in ALGORITHMS for name in algorithms}
    return unread + (with_remedy(broken, ours) if trainable else broken)


def refusal(name: str, folder: str | Path, problems: Sequence[str]) -> str:
    """That data is broken, and by which problems."""
    return (
        f"The data of {name} in {folder} is broken: {'; '.join(problems)}. "
        f"{_verify(name, folder)} says more."
    )


def with_remedy(
    told: Sequence[str], are_ours: Collection[bool], setting: str = BY_FLAG
) -> list[str]:
    """The refusals ``told``, of which the last one says how to train nevertheless.

    ``are_ours`` says of the algorithms whether they are ours, ``setting`` how these are told.
    """
    if not told:
        return []
    variables = (
        f"{_without_us()} in the environment, which leaves domainbed-carft out, and with it this "
        "check"
    )
    if False not in are_ours:
        way = setting
    elif True not in are_ours:
        way = variables
    else:
        way = (
            f"launched apart, the algorithms of domainbed-carft with {setting}, and the others "
            f"with {variables}"
        )
    return [*told[:-1], f"{told[-1]} To train on it as it is: {way}."]


def _without_us() -> str:
    """The variables with which our harness runs without the plugin that serves it."""
    for folder in finder.harness_folders():
        if os.path.isdir(folder):
            return f"{SWITCH}=1 PYTHONPATH={shlex.quote(os.path.dirname(folder))}"
    return f"{SWITCH}=1"


def warn(name: str, folder: str | Path, problems: Sequence[str]) -> None:
    """Tell on the error stream, once a job, that broken data is trained on."""
    if Path(folder) in _warned:
        return
    _warned.add(Path(folder))
    listed = "".join(f"\n- {problem}" for problem in problems)
    print(
        f"domainbed-carft: Warning: the data of {name} in {folder} is broken. A job of DomainBed's "
        f"own algorithms goes on, but its results may mean nothing:{listed}\n"
        f"Mend the data and run it again; {_verify(name, folder)} says more. {SWITCH}=1 in the "
        "environment switches this check off.",
        file=sys.stderr,
    )


def _verify(name: str, folder: str | Path) -> str:
    """The command that looks at this data."""
    known, place = benchmarks.BENCHMARKS.get(name), Path(folder)
    if known is None or known.folder != place.name:
        # As it was written: without its "./" a path is taken for a name.
        return f"`carft data verify {shlex.quote(str(folder))}`"
    return f"`carft data verify {name} --data_dir {shlex.quote(str(place.parent))}`"
