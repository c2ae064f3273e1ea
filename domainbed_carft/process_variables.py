"""The process variables that this package and its harness read: one table for code and docs.

All are named here and nowhere else but in two modules: `plugin`, which every interpreter start
loads, and the harness's `lib/process_start.py`. docs/reference/commands.md has the table.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Variable(NamedTuple):
    """A process variable, described for users in Markdown."""

    name: str
    meaning: str  # what it is for, and which values it takes
    default: str  # what holds where it is not set
    writer: str  # who sets it

    def read(self, default: str = "") -> str:
        """The value that this process has, ``default`` where it is not set."""
        return os.environ.get(self.name, default)


CORES = Variable(
    name="DOMAINBED_CORES",
    meaning="the cores that a job may use, shared between the processes that load and compute",
    default="all that CPU affinity and cgroups allow",
    writer="the launchers `local`, `pool` and `slurm`, for each job; you",
)
PROCESSES = Variable(
    name="DOMAINBED_PROCESSES",
    meaning="the processes that train one job together, as `train --processes`",
    default="`1`",
    writer="the launchers, by their option `gpus`; you",
)
IMAGE_MEMORY = Variable(
    name="DOMAINBED_IMAGE_MEMORY",
    meaning="how much memory a job's evaluation images may stay in, such as `8G`; `0` for none, "
    "as `train --image_memory`",
    default="a quarter of the memory that the job may use",
    writer="the launcher `pool`, for each of several jobs at a time; you",
)
KEEP_WEIGHTS = Variable(
    name="DOMAINBED_KEEP_WEIGHTS",
    meaning="the weights that a job keeps, `both`, `last`, `best` or `none`, as `train "
    "--keep_weights`",
    default="`both`",
    writer="`carft sweep launch --keep_weights`; you",
)
SKIP_TRAINING_IN_SPLITS = Variable(
    name="DOMAINBED_SKIP_TRAINING_IN_SPLITS",
    meaning="`1` to leave out the accuracies on the training environments' in-splits, as `train "
    "--skip_training_in_splits`; `0` to record them",
    default="`train` records them; `carft sweep launch` goes on as the sweep was begun, and leaves "
    "them out of a new one",
    writer="`carft sweep launch`, for each job; you",
)
LOG = Variable(
    name="DOMAINBED_LOG",
    meaning="where else the records' scalars go, `tensorboard`, `wandb` or both with a space "
    "between them, as `train --log`",
    default="nowhere else",
    writer="`carft sweep launch --log`, the harness's `sweep --log`; you",
)
COLD_START = Variable(
    name="DOMAINBED_COLD_START",
    meaning="any value but `0` to start each job in a new interpreter instead of forking it",
    default="jobs are forks where that is possible",
    writer="you, for instance to attach a debugger",
)
LOCK_DESCRIPTOR = Variable(
    name="DOMAINBED_LOCK_FD",
    meaning="the file descriptor by which a job inherits the lock of its folder",
    default="`train` locks its folder itself",
    writer="the launchers `local`, `pool` and `slurm` (`launchers/attempt.py`), for each job",
)
PARENT = Variable(
    name="DOMAINBED_PARENT",
    meaning="the process id of the first process of a job, with which the others end",
    default="nobody is followed, as under torchrun",
    writer="the harness's `lib/process_start.py`, for the processes that it starts",
)
LAUNCHER_OPTIONS = Variable(
    name="DOMAINBED_CARFT_LAUNCHER",
    meaning="the YAML file with the options of the launchers, for `domainbed.scripts.sweep`",
    default="`launchers.yaml` in the current folder, if there is one",
    writer="you",
)
CACHE = Variable(
    name="DOMAINBED_CARFT_CACHE",
    meaning="the folder for text features, zero-shot predictions and the unpacked benchmark",
    default="`domainbed_carft` in `$XDG_CACHE_HOME` or `~/.cache`",
    writer="you",
)
METHODS = Variable(
    name="DOMAINBED_CARFT_METHODS",
    meaning="the Python files of your own methods, `:` between them",
    default="this package's methods, and those of the entry points `domainbed_carft.methods`",
    writer="you; the launchers `local`, `pool` and `slurm`, with absolute paths, for each job",
)
DISABLE = Variable(
    name="DOMAINBED_CARFT_DISABLE",
    meaning="any value but `0`, `no`, `off` or `false` to leave every `domainbed` as it is",
    default="the plugin extends the `domainbed` that is imported",
    writer="you",
)

FOR_USERS = (
    *(DISABLE, METHODS, CACHE, LAUNCHER_OPTIONS, COLD_START, CORES, PROCESSES),
    *(IMAGE_MEMORY, KEEP_WEIGHTS, SKIP_TRAINING_IN_SPLITS, LOG),
)
# With what only launchers and jobs tell each other.
ALL = (*FOR_USERS, LOCK_DESCRIPTOR, PARENT)


def as_markdown() -> str:
    """The table of the variables that users set, for docs/reference/commands.md."""
    rows = ["| Variable | Meaning | If it is not set | Who sets it |", "|---|---|---|---|"]
    for name, *descriptions in FOR_USERS:
        rows.append(f"| {' | '.join([f'`{name}`', *descriptions])} |")
    return "\n".join(rows)
