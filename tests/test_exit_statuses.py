"""The exit statuses of commands, listed in docs/reference/files-and-records.md."""

import collect_sweeps
import numpy as np
import pytest
from PIL import Image
from sweep_folders import add_attempts, write_launched_sweep

from domainbed_carft import cli


@pytest.fixture
def places(tmp_path, monkeypatch, pets):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").symlink_to(pets / "CARFT")
    for data in ("data", "broken"):
        for name in ("art/cat", "art/dog", "photo/cat", "photo/dog"):
            path = tmp_path / data / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    (tmp_path / "broken" / "art" / "cat" / "1.png").write_bytes(b"")

    collect_sweeps.write_sweep(tmp_path / "OUT", ["CARFT"], choices=1)
    (tmp_path / "OUT" / "CARFT-3-1-0" / "results.jsonl").unlink()
    write_launched_sweep(tmp_path / "WAITING")
    add_attempts(write_launched_sweep(tmp_path / "FAILED")[0], 1, 1, 1)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("data verify ./data", 0),
        ("data verify ./broken", 1),
        ("data verify NoSuchSet --data_dir .", 2),
        ("collect OUT", 0),
        ("collect OUT --strict", 3),
        ("collect data", 1),
        ("diff OUT/CARFT-0-0-0 OUT/CARFT-0-0-0", 0),
        ("diff OUT/CARFT-0-0-0 OUT/CARFT-1-0-0", 1),
        ("diff nothing nothing-else", 2),
        ("diff OUT/CARFT-0-0-0 data", 2),
        ("diff OUT/CARFT-0-0-0 data/art/cat/1.png", 2),
        ("sweep status WAITING", 0),
        ("sweep status FAILED", 1),
        ("predict RUN data/art --workers 0", 0),
        ("predict RUN broken/art --workers 0", 3),
        ("predict RUN broken/art/cat/1.png --workers 0", 1),
    ],
)
def test_commands_return_documented_exit_status(places, words, status):
    assert cli.main(words.split()) == status
