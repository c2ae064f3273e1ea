"""The process variables that this package and its harness read: one table for code and docs.

Other modules read a variable through its entry here. Only `plugin`, which runs at every start of
Python and must import little, reads its switch itself. The table is printed in
docs/reference/commands.md.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Variable(NamedTuple):
    """A process variable, described for users in Markdown."""

    name: str
    meaning: str  # purpose and valid values
    default: str  # behaviour if it is not set
    writer: str  # who sets it

    def read(self, default: str = "") -> str:
        """Return the value in this process, or ``default`` if it is not set."""
        return os.environ.get(self.name, default)


CORES = Variable(
    name="DOMAINBED_CORES",
    meaning="the number of cores that a job can use, shared by its loading and computing processes",
    default="all that CPU affinity and cgroups allow",
    writer="the launchers `local`, `pool` and `slurm`, for each job; you",
)
PROCESSES = Variable(
    name="DOMAINBED_PROCESSES",
    meaning="the number of processes that train one job together, like `train --processes`",
    default="`1`",
    writer="the launchers, by their option `gpus`; you",
)
IMAGE_MEMORY = Variable(
    name="DOMAINBED_IMAGE_MEMORY",
    meaning="how much memory a job can use to keep its evaluation images, such as `8G`; `0` to "
    "keep none; like `train --image_memory`",
    default="a quarter of the memory available to the job",
    writer="the launcher `pool`, for each of several jobs at a time; you",
)
KEEP_WEIGHTS = Variable(
    name="DOMAINBED_KEEP_WEIGHTS",
    meaning="the weights that a job keeps: `both`, `last`, `best` or `none`, like `train "
    "--keep_weights`",
    default="`both`",
    writer="`carft sweep launch --keep-weights`; you",
)
SKIP_TRAINING_IN_SPLITS = Variable(
    name="DOMAINBED_SKIP_TRAINING_IN_SPLITS",
    meaning="`1` to skip the accuracies on the training environments' in-splits, like `train "
    "--skip_training_in_splits`; `0` to record them",
    default="`train` records them; `carft sweep launch` keeps the setting that a sweep was started "
    "with, and skips them in a new sweep",
    writer="`carft sweep launch`, for each job; you",
)
LOG = Variable(
    name="DOMAINBED_LOG",
    meaning="further logs of the records' scalars: `tensorboard`, `wandb`, or both, separated by a "
    "space; like `train --log`",
    default="no further log",
    writer="`carft sweep launch --log`, the harness's `sweep --log`; you",
)
COLD_START = Variable(
    name="DOMAINBED_COLD_START",
    meaning="any value except `0` to start each job in a new interpreter instead of forking it",
    default="jobs are forked if possible",
    writer="you, for instance to attach a debugger",
)
LOCK_DESCRIPTOR = Variable(
    name="DOMAINBED_LOCK_FD",
    meaning="the file descriptor of the lock on its folder, which a job inherits",
    default="`train` locks its folder itself",
    writer="the launchers `local`, `pool` and `slurm` (`launchers/attempt.py`), for each job",
)
PARENT = Variable(
    name="DOMAINBED_PARENT",
    meaning="the process id of a job's first process; the other processes exit when it does",
    default="processes do not watch each other (torchrun ends them)",
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
    meaning="the Python files of your own methods, separated by `:`",
    default="this package's methods, and methods of the entry points `domainbed_carft.methods`",
    writer="you; the launchers `local`, `pool` and `slurm`, with absolute paths, for each job",
)
DISABLE = Variable(
    name="DOMAINBED_CARFT_DISABLE",
    meaning="any value except `0`, `no`, `off` or `false` to disable the plugin",
    default="the plugin extends any `domainbed` that is imported",
    writer="you",
)

FOR_USERS = (
    *(DISABLE, METHODS, CACHE, LAUNCHER_OPTIONS, COLD_START, CORES, PROCESSES),
    *(IMAGE_MEMORY, KEEP_WEIGHTS, SKIP_TRAINING_IN_SPLITS, LOG),
)
# With the variables that only launchers and jobs exchange.
ALL = (*FOR_USERS, LOCK_DESCRIPTOR, PARENT)


def as_markdown() -> str:
    """Return the table of the variables that users set, for docs/reference/commands.md."""
    rows = ["| Variable | Meaning | If it is not set | Who sets it |", "|---|---|---|---|"]
    for name, *descriptions in FOR_USERS:
        rows.append(f"| {' | '.join([f'`{name}`', *descriptions])} |")
    return "\n".join(rows)
