"""The demo end to end in small, through real sub-processes, and what it says when jobs fail."""

import json
import re

import pytest
from PIL import Image

from domainbed_carft import cli, demo, results
from domainbed_carft.errors import CarftError


def test_two_algorithms_four_targets_then_the_table_and_the_plot(tmp_path, monkeypatch, capsys):
    output = tmp_path / "it's a demo"
    monkeypatch.setattr(demo, "ALGORITHMS", ("CLIPZeroShot", "CARFT"))
    monkeypatch.setattr(demo, "STEPS", 2)
    demo.run(output)
    said = capsys.readouterr()
    frame = results.load(output / "sweep")
    assert len(frame) == 2 * 4 * 2  # algorithms, targets, checkpoints
    assert (frame.groupby("algorithm").size() == 8).all()
    assert len(list((output / "sweep").glob("*/model.pkl"))) == 8
    carft = frame[frame.algorithm == "CARFT"]
    assert carft["loss_kl"].notna().all() and carft["context_agreement"].between(0, 1).all()

    table = (output / "results.txt").read_text()
    assert table in said.out
    selected = results.select(frame)
    section = table.split("training-domain validation set")[1]
    for name in ("CARFT", "CLIPZeroShot"):
        (row,) = re.findall(rf"^{name} .*$", section.split("Averages")[0], flags=re.MULTILINE)
        printed = [float(x) for x in re.findall(r"(\d+\.\d) \+/-", row)]
        mine = selected[selected.algorithm == name].sort_values("test_env")["target"] * 100
        assert printed[:4] == pytest.approx([round(x, 1) for x in mine], abs=0.051)
        average = re.findall(r"\d+\.\d", row)[-1]
        assert float(average) == pytest.approx(mine.mean(), abs=0.1)

    with Image.open(output / "accuracy.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    for place in ("results.txt", "accuracy.png", "sweep.log"):
        assert str(output / place) in said.out
    assert "8 of 8 jobs done" in said.err

    def written():
        return {p: p.stat().st_mtime_ns for p in (output / "sweep").glob("*/results.jsonl")}

    finished = written()
    interrupted = next((output / "sweep").glob("*/done"))
    interrupted.unlink()
    demo.run(output)  # only what is not done is trained again
    again = {path for path, time in written().items() if finished[path] != time}
    assert again == {interrupted.parent / "results.jsonl"}
    assert (output / "results.txt").read_text() == table


def test_a_failing_sweep_is_told_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ALGORITHMS", ("CARFT", "NoSuchAlgorithm"))
    with pytest.raises(CarftError, match=r"(?s)ended with status 2.*NoSuchAlgorithm"):
        demo.run(tmp_path / "out")


def test_progress_counts_whole_records(tmp_path):
    for name, steps in (("a", [0, 25, 50]), ("b", [])):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps({"step": s}) + "\n" for s in steps)
        (tmp_path / name / "results.jsonl").write_text(lines + '{"step": 7')
    (tmp_path / "a" / "done").touch()
    assert demo._progress(tmp_path) == (51, 1)


def test_wrong_arguments_are_told(capsys):
    assert cli.main(["demo", "--trials", "0"]) == 1
    assert "--trials is 0, expected at least 1" in capsys.readouterr().err
