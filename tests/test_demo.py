"""The demo end to end in small, through real sub-processes, and what it says when jobs fail."""

import re
from pathlib import Path

import pytest
import report_page
from domainbed.scripts.sweep import Job, make_args_list

from domainbed_carft import cli, sweep
from domainbed_carft.cli import demo
from domainbed_carft.errors import CarftError
from domainbed_carft.plugin.emoji_styles import EmojiStyles
from domainbed_carft.report import frames
from domainbed_carft.results import collection

SMALL = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: 1
steps: 2
test_environments: [line, noto]
"""


def test_two_algorithms_two_targets_then_the_table_and_the_report(tmp_path, capsys):
    output = tmp_path / "it's a demo"
    declared = tmp_path / "small.yaml"
    declared.write_text(SMALL)
    demo.run(output, declared=declared)
    said = capsys.readouterr()
    runs = collection.gather([output / "sweep"]).groups[0].runs
    frame = frames.checkpoints(runs, "training-domain")
    assert len(frame) == 2 * 2 * 2  # algorithms, targets, checkpoints
    assert (frame.groupby("algorithm").size() == 4).all()
    assert len(list((output / "sweep").glob("*/model.pkl"))) == 4
    carft = frame[frame.algorithm == "CARFT"]
    assert carft["loss_kl"].notna().all() and carft["context_agreement"].between(0, 1).all()

    table = (output / "results.txt").read_text()
    assert table in said.out
    outcomes = frames.outcomes(runs, "training-domain").sort_values("target")
    section = table.split("training-domain validation set")[1]
    for name in ("CARFT", "CLIPZeroShot"):
        (row,) = re.findall(rf"^{name} .*$", section.split("Averages")[0], flags=re.MULTILINE)
        printed = [float(x) for x in re.findall(r"(\d+\.\d) \+/-", row)]
        mine = outcomes[outcomes.algorithm == name]["out_of_domain"] * 100
        assert printed[:2] == pytest.approx([round(x, 1) for x in mine], abs=0.051)
        average = re.findall(r"\d+\.\d", row)[-1]
        assert float(average) == pytest.approx(mine.mean(), abs=0.1)

    page = report_page.read(output / "report")
    _, *rows = page.tables["EmojiStyles; training-domain validation set"]
    assert {row[0]: [float(cell.split()[0]) for cell in row[1:5]] for row in rows} == {
        name: [round(100 * accuracy, 1) for accuracy in accuracies]
        for name, accuracies in outcomes.groupby("algorithm")["out_of_domain"].apply(list).items()
    }
    assert (output / "report" / "figures" / "EmojiStyles-context_drift.png").exists()
    for place in ("results.txt", "report/index.html"):
        assert str(output / place) in said.out
    assert "4 of 4 jobs done" in said.err

    def written():
        return {p: p.stat().st_mtime_ns for p in (output / "sweep").glob("*/results.jsonl")}

    finished = written()
    interrupted = next((output / "sweep").glob("*/done"))
    interrupted.unlink()
    demo.run(output, declared=declared)  # only what is not done is trained again
    again = {path for path, time in written().items() if finished[path] != time}
    assert again == {interrupted.parent / "results.jsonl"}
    assert (output / "results.txt").read_text() == table


def test_a_failing_sweep_is_told_with_what_to_do(tmp_path):
    declared = tmp_path / "small.yaml"
    small = SMALL.replace("CLIPZeroShot, ", "").replace("line, ", "")
    declared.write_text(small + "hparams: {clip_backbone: /no/such.pt}\n")
    message = r"(?s)1 of the jobs are not done.*no/such.pt.*carft sweep retry"
    with pytest.raises(CarftError, match=message):
        demo.run(tmp_path / "out", declared=declared)


def test_the_declared_demo_is_what_the_readme_shows():
    """Its jobs have the identities of DomainBed's own sweep with the same flags."""
    declaration = sweep.load("demo")
    assert declaration.algorithms == ["CLIPZeroShot", "CLIPLinearProbe", "CLIPFineTune", "CARFT"]
    assert declaration.steps_of("EmojiStyles") == EmojiStyles.N_STEPS
    made = declaration.jobs(demo.DATA_DIR, Path("OUT"))
    jobs = make_args_list(
        1, ["EmojiStyles"], declaration.algorithms, 0, 1, EmojiStyles.N_STEPS, demo.DATA_DIR,
        "domain_generalization", 0.2, True, None,
    )  # fmt: skip
    assert sorted(str(j.folder) for j in made) == sorted(Job(a, "OUT").output_dir for a in jobs)


def test_wrong_arguments_are_told(capsys):
    assert cli.main(["demo", "--trials", "0"]) == 1
    assert "--trials is 0, expected at least 1" in capsys.readouterr().err
