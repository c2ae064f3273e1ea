"""What is known of the settings under which jobs ran, or will: for `differences`.

Each is the value of a part such as ``steps``, ``hparam lr``, ``version of PyTorch`` or ``data
edition``. Of a job that has not run nothing is known that only a record tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError, Problem
from domainbed_carft.jobs import manifest, records
from domainbed_carft.jobs.facts import NEUTRAL_RETIRED
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.job import Job, overrides
from domainbed_carft.jobs.records import RecordWarning, Run
from domainbed_carft.jobs.setting import DEFAULT, HPARAM, SCHEDULE, setting
from domainbed_carft.sweep import declaration_file, hparam_defaults

RUN = "run"
SWEEP = "sweep"
DECLARATION = "declared sweep"

# Which job of its sweep it is, by the names of train's arguments.
IDENTITY = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed")
# Arguments that a declaration leaves out if they have their defaults.
_LEFT_OUT_BY_DEFAULT = ("steps", "checkpoint_freq")
# Hyperparameters that are parts of their own.
_PARTS_OF_THEIR_OWN = ("protocol", "data_edition", "method_digest", "method_file")


@dataclass(frozen=True)
class KnownSettings:
    """The ``settings`` of one job that are known: part -> value, those of IDENTITY first.

    ``label``: the folder or the description of the job. ``hparams_set``: the names of the
    hyperparameters that ``--hparams`` sets; ``has_all_hparams``: whether ``settings`` has
    the others.
    """

    label: str
    settings: Mapping[str, Any]
    hparams_set: frozenset[str]
    has_all_hparams: bool

    @property
    def row(self) -> tuple[str, str]:
        """Data set and algorithm."""
        return self.settings["dataset"], self.settings["algorithm"]


@dataclass(frozen=True)
class Side:
    """The jobs on one side of a comparison; ``kind``: RUN, SWEEP or DECLARATION."""

    name: str
    kind: str
    jobs: Sequence[KnownSettings]
    warnings: Sequence[RecordWarning]


def read(name: str | Path) -> Side:
    """The jobs of a job's folder, of a sweep's output folder, or of a declared sweep.

    ``name``: a folder, a declaration's file, or the name of an included sweep. Raises CarftError
    if it is none of these, and for a declaration with mistakes.
    """
    path = Path(name)
    if path.is_dir():
        return _read_folder(path)

    is_declaration = path.is_file() or str(name) in declaration_file.included_sweeps()
    if not is_declaration:
        expected = (
            "a job's folder, a sweep's output folder, a file that declares a sweep, or the name "
            f"of an included sweep ({', '.join(declaration_file.included_sweeps())})"
        )
        raise CarftError(Problem("the name to compare", str(name), expected=expected))

    jobs = declaration_file.load(name).jobs(data_dir="", output=Path())
    return Side(str(name), DECLARATION, [_settings_of_planned(job) for job in jobs], warnings=())


def _read_folder(path: Path) -> Side:
    """The jobs in a folder; of a sweep also those that its manifest lists and that did not run."""
    runs, warnings = records.read([path])
    jobs = [_settings_of_run(run) for run in runs]
    if (path / RECORDS).is_file() and len(jobs) == 1:
        return Side(str(path), RUN, jobs, warnings)

    sweep = manifest.read(path)
    folders_with_runs = {Path(run.folder) for run in runs}
    for job in sweep.jobs if sweep else ():
        if job.folder not in folders_with_runs:
            jobs.append(_settings_of_planned(job))

    if not jobs:
        expected = f"a folder with {RECORDS} of a job, or of a sweep's jobs below it"
        raise CarftError(Problem("the folder to compare", str(path), expected=expected))
    return Side(str(path), SWEEP, jobs, warnings)


def _settings_of_run(run: Run) -> KnownSettings:
    from_hparams = (HPARAM, SCHEDULE)  # all of a run's are known
    parts = {
        name: value for name, value in run.setting.items() if not name.startswith(from_hparams)
    }
    hparams = {
        name: value
        for name, value in run.recorded.items()
        if value != "" and NEUTRAL_RETIRED.get(name) != value
    }
    return _settings_of_job(
        label=run.folder, args=run.job.args, parts=parts, hparams=hparams, has_all_hparams=True
    )


def _settings_of_planned(job: Job) -> KnownSettings:
    """The settings of a job that has not run; ours take defaults or draws where nothing is set."""
    hparams = hparam_defaults.expected_hparams(job.args)
    parts: dict[str, Any] = dict.fromkeys(_LEFT_OUT_BY_DEFAULT, DEFAULT)
    parts |= {
        name: value for name, value in setting(job.args).items() if not name.startswith(HPARAM)
    }
    if "protocol" in hparams:
        parts["protocol"] = str(hparams["protocol"])

    return _settings_of_job(
        label=str(job),
        args=job.args,
        parts=parts,
        hparams=hparams,
        has_all_hparams=len(hparams) > len(overrides(job.args)),
    )


def _settings_of_job(
    label: str,
    args: Mapping[str, Any],
    parts: Mapping[str, Any],
    hparams: Mapping[str, Any],
    has_all_hparams: bool,
) -> KnownSettings:
    settings: dict[str, Any] = {name: args[name] for name in IDENTITY}
    settings["test_envs"] = sorted(args["test_envs"])
    settings |= parts
    for name, value in hparams.items():
        if name not in _PARTS_OF_THEIR_OWN:
            settings[HPARAM + name] = value

    return KnownSettings(
        label=label,
        settings=settings,
        hparams_set=frozenset(overrides(args)),
        has_all_hparams=has_all_hparams,
    )
