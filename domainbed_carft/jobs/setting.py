"""Under which setting a training was run: what two runs have to share to be averaged."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft import files
from domainbed_carft.jobs.facts import get_hparams_and_facts
from domainbed_carft.jobs.folder import OUTPUT
from domainbed_carft.jobs.job import parse_overrides

# Arguments that runs have to share to be averaged, and names of other parts of a setting.
ARGUMENTS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task")
EDITION = "data edition"
ENVIRONMENTS = "environments"
SCHEDULE = "steps of the schedule"  # where it ends, if not at the job's last step
HPARAM = "hparam "
VERSION = "version of "
METHOD = "file of "  # of a user's own method
DEFAULT = "default"
UNKNOWN = "not recorded"
# What --ignore leaves out of account -> how the names of such parts begin.
KINDS = {
    **dict(zip(ARGUMENTS, ARGUMENTS)),
    "hparams": HPARAM,
    "protocol": "protocol",
    "data_edition": EDITION,
    "method": METHOD,
    "versions": VERSION,
}
DIGITS = 12  # of a SHA-256 in words
_PRINTED_BYTES = 1 << 20  # of the beginning of an output, where the versions are
_PRINTED_VERSION = r"^\t(PyTorch|Torchvision|CUDA|CUDNN|NumPy|PIL): (.*)$"


def setting(
    args: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Part -> value, as words, of what two runs have to share for their mean to mean something.

    Without a record there are only the parts that the arguments tell.
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
            integral = isinstance(value, float) and value.is_integer()  # 1.0 is the hparam 1
            parts[HPARAM + name] = json.dumps(int(value) if integral else value, sort_keys=True)

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
        parts[SCHEDULE] = "the job's" if follows else str(total_steps)

    digest = hparams.get("method_digest")
    if digest:
        parts[f"{METHOD}{args.get('algorithm')}"] = str(digest)[:DIGITS]

    for name, version in sorted((versions or {}).items()):
        parts[VERSION + name] = str(version)
    return parts


def read_printed_versions(folder: Path | str) -> dict[str, str]:
    """The versions that ``train`` printed, upstream's too; of a resumed run, all in turn."""
    printed = ""
    path = os.path.join(folder, OUTPUT)
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        printed = file.read(_PRINTED_BYTES).decode(errors="replace")

    versions_of: dict[str, dict[str, None]] = {}
    for name, version in re.findall(_PRINTED_VERSION, printed, re.MULTILINE):
        versions_of.setdefault(name, {})[version] = None
    return {name: ", then ".join(versions) for name, versions in versions_of.items()}
