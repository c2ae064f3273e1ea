"""The two stages of a search: their jobs, and the command line by which the second one follows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.job import Job
from domainbed_carft.jobs.search import ChosenValues, Search
from domainbed_carft.sweep import choosing
from domainbed_carft.sweep.declaration import Declaration
from domainbed_carft.sweep.job_settings import JobSettings

# The flag of `carft sweep launch` that launches the second stage alone.
SECOND_STAGE_FLAG = "--second_stage"


@dataclass(frozen=True)
class StagedJobs:
    """The jobs of a sweep by stage, each in its folder; a sweep without stages has first ones only.

    ``chosen``: None until the first stage is done. Until then the jobs ``second`` stand for those
    that will follow: they train values that are not chosen yet.
    """

    first: Sequence[Job]
    second: Sequence[Job] = ()
    chosen: Sequence[ChosenValues] | None = None

    @property
    def launchable(self) -> list[Job]:
        """The jobs that may be launched now."""
        return [*self.first, *(self.second if self.chosen is not None else ())]

    @property
    def waiting(self) -> Sequence[Job]:
        """The jobs that stand for a second stage whose values are not chosen yet."""
        return self.second if self.chosen is None else ()


def staged_jobs(declaration: Declaration, data_dir: str, output: Path) -> StagedJobs:
    """All jobs of a sweep; chooses among the members of a search whose first stage is done.

    Raises CarftError if that is impossible, as where all members have diverged.
    """
    first = manifest.reuse_folders(declaration.jobs(data_dir, output), output)
    if not declaration.has_stages:
        return StagedJobs(first)

    if not all(JobFolder(job.folder).done for job in first):
        return StagedJobs(first, declaration.repeated_jobs(data_dir, output, chosen=()))

    by_target = declaration.search is not None and declaration.search.choose_by == "target"
    chosen = choosing.choose(first, str(declaration.choosing_method), by_target)
    second = declaration.repeated_jobs(data_dir, output, chosen)
    return StagedJobs(first, manifest.reuse_folders(second, output), chosen)


def search_entry(
    declaration: Declaration, jobs: StagedJobs, command: Sequence[str] = ()
) -> Search | None:
    """A search with stages for the manifest; ``command``: the words that launch what is missing."""
    search = declaration.search
    if search is None or not declaration.has_stages:
        return None
    return Search(
        method=str(declaration.choosing_method),
        choose_by=search.choose_by,
        choose_on=tuple(declaration.choosing_trials),
        repeat_on=tuple(declaration.trial_seeds),
        repeats=len(jobs.second),
        chosen=tuple(jobs.chosen or ()),
        command=tuple(command),
    )


def launch_command(
    output: Path,
    data_dir: str,
    launcher: str,
    *,
    options: Mapping[str, Any],
    settings: JobSettings,
    skips_training_in_splits: bool | None,
) -> list[str]:
    """The words after ``carft`` that launch what an output folder's sweep still lacks."""
    folder = os.path.abspath(output)
    declaration = os.path.join(folder, manifest.DECLARATION_FILE)
    words = ["sweep", "launch", declaration, "--output_dir", folder]
    words += ["--data_dir", data_dir, "--launcher", launcher, "--yes"]
    for name, value in options.items():
        words += _option_words(name, value)

    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value and field.name != "log":
            words += [f"--{field.name}", str(value)]
    if settings.log:
        words += ["--log", *settings.log]
    if skips_training_in_splits is False:
        words.append("--training_in_splits")
    return words


def _option_words(name: str, value: Any) -> list[str]:
    """A launcher's option as flags; one that may be repeated as several."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = [key if item is True else f"{key}={item}" for key, item in value.items()]
    values = value if isinstance(value, (list, tuple)) else [value]

    words = []
    for item in values:
        words += [f"--{name}", str(item)]
    return words
