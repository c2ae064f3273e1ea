"""Rewrite the packed records after a change of their keys.

    python tools/rewrite_records.py benchmarks/records/*.tar.xz

The tables below describe the change. Of the hyperparameters in each record, REMOVED go, facts of
the job become keys of the record, and missing ones get the value that was in effect: IN_EFFECT,
otherwise the default. Everything else stays as it is. `tests/test_collect_values.py` compares the
tables of all packed records with those before.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.facts import NAMES
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.jobs.manifest import NAME as MANIFEST
from domainbed_carft.method import algorithms

REMOVED = (
    "kl_over",
    "context_clusters",
    "kl_schedule",
    "sp_form",
    "lipsum_texts",
    "lipsum_length",
    "original_precision",
)
# Hyperparameters whose default is not what jobs without them trained with.
IN_EFFECT = {"lora_scaling": "alpha/r"}
# Facts that are hyperparameters of the same name, too.
CHOSEN = ("amp", "protocol")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archives", type=Path, nargs="+", help="NAME.tar.xz of pack_records.py")
    for path in parser.parse_args().archives:
        rewrite(path)


def rewrite(path: Path) -> None:
    """Replace an archive by one whose records have the keys of this version."""
    with tarfile.open(path) as archive:
        contents = [(entry, archive.extractfile(entry)) for entry in archive.getmembers()]
        files = [(entry.name, file.read()) for entry, file in contents if file]

    with tarfile.open(path, "w:xz", preset=9) as archive:
        for name, content in files:
            if name.endswith(f"/{RECORDS}"):
                records = map(json.loads, content.splitlines())
                lines = [json.dumps(rewritten(record), sort_keys=True) for record in records]
                content = "".join(f"{line}\n" for line in lines).encode()
            elif name.endswith(f"/{MANIFEST}"):
                content = json.dumps(with_all_keys(json.loads(content)), indent=2).encode() + b"\n"
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def rewritten(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the keys of this version."""
    hparams = {name: value for name, value in record["hparams"].items() if name not in REMOVED}
    facts = {
        name: hparams[name] if name in CHOSEN else hparams.pop(name)
        for name in NAMES
        if name in hparams
    }
    args = record["args"]
    defaults = algorithms.hparam_values(args["algorithm"], args["dataset"])
    return {**facts, **record, "hparams": {**defaults, **IN_EFFECT, **hparams}}


def with_all_keys(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the keys of this version."""
    arguments = [job["args"] for job in manifest["jobs"]]
    added = {
        "algorithms": list(dict.fromkeys(args["algorithm"] for args in arguments)),
        "skip_training_in_splits": False,
        "search": None,
    }
    datasets = {name: {"held_out": False} | facts for name, facts in manifest["datasets"].items()}
    return {**added, **manifest, "datasets": datasets}


if __name__ == "__main__":
    main()
