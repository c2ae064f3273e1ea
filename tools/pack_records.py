"""Pack the records of a sweep, to commit them or continue the sweep elsewhere.

    python tools/pack_records.py OUT benchmarks/records/NAME.tar.xz

The archive contains the records of finished jobs, their metrics by `carft evaluate`, and the
manifest, but no weights, predictions of images, logs, locks or states. The output folder's path is
replaced by its name. Unpack the archive and continue with
`carft sweep launch NAME --output_dir NAME`.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

PACKED = ("done", "results.jsonl", "sweep.json", "evaluation_step*.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="output folder of a sweep")
    parser.add_argument("archive", type=Path)
    arguments = parser.parse_args()
    sweep = arguments.sweep.resolve()
    with tarfile.open(arguments.archive, "w:xz", preset=9) as archive:
        packed_paths = (path for pattern in PACKED for path in sweep.rglob(pattern))
        for path in sorted(packed_paths):
            if path.parent != sweep and not (path.parent / "done").exists():
                continue
            content = path.read_bytes().replace(str(sweep).encode(), sweep.name.encode())
            entry = tarfile.TarInfo(path.relative_to(sweep.parent).as_posix())
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
