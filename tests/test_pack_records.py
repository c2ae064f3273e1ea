"""The archive of `tools/pack_records.py` remakes the tables of an evaluated sweep."""

import subprocess
import sys
import tarfile
from pathlib import Path

import evaluated_sweeps
import report_page

import domainbed_carft

TOOL = Path(__file__).parents[1] / "tools" / "pack_records.py"
COLUMNS = ["ece", "ece-scaled", "nll", "brier", "flips", "gained", "lost"]


def cells(sweep):
    """(Algorithm, cells) of each row of the tables."""
    results = domainbed_carft.collect(sweep, columns=["average", *COLUMNS])
    return [(row.algorithm, row.printed_cells) for table in results.tables for row in table.rows]


def test_packed_summaries_remake_the_table_without_weights_and_rows(tmp_path):
    sweep = tmp_path / "sweep"
    report_page.write_ours(sweep, ("CARFT", "CLIPZeroShot"))
    evaluated_sweeps.write_figures(sweep)
    for job in sweep.iterdir():
        for name in ("model.pkl", "model_best.pkl", "evaluation_step200.npz", "out.txt"):
            (job / name).write_bytes(b"not to be packed")
    (sweep / "PACS-CARFT-0-0" / "done").unlink()  # a job that still runs

    archive_path = tmp_path / "records.tar.xz"
    subprocess.run([sys.executable, str(TOOL), str(sweep), str(archive_path)], check=True)
    with tarfile.open(archive_path) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")

    unpacked = tmp_path / "elsewhere" / "sweep"
    assert {path.suffix for path in unpacked.rglob("*") if path.is_file()} == {
        "",
        ".json",
        ".jsonl",
    }
    assert not (unpacked / "PACS-CARFT-0-0").exists()

    (sweep / "PACS-CARFT-0-0").rename(tmp_path / "unfinished")
    expected = cells(sweep)
    assert all(cell.mean is not None for _, shown in expected for cell in shown[1:])
    assert cells(unpacked) == expected
