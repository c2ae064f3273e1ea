"""Under which setting a training was run: what two runs have to share to be averaged."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.folder import OUTPUT
from domainbed_carft.jobs.job import overrides

# Arguments that runs have to share to be averaged, and names of other parts of a setting.
ARGUMENTS = ("steps", "checkpoint_freq", "holdout_fraction", "uda_holdout_fraction", "task")
EDITION, ENVIRONMENTS, HPARAM, VERSION = "data edition", "environments", "hparam ", "version of "
DEFAULT = "default"
UNKNOWN = "not recorded"
# What --ignore leaves out of account, and how the names of parts begin.
KINDS = {
    **dict(zip(ARGUMENTS, ARGUMENTS)),
    "hparams": HPARAM,
    "protocol": "protocol",
    "data_edition": EDITION,
    "versions": VERSION,
}
_VERSION = r"^\t(PyTorch|Torchvision|CUDA|CUDNN|NumPy|PIL): (.*)$"


def setting(
    args: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Part -> value, as words, of what two runs have to share for their mean to mean something.

    Of a job without a record what its arguments say.
    """
    record = record or {}
    hparams = record.get("hparams") or {}
    overridden = overrides(args)
    given = {name: args[name] for name in ARGUMENTS if name in args}
    parts = {name: DEFAULT if value is None else str(value) for name, value in given.items()}
    for name, value in overridden.items():
        if name not in ("protocol", "data_edition"):
            integral = isinstance(value, float) and value.is_integer()  # 1.0 is the hparam 1
            parts[HPARAM + name] = json.dumps(int(value) if integral else value, sort_keys=True)
    protocol = hparams.get("protocol") or record.get("protocol") or overridden.get("protocol")
    edition = record.get("data_edition") or hparams.get("data_edition")
    for part, word in (("protocol", protocol), (EDITION, edition)):
        if word:
            parts[part] = str(word)
    return parts | {VERSION + name: str(word) for name, word in sorted((versions or {}).items())}


def printed_versions(folder: Path | str) -> dict[str, str]:
    """The versions that ``train`` printed, upstream's too; of a resumed run, all in turn."""
    printed = ""
    path = os.path.join(folder, OUTPUT)
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        printed = file.read(1 << 20)
    found: dict[str, dict[str, None]] = {}
    for name, version in re.findall(_VERSION, printed, re.MULTILINE):
        found.setdefault(name, {})[version] = None
    return {name: ", then ".join(versions) for name, versions in found.items()}
