"""What a sweep is said to cost, and what that is from."""

import re
from pathlib import Path

import pytest
from sweep_folders import launched, record

from domainbed_carft import cli
from domainbed_carft.sweep import estimate, sources


def made(text):
    return sources.parse(f"name: x\nalgorithms: [CARFT]\ntrials: 1\n{text}", "x.yaml")


@pytest.mark.parametrize(
    ("text", "steps", "trained", "evaluated"),
    [
        # 17 checkpoints at steps 0, 300, ..., 4800, and one at the last step, 5000.
        ("datasets: [PACS]", 5001, 5001 * 32 * 3, 18 * 9991),
        ("datasets: [PACS]\nsteps: 301", 301, 301 * 32 * 3, 2 * 9991),
        ("datasets: [DomainNet]\nsteps: 1", 1, 32 * 5, 586575),
        ("datasets: [EmojiStyles]", 101, 101 * 16 * 3, 3 * 1716),
    ],
)
def test_pictures(text, steps, trained, evaluated):
    declared = made(text)
    (job, *_) = declared.jobs("D", Path("o"))
    (facts,) = declared.facts.values()
    assert estimate.cost(job, facts)[2:5] == (steps, trained, evaluated)


def dry_run(folder, capsys, *arguments):
    given = ["sweep", "launch", "mine.yaml", "--data_dir", "D", "--output_dir", str(folder)]
    assert cli.main([*given, "--dry-run", *arguments]) == 0
    return capsys.readouterr()


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A sweep of 4 jobs that is launched, and its jobs."""
    monkeypatch.chdir(tmp_path)
    text = "name: x\nalgorithms: [CARFT]\ntrials: 1\ndatasets: [PACS]\nsteps: 100\n"
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "out", launched(tmp_path / "out", text)


def test_from_step_times_in_records(begun, capsys):
    folder, (job, *_) = begun
    for step, seconds in ((0, 90.0), (50, 36.0)):
        record(job, step, step_time=seconds)
    said = dry_run(folder, capsys).out
    assert "without evaluation, from step_time in the records" in said
    assert said.count(" 4.00") == 2  # 4 jobs x 100 steps x 36 s, and in all


def test_measured_here_and_now(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: x\ndatasets: [EmojiStyles]\nalgorithms: [CARFT, CLIPZeroShot]\ntrials: 1\n"
    )
    said = dry_run(tmp_path / "out", capsys, "--measure").out
    assert re.search(r"CARFT +4 .* \d+\.\d\d\n", said) and "CLIP classes" not in said
    assert not (tmp_path / "out").exists()
