"""What the card of an export says of the run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs import records
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.job import command as train_command
from domainbed_carft.jobs.setting import printed_versions
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.soup_members import DESCRIBING, SAME_ARGS

# The arguments of a run by which it is repeated; not those that only say where files are.
_REPEATED = (
    "algorithm", "dataset", "test_envs", "hparams_seed", "trial_seed", "seed", "holdout_fraction",
    "uda_holdout_fraction", "task", "steps", "checkpoint_freq",
)  # fmt: skip


def text_encoder(run: TrainedRun) -> dict[str, str]:
    """Which text encoder the export has, and which the heads are of: "original" or "fine-tuned".

    Context weights and their scale are always the original's, as in the run's own predictions.
    """
    own = "fine-tuned" if run.args["algorithm"] == "FLYP" else "original"
    return {
        "weights": own,
        "logit_scale": own,
        "class_head": own,
        "context_head": "original",
    }


def facts_of(run: TrainedRun) -> dict[str, Any]:
    """What an export's card says of the run: arguments, settings, accuracies, how it was made."""
    is_soup = run.soup is not None
    kept = ("algorithm", *SAME_ARGS, "task") if is_soup else _REPEATED
    repeated = {key: run.args.get(key) if key in kept else None for key in _REPEATED}
    folder = run.path.parent
    found = [
        one
        for one in records.read_file(folder / RECORDS)[0]
        if all(one["args"].get(key) == value for key, value in repeated.items())
        and run.step in (None, one["step"])
        and run.alpha is None  # no record is of weights that nobody has trained
        and not is_soup
    ]
    record: dict[str, Any] = max(found, key=lambda one: float(one["step"]), default={})
    benchmark = benchmarks.BENCHMARKS.get(str(repeated["dataset"]))
    known = [environment.folder for environment in getattr(benchmark, "environments", ())]
    listed = record.get("environments")
    named = {f"env{i}": str(n) for i, n in enumerate(listed if isinstance(listed, list) else known)}
    shares = {name: value for name, value in record.items() if isinstance(value, float)}
    there = [env for env in map("env{}".format, range(len(record))) if f"{env}_out_acc" in record]
    return {
        "title": run.title,
        "soup": run.soup,
        **repeated,
        "test_environments": [named.get(f"env{i}", f"env{i}") for i in repeated["test_envs"] or ()],
        "file": run.path.name,
        "wise_ft_alpha": run.alpha,
        "step": record.get("step", None if is_soup else run.step),
        "accuracies": {
            named.get(env, env): {kind: shares.get(f"{env}_{kind}_acc") for kind in ("in", "out")}
            for env in there
        },
        **{key: run.hparams[key] for key in ("data_edition", "prompts_digest", "clip_digest")},
        # A soup has no settings of a training.
        "hparams": {
            name: value for name, value in run.hparams.items() if not is_soup or name in DESCRIBING
        },
        "versions": printed_versions(folder) if record else {},
        "command": None if is_soup else _command(run, repeated),
    }


def _command(run: TrainedRun, repeated: Mapping[str, Any]) -> str:
    """The command line that trains the run again, without where its data is and its output goes."""
    return shlex.join(train_command({**repeated, "hparams": run.args.get("hparams")}))
