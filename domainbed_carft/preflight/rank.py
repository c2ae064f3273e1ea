"""One of two ranks: ``python -m domainbed_carft.preflight.rank REQUEST``, with its variables set.

REQUEST is a JSON file with the arguments of a job. The first rank writes the weights after a few
steps beside it, as ``ranks.pt``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from domainbed_carft.jobs.job import Job
from domainbed_carft.preflight import prepared_job, process_rows
from domainbed_carft.sweep import host


def main(path: str) -> None:
    """Join the other rank, train, and write what the first one has."""
    request = Path(path)
    folder = request.parent
    args = json.loads(request.read_text())["args"]
    join_process_group = host.module("lib.process_start").join_process_group

    with join_process_group(process_rows.RANKS, [], str(folder)) as process_group:
        prepared = prepared_job.prepare(Job(args, folder), {}, folder)
        tensors = process_rows.train(prepared, process_group)
        if process_group.is_leader:
            torch.save(tensors, folder / "ranks.pt")


if __name__ == "__main__":
    main(sys.argv[1])
