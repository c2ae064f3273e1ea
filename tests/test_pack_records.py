"""`tools/pack_records.py` packs everything that the tables of an evaluated sweep need."""

import runpy
import shutil
import sys

from fake_checkout import REPO

from domainbed_carft.results.collect import collect


def write_tables(sweep):
    """Write the tables as CSV, including metrics of `carft evaluate`."""
    columns = ["average", "ece", "nll", "gained", "lost"]
    return collect(sweep, select=["training-domain"], columns=columns).write("csv")


def test_archive_without_weights_and_rows_gives_the_same_tables(peers_emoji, tmp_path, monkeypatch):
    sweep = tmp_path / "SWAD"
    shutil.copytree(peers_emoji / "SWAD", sweep)
    expected = write_tables(sweep)
    running = sweep / "running"
    shutil.copytree(next(sweep.iterdir()), running)
    (running / "done").unlink()
    for name in ("model.pkl", "evaluation_step100.npz", "out.txt"):
        (next(sweep.iterdir()) / name).write_bytes(b"unpacked")

    path = str(REPO / "tools" / "pack_records.py")
    monkeypatch.setattr(sys, "argv", [path, str(sweep), str(tmp_path / "records.tar.xz")])
    runpy.run_path(path, run_name="__main__")

    unpacked = tmp_path / "elsewhere"
    shutil.unpack_archive(tmp_path / "records.tar.xz", unpacked, filter="data")
    suffixes = {path.suffix for path in unpacked.rglob("*") if path.is_file()}
    assert suffixes == {"", ".json", ".jsonl"}
    assert not (unpacked / "SWAD" / "running").exists()
    assert write_tables(unpacked / "SWAD") == expected
