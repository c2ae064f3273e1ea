"""`carft evaluate` finds what the run's records say, and more."""

import json
import shutil

import pytest
import torch
from runs_jobs import (
    accuracies,
    accuracies_by_split,
    calibration_error,
    carft,
    copy_changed,
    evaluate_json,
    records,
)
from torch.utils.data import DataLoader

from domainbed_carft import cli
from domainbed_carft.runs import saved, splits


@pytest.mark.parametrize(
    ("which", "weights"), [(["--which", "last"], "model.pkl"), ([], "model_best.pkl")]
)
def test_evaluate_reproduces_the_records_to_the_digit(pets, tmp_path, capsys, which, weights):
    """With images loaded by other processes."""
    output = tmp_path / "found.json"
    carft("evaluate", pets / "CARFT", *which, "--workers", "2", "--json", "-o", output)
    assert capsys.readouterr().out == ""

    document = json.loads(output.read_text())
    recorded = {record["step"]: accuracies(record) for record in records(pets / "CARFT")}
    assert accuracies_by_split(document) == recorded[document["step"]]
    assert document["weights"] == weights and document["transform"] == "as in training"
    assert document["targets"] == ["art"]


def test_without_records_the_weights_themselves_say_what_is_selected(trained, tmp_path):
    """The last ones if nothing was left out, as on ImageNet, whose records have no target."""
    for name in ("model_best.pkl", "model.pkl"):
        shutil.copy(trained / name, tmp_path)
        assert saved.choose_weights(tmp_path, None) == tmp_path / "model_best.pkl"

    copy_changed(trained, tmp_path, args={"test_envs": []}, model_num_domains=4)
    shutil.copy(tmp_path / "model.pkl", tmp_path / "model_best.pkl")
    assert saved.choose_weights(tmp_path, None) == tmp_path / "model.pkl"
    assert saved.choose_weights(tmp_path, "best") == tmp_path / "model_best.pkl"

    sentence = saved.describe_choice(tmp_path, None, tmp_path / "model.pkl")
    assert sentence.endswith("of the last step (for model_best.pkl: --which best)")


def test_each_splits_figures_equal_a_direct_computation(pets, capsys):
    document = evaluate_json(capsys, pets / "CARFT", "--which", "last")
    run = saved.open_run(pets / "CARFT")
    for split, scores in zip(splits.read_splits(run), document["splits"], strict=True):
        with torch.no_grad():
            x, labels = next(iter(DataLoader(split.items, 64)))
            logits = run.algorithm.predict(x).double()
        assert scores["ece"] == pytest.approx(calibration_error(logits, labels), abs=1e-9)

        predicted = logits.argmax(dim=1)
        assert scores["confusion"] == [
            [int(((labels == true) & (predicted == guess)).sum()) for guess in (0, 1)]
            for true in (0, 1)
        ]
        assert scores["images"] == len(labels)
        wild_dogs = scores["by_class"][1]
        assert wild_dogs["class"] == "wild dog"
        assert wild_dogs["accuracy"] == (predicted[labels == 1] == 1).double().mean()


def test_the_text_output_names_the_weights_and_has_a_row_per_split(pets, capsys):
    split = evaluate_json(capsys, pets / "CARFT")["splits"][0]
    carft("evaluate", pets / "CARFT")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("Weights: model_best.pkl of ") and "--which last" in first

    row = f"env0_in art (test) 16 {100 * split['accuracy']:.1f} {100 * split['ece']:.1f}"
    assert row in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone cannot be read: No such file or directory"),
        (["CARFT", "--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (["CARFT", "-o", "CARFT/done/x"], "expected the name of a file in an existing folder"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(pets, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(pets)
    assert cli.main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_evaluate_never_overwrites_files_of_a_job(pets, tmp_path, capsys):
    job = shutil.copytree(pets / "CARFT", tmp_path / "job")
    (tmp_path / "link.json").symlink_to(job / "model.pkl")
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    for path in (job / "results.jsonl", tmp_path / "link.json"):
        carft("evaluate", job, "-o", path, status=1)
        assert "would overwrite a file of a job or sweep" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_is_named(pets, tmp_path, capsys, workers):
    shutil.copytree(pets / "my pets", tmp_path / "pets")
    (tmp_path / "pets" / "photo" / "cat" / "3.png").write_text("no image")
    job = copy_changed(pets / "CARFT", tmp_path, args={"dataset": str(tmp_path / "pets")})
    carft("evaluate", job, "--workers", workers, status=1)
    (err,) = capsys.readouterr().err.splitlines()
    assert "an image of photo (env1_" in err
    assert f"{tmp_path}/pets/photo/cat/3.png cannot be read: " in err
