"""The exit statuses in docs/reference: each row is driven here, or names its test."""

import re
import sys

import collect_sweeps
import numpy as np
import pytest
import torch_interpreter
from fake_checkout import REPO
from PIL import Image
from sweep_folders import ended, launched

from domainbed_carft import cli

PAGE = (REPO / "docs" / "reference" / "files-and-records.md").read_text(encoding="utf-8")
ROWS = [
    (command, int(status))
    for command, status in re.findall(
        r"^\| (`.+?) \| (\d) \| .+ \|$", PAGE.split("### python")[0], re.MULTILINE
    )
]
# Rows that need a training, a network or many minutes -> where they are tested.
TESTED_ELSEWHERE = {
    ("`check`", 0): "test_check.py",
    ("`check`", 1): "test_check.py",
    ("`check`", 2): "test_check.py",
    ("`doctor`", 1): "test_doctor.py",
    ("`evaluate`, `wise-ft`, `soup` with `--suite`", 3): "test_suites_runs.py",
    ("`evaluate` of a sweep", 3): "test_sweep_evaluation.py",
    ("`evaluate` of a sweep", 1): "test_sweep_evaluation.py",
    ("`preflight`", 0): "test_preflight.py",
    ("`preflight`", 1): "test_preflight.py",
    ("`sweep launch`", 0): "test_sweep_commands.py",
    ("`sweep launch`", 1): "test_sweep_commands.py",
    ("`sweep cancel`", 1): "test_sweep_upkeep.py",
}


def write_images(folder):
    """Own data of two environments with two classes."""
    for environment in ("art", "photo"):
        for name in ("cat", "dog"):
            path = folder / environment / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def usable_data(folder):
    write_images(folder / "data")
    return ["data", "verify", "./data"]


def broken_data(folder):
    command = usable_data(folder)
    (folder / "data" / "art" / "cat" / "1.png").write_bytes(b"")
    return command


def no_data(folder):
    return ["data", "verify", "NoSuchSet", "--data_dir", "."]


def incomplete_sweep(folder):
    collect_sweeps.write_sweep(folder / "OUT", ["CARFT"], choices=1)
    next((folder / "OUT").iterdir()).joinpath("results.jsonl").unlink()
    return ["collect", "OUT", "--strict"]


def two_jobs(folder):
    collect_sweeps.write_sweep(folder / "OUT", ["CARFT"], choices=1)
    return [f"OUT/{path.name}" for path in sorted((folder / "OUT").iterdir())[:2]]


def equal_runs(folder):
    job, _ = two_jobs(folder)
    return ["diff", job, job]


def different_runs(folder):
    return ["diff", *two_jobs(folder)]


def no_runs(folder):
    return ["diff", "nothing", "nothing-else"]


def installation(folder):
    return ["doctor"]


def waiting_sweep(folder):
    launched(folder / "OUT")
    return ["sweep", "status", "OUT"]


def failed_sweep(folder):
    ended(launched(folder / "OUT")[0], 1, 1, 1)
    return ["sweep", "status", "OUT"]


def some_damaged_images(folder):
    write_images(folder / "data")
    (folder / "data" / "art" / "cat" / "1.png").write_bytes(b"no image")
    return ["predict", "RUN", "data/art", "--workers", "0"]


def only_damaged_images(folder):
    (folder / "1.png").write_bytes(b"no image")
    return ["predict", "RUN", "1.png", "--workers", "0"]


DRIVEN = {
    ("`data verify`", 0): usable_data,
    ("`data verify`", 1): broken_data,
    ("`data verify`", 2): no_data,
    ("`collect --strict`", 3): incomplete_sweep,
    ("`diff`", 0): equal_runs,
    ("`diff`", 1): different_runs,
    ("`diff`", 2): no_runs,
    ("`doctor`", 0): installation,
    ("`predict`", 3): some_damaged_images,
    ("`predict`", 1): only_damaged_images,
    ("`sweep status`", 0): waiting_sweep,
    ("`sweep status`", 1): failed_sweep,
}


def test_each_row_is_driven_or_tested_elsewhere():
    assert sorted(ROWS) == sorted([*DRIVEN, *TESTED_ELSEWHERE])
    for (_, status), file in TESTED_ELSEWHERE.items():
        text = (REPO / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"(== |status=|returncode == ){status}\b", text), file


@pytest.mark.parametrize("row", DRIVEN, ids=lambda row: f"{row[0].strip('`')}-{row[1]}")
def test_a_command_ends_with_the_status_of_its_row(row, tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", torch_interpreter.executable(sys.executable))
    if row[0] == "`predict`":
        (tmp_path / "RUN").symlink_to(request.getfixturevalue("trained"))
    assert cli.main(DRIVEN[row](tmp_path)) == row[1]


def test_other_problems_and_wrong_arguments_are_1_and_2(tmp_path, capsys):
    assert cli.main(["collect", str(tmp_path)]) == 1
    with pytest.raises(SystemExit) as ended:
        cli.main(["collect", "--no-such-flag"])
    assert ended.value.code == 2
