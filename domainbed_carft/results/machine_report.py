"""What to attach to a report of a run on a GPU, for `carft collect` and `carft preflight`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.records import Run

# The name of the issue form, in .github/ISSUE_TEMPLATE/ran-on-a-gpu.yml.
ISSUE_FORM = "I ran it on a GPU"


@dataclass(frozen=True)
class Attachment:
    """A file to attach to a report of a run.

    ``file``: its path; ``command``: what writes it, for a shell, "" if it is there already;
    ``content``: what it tells.
    """

    file: str
    command: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The fields by name, for JSON."""
        return asdict(self)


def attachments(folders: Sequence[Path | str]) -> list[Attachment]:
    """The files that a report of the sweeps in these output folders needs, in the form's order."""
    rehearsals = [_rehearsal(Path(folder)) for folder in folders]
    sweeps = " ".join(shlex.quote(str(folder)) for folder in folders)
    return [
        *rehearsals,
        Attachment(
            file="results.json",
            command=f"carft collect {sweeps} --full --compare published --format json "
            "-o results.json",
            content="accuracies, verdicts, hours and memory, with the names of the devices",
        ),
        Attachment(
            file="settings.json",
            command=f"carft top {sweeps} --json > settings.json",
            content="the hyperparameters and the job of each cell",
        ),
    ]


def _rehearsal(folder: Path) -> Attachment:
    """The report of ``carft preflight`` in an output folder, or how to make it."""
    path = folder / manifest.REHEARSAL_FILE
    output = shlex.quote(str(folder))
    command = f"carft preflight SWEEP --data_dir DATA --output_dir {output}"
    return Attachment(
        file=str(path),
        command="" if path.exists() else command,
        content="versions, driver, cards, zero-shot accuracies, speed and memory of a step",
    )


def gpus_of(runs: Iterable[Run]) -> list[str]:
    """The names of the GPUs that the runs were trained on, each once; those of processors are not.

    Records tell them apart by the GPU memory in use (``mem_gb``), which is 0 on a processor.
    """
    return list(dict.fromkeys(run.cost.device for run in runs if run.cost.memory_gb))


def describe(runs: Iterable[Run], folders: Sequence[Path | str]) -> list[str]:
    """Lines on how to report these runs, and with which files; none if no run was on a GPU."""
    gpus = gpus_of(runs)
    if not gpus:
        return []

    needed = attachments(folders)
    commands = [f"  {attachment.command}" for attachment in needed if attachment.command]
    return [
        f'These jobs ran on {", ".join(gpus)}. Please report it: open an issue "{ISSUE_FORM}" and '
        f"attach {', '.join(attachment.file for attachment in needed)}. What is missing comes from",
        *commands,
    ]
