"""Rename keys in the packed records.

    python tools/rewrite_records.py benchmarks/records/*.tar.xz

Set RENAMED to the old and new names first. Values are not changed: `tests/test_collect_values.py`
compares the tables of all packed records with earlier ones.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.suites.records import FILE as SUITE_RECORDS

RENAMED = {"holds_out_together": "holds_out_together"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archives", type=Path, nargs="+", help="NAME.tar.xz of pack_records.py")
    for path in parser.parse_args().archives:
        rewrite(path)


def rewrite(path: Path) -> None:
    """Rename the keys in an archive."""
    with tarfile.open(path) as archive:
        contents = [(entry, archive.extractfile(entry)) for entry in archive.getmembers()]
        files = [(entry.name, file.read()) for entry, file in contents if file]

    with tarfile.open(path, "w:xz", preset=9) as archive:
        for name, content in files:
            if name.endswith((f"/{RECORDS}", f"/{SUITE_RECORDS}")):
                records = [rename_keys(json.loads(line)) for line in content.splitlines()]
                lines = [json.dumps(record, sort_keys=True) for record in records]
                content = "".join(f"{line}\n" for line in lines).encode()
            elif name.endswith(".json"):
                content = json.dumps(rename_keys(json.loads(content)), indent=1).encode() + b"\n"
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def rename_keys(value: Any) -> Any:
    """Return a JSON value with the new names of its keys."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): rename_keys(content) for key, content in value.items()}
    if isinstance(value, list):
        return [rename_keys(item) for item in value]
    return value


if __name__ == "__main__":
    main()
