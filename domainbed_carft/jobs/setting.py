"""The setting of a run: everything that has to be equal for runs to be averaged."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.jobs.facts import get_hparams_and_facts, is_fact
from domainbed_carft.jobs.job import parse_overrides
from domainbed_carft.jobs.job_folder import OUTPUT

# Arguments that are parts of a setting, then names of other parts.
ARGUMENTS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task")
EDITION = "data edition"
ENVIRONMENTS = "environments"
SCHEDULE = "steps of the schedule"
FOLLOWS_JOB = "the job's"  # of a schedule that ends at the last step
HPARAM = "hparam "
FACT = "fact "
VERSION = "version of "
METHOD = "file of "  # of a user's own method
DEFAULT = "default"
NOT_RECORDED = "not recorded"
# Values of --ignore, to the beginning of the names of the parts that each ignores.
KINDS = {
    **dict(zip(ARGUMENTS, ARGUMENTS)),
    "hparams": HPARAM,
    "protocol": "protocol",
    "data_edition": EDITION,
    "method": METHOD,
    "versions": VERSION,
}
DIGITS = 12  # printed digits of a SHA-256
_PRINTED_BYTES = 1 << 20  # the beginning of an output, which contains the versions
_PRINTED_VERSION = r"^\t(PyTorch|Torchvision|CUDA|CUDNN|NumPy|PIL): (.*)$"


def get_recorded_setting(
    args: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the parts of a run's setting by name, as text.

    Args:
        args: the arguments of the job.
        record: a record of the run. Without it only parts known from the arguments are returned.
        versions: version by package, from `read_printed_versions`.
    """
    record = record or {}
    hparams = get_hparams_and_facts(record, record.get("hparams"))
    overridden = parse_overrides(args)

    parts = {}
    for name in ARGUMENTS:
        if name in args:
            parts[name] = DEFAULT if args[name] is None else str(args[name])

    for name, value in overridden.items():
        if name not in ("protocol", "data_edition"):
            parts[HPARAM + name] = format_hparam(value)

    protocol = hparams.get("protocol") or overridden.get("protocol")
    if protocol:
        parts["protocol"] = str(protocol)
    edition = hparams.get("data_edition")
    if edition:
        parts[EDITION] = str(edition)

    if "total_steps" in hparams:
        total_steps = hparams["total_steps"]
        follows_default = args.get("steps") is None and "total_steps" not in overridden
        follows = follows_default or total_steps == args.get("steps")
        parts[SCHEDULE] = FOLLOWS_JOB if follows else str(total_steps)

    digest = hparams.get("method_digest")
    if digest:
        parts[f"{METHOD}{args.get('algorithm')}"] = str(digest)[:DIGITS]

    for name, version in sorted((versions or {}).items()):
        parts[VERSION + name] = str(version)
    return parts


def label_recorded(name: str) -> str:
    """Return the name of a recorded value with its kind: ``hparam lr``, ``fact clip_digest``."""
    return f"{FACT if is_fact(name) else HPARAM}{name}"


def format_hparam(value: Any) -> str:
    """Return the value of an hparam as JSON, with 1.0 like the equal hparam 1."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def read_printed_versions(folder: Path | str) -> dict[str, str]:
    """Read the versions that ``train`` printed; a resumed run can have several of a package."""
    printed = ""
    path = os.path.join(folder, OUTPUT)
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        printed = file.read(_PRINTED_BYTES).decode(errors="replace")

    versions_by_name: dict[str, dict[str, None]] = {}
    for name, version in re.findall(_PRINTED_VERSION, printed, re.MULTILINE):
        versions_by_name.setdefault(name, {})[version] = None
    return {name: ", then ".join(versions) for name, versions in versions_by_name.items()}
