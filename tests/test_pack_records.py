"""The archive of `tools/pack_records.py` remakes the tables of an evaluated sweep."""

import runpy
import shutil
import sys

from fake_checkout import REPO

from domainbed_carft.results.collect import collect


def tables(sweep):
    """The tables as CSV, figures of `carft evaluate` among them."""
    columns = ["average", "ece", "nll", "gained", "lost"]
    return collect(sweep, methods=["training-domain"], columns=columns).write("csv")


def test_packed_summaries_remake_the_table_without_weights_and_rows(
    peers_emoji, tmp_path, monkeypatch
):
    sweep = tmp_path / "SWAD"
    shutil.copytree(peers_emoji / "SWAD", sweep)
    expected = tables(sweep)
    running = sweep / "running"
    shutil.copytree(next(sweep.iterdir()), running)
    (running / "done").unlink()
    for name in ("model.pkl", "evaluation_step100.npz", "out.txt"):
        (next(sweep.iterdir()) / name).write_bytes(b"not to be packed")

    path = str(REPO / "tools" / "pack_records.py")
    monkeypatch.setattr(sys, "argv", [path, str(sweep), str(tmp_path / "records.tar.xz")])
    runpy.run_path(path, run_name="__main__")

    unpacked = tmp_path / "elsewhere"
    shutil.unpack_archive(tmp_path / "records.tar.xz", unpacked, filter="data")
    suffixes = {path.suffix for path in unpacked.rglob("*") if path.is_file()}
    assert suffixes == {"", ".json", ".jsonl"}
    assert not (unpacked / "SWAD" / "running").exists()
    assert tables(unpacked / "SWAD") == expected
