"""`carft evaluate` finds what the run's records say, and more."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import warm
from runs_jobs import accuracies, records
from torch.utils.data import DataLoader

from domainbed_carft import cli
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import saved, splits


def evaluate(capsys, *arguments):
    """The document that ``--json`` prints."""
    status = cli.main(["evaluate", *map(str, arguments), "--json", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def found_in(document):
    return {split["name"]: split["accuracy"] for split in document["splits"]}


def test_the_last_record_to_the_digit_as_a_command(trained, tmp_path):
    """By a process of its own, as a user has it, with pictures loaded by others."""
    output = tmp_path / "found.json"
    command = ["-m", "domainbed_carft", "evaluate", trained, "--json"]
    done = warm.run(*command, "--workers", "2", "-o", output, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    document = json.loads(output.read_text())
    assert found_in(document) == accuracies(records(trained)[-1])
    assert document["targets"] == ["fluent3d"] and document["step"] is None


def test_the_record_of_the_best_step_to_the_digit(trained, capsys):
    document = evaluate(capsys, trained, "--which", "best")
    (record,) = (r for r in records(trained) if r["step"] == document["step"])
    assert found_in(document) == accuracies(record) != accuracies(records(trained)[-1])
    assert "exactly those of the run's record" in document["notes"][0]


def test_all_figures_of_a_split(pets, capsys):
    document = evaluate(capsys, pets / "CARFT")
    assert document["classes"] == ["cat", "wild dog"]
    run = saved.open_run(pets / "CARFT")
    for split, found in zip(splits.splits(run), document["splits"], strict=True):
        with torch.no_grad():
            x, labels = next(iter(DataLoader(split.items, 64)))
            shares = run.algorithm.predict(x).double().softmax(1).numpy()
        labels, predicted = labels.numpy(), shares.argmax(1)
        confusion = np.zeros((2, 2), int)
        for true, guess in zip(labels, predicted):
            confusion[true, guess] += 1
        assert found["confusion"] == confusion.tolist()
        assert found["pictures"] == len(labels)
        bins = np.digitize(shares.max(1), np.arange(1, 15) / 15, right=True)
        gaps = [
            (bins == b).mean()
            * abs((predicted == labels)[bins == b].mean() - shares.max(1)[bins == b].mean())
            for b in set(bins)
        ]
        assert found["ece"] == pytest.approx(sum(gaps), abs=1e-9)
        assert found["by_class"][1]["accuracy"] == (predicted[labels == 1] == 1).mean()


def test_text_for_people(pets, capsys):
    document = evaluate(capsys, pets / "CARFT")
    assert cli.main(["evaluate", str(pets / "CARFT"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = document["splits"][0]
    (row,) = (line.split() for line in lines if line.startswith("env0_in "))
    figures = [f"{100 * first[key]:.1f}" for key in ("accuracy", "ece")]
    assert row == ["env0_in", "art", "(test)", "16", *figures]
    title = "Confusion matrix of env0_in (art): a row is a true class, a column a predicted one"
    at = lines.index(title)
    assert lines[at + 1].split() == ["cat", "wild", "dog"]
    assert lines[at + 2].split() == ["cat", *map(str, first["confusion"][0])]
    assert any("Guo et al. 2017" in line for line in lines)


def test_of_many_classes_the_largest_errors_are_shown(pets, capsys):
    document = evaluate(capsys, pets / "CARFT")
    names = [f"class {n}" for n in range(40)]
    cells = np.zeros((40, 40), int)
    cells[3, 5], cells[7, 2], cells[1, 1] = 9, 4, 50
    of_classes = [{"pictures": 1, "accuracy": 0.5}] * 40
    for split in document["splits"]:
        split.update(confusion=cells.tolist(), by_class=of_classes)
    text = evaluating.as_text({**document, "classes": names})
    assert "its 2 largest errors (all of it: --json)" in text
    rows = [line.split() for line in text.splitlines()[-2:]]
    assert rows[0] == ["9", "class", "3", "class", "5"] and rows[1][0] == "4"


def test_a_run_of_another_host_is_told_to_have_other_pictures(pets, tmp_path, capsys):
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    del content["args"]["keep_weights"]
    torch.save(content, tmp_path / "model.pkl")
    document = evaluate(capsys, tmp_path)
    assert "drawn anew" in document["notes"][0]
    content["model_hparams"]["data_augmentation"] = False
    torch.save(content, tmp_path / "model.pkl")
    assert evaluate(capsys, tmp_path)["notes"] == []


def test_what_a_user_can_get_wrong(pets, tmp_path, capsys):
    run = str(pets / "CARFT")
    for arguments, message in (
        ([str(tmp_path / "gone")], "gone cannot be read: No such file or directory"),
        ([run, "--device", "cuda:99"], "--device cuda:99 cannot be used ("),
        ([run, "--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (
            [run, "-o", str(pets / "CARFT" / "done" / "x")],
            "expected the name of a file in a folder that exists",
        ),
        ([run, "-o", str(tmp_path)], "expected the name of a file in a folder that exists"),
    ):
        assert cli.main(["evaluate", *arguments]) == 1
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    for flags in (["--batch_size", "0"], ["--workers", "-1"], ["--which", "first"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["evaluate", run, *flags])


def test_what_is_there_already_in_a_job_is_never_overwritten(pets, tmp_path, capsys):
    job = shutil.copytree(pets / "CARFT", tmp_path / "job")
    (tmp_path / "link.json").symlink_to(job / "model_best.pkl")
    shutil.copy(job / "model.pkl", tmp_path / "mine.pkl")
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    for name in ("model_best.pkl", "results.jsonl", "../link.json"):
        assert cli.main(["evaluate", str(job), "-o", str(job / name)]) == 1
        assert "would overwrite a file of a job or sweep" in capsys.readouterr().err
    mine = str(tmp_path / "mine.pkl")
    assert cli.main(["evaluate", mine, "-o", mine]) == 1
    assert "mine.pkl would overwrite an input" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before
    assert cli.main(["evaluate", str(job), "-o", str(job / "found.txt")]) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_picture_is_told(pets, tmp_path, capsys, workers):
    shutil.copytree(pets / "my pets", tmp_path / "pets")
    (tmp_path / "pets" / "photo" / "cat" / "3.png").write_text("no picture")
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    content["args"]["dataset"] = str(tmp_path / "pets")
    torch.save(content, tmp_path / "model.pkl")
    assert cli.main(["evaluate", str(tmp_path), "--workers", workers]) == 1
    err = capsys.readouterr().err
    assert "a picture of photo (env1_" in err
    assert f") cannot be read: {tmp_path}/pets/photo/cat/3.png cannot be read: " in err
    assert err.count("carft data verify --decode") == 1
    assert "Traceback" not in err


def test_the_commands_load_nothing_heavy():
    code = (
        "import sys; from domainbed_carft import cli; cli._parser(); "
        "print(sorted({'torch', 'matplotlib', 'pandas', 'domainbed', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
