"""`carft evaluate` of a run equals its records and a direct computation."""

import dataclasses
import json
import re
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

import domainbed_carft
from domainbed_carft import cli
from domainbed_carft.cli.runs_output import scores_lines
from domainbed_carft.runs import saved, splits


@pytest.mark.parametrize(
    ("flags", "weights"),
    [(["--which", "last", "--workers", "1"], "model.pkl"), ([], "model_best.pkl")],
)
def test_evaluate_reproduces_the_records_to_the_digit(pets, tmp_path, capsys, flags, weights):
    output = tmp_path / "evaluation.json"
    carft("evaluate", pets / "CARFT", *flags, "--json", "-o", output)
    assert capsys.readouterr().out == ""

    document = json.loads(output.read_text())
    recorded = {record["step"]: accuracies(record) for record in records(pets / "CARFT")}
    assert accuracies_by_split(document) == recorded[document["step"]]
    assert document["weights"] == weights and document["transform"] == "as in training"
    assert document["targets"] == ["art"]


def test_default_weights_are_the_best_only_with_a_target(trained, tmp_path):
    """Without records, the target is read from the weights."""
    for name in ("model_best.pkl", "model.pkl"):
        shutil.copy(trained / name, tmp_path)
        assert saved.choose_weights(tmp_path, None) == tmp_path / "model_best.pkl"

    copy_changed(trained, tmp_path, args={"test_envs": []}, model_num_domains=4)
    shutil.copy(tmp_path / "model.pkl", tmp_path / "model_best.pkl")
    assert saved.choose_weights(tmp_path, None) == tmp_path / "model.pkl"


def test_scores_of_each_split_equal_a_direct_computation(pets, capsys):
    document = evaluate_json(capsys, pets / "CARFT", "--which", "last")
    run = saved.load_run(pets / "CARFT", "last", device="cpu")
    run_splits = splits.read_data(run).splits
    assert [split.name for split in run_splits] == list(document["sets"])
    for split in run_splits:
        scores = document["sets"][split.name]
        with torch.no_grad():
            x, labels = next(iter(DataLoader(split.items, 64)))
            logits = run.algorithm.predict(x).double()
        ece = scores["calibration"]["ece"]
        assert ece == pytest.approx(calibration_error(logits, labels), abs=1e-9)

        predicted = logits.argmax(dim=1)
        assert document["confusions"][split.name] == [
            [int(((labels == true) & (predicted == guess)).sum()) for guess in (0, 1)]
            for true in (0, 1)
        ]
        assert scores["image_set"]["images"] == len(labels)
        assert document["classes"][1] == "wild dog"
        assert scores["class_images"][1] == int((labels == 1).sum())
        assert scores["class_correct"][1] == int((predicted[labels == 1] == 1).sum())


def test_table_by_class_is_in_the_order_of_the_labels(pets):
    scores = domainbed_carft.evaluate(pets / "CARFT", device="cpu", workers=0)
    names = ["zebra", "ant"]
    lines = scores_lines(dataclasses.replace(scores, classes=names))
    rows = [re.split("  +", line) for line in lines[-2:]]
    for label, (name, row) in enumerate(zip(names, rows)):
        shares = [part.class_accuracies[label] for part in scores.sets.values()]
        assert row == [name, *("-" if s is None else f"{100 * s:.1f}" for s in shares)]


def test_means_take_the_in_splits_of_the_target_and_the_out_splits_of_the_others(
    pets, tmp_path, capsys
):
    """With a bias that gives the two splits of each environment different accuracies."""
    weights = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)["model_dict"]
    bias = weights["head.bias"] + torch.tensor([2.0, 0.0])
    job = copy_changed(pets / "CARFT", tmp_path, model_dict={"head.bias": bias})
    document = evaluate_json(capsys, job)
    accuracy = accuracies_by_split(document)
    assert all(accuracy[f"env{env}_in"] != accuracy[f"env{env}_out"] for env in range(3))
    assert document["means"] == {
        "out_of_domain": pytest.approx(accuracy["env0_in"]),
        "in_domain": pytest.approx((accuracy["env1_out"] + accuracy["env2_out"]) / 2),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone cannot be read: No such file or directory"),
        (["CARFT", "--device", "gpu"], "expected cpu, cuda or cuda:N"),
    ],
)
def test_missing_run_or_unknown_device_is_an_error(pets, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(pets)
    assert cli.main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_evaluate_never_overwrites_files_of_a_job(pets, tmp_path, capsys):
    job = shutil.copytree(pets / "CARFT", tmp_path / "job")
    (tmp_path / "link.json").symlink_to(job / "model.pkl")
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    for path in (job / "results.jsonl", tmp_path / "link.json"):
        carft("evaluate", job, "-o", path, status=1)
        assert "overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_image_is_named(pets, tmp_path, capsys, workers):
    shutil.copytree(pets / "my pets", tmp_path / "pets")
    (tmp_path / "pets" / "photo" / "cat" / "3.png").write_text("no image")
    job = copy_changed(pets / "CARFT", tmp_path, args={"dataset": str(tmp_path / "pets")})
    carft("evaluate", job, "--workers", workers, status=1)
    (err,) = capsys.readouterr().err.splitlines()
    image = rf"an image of photo \(env1_\w+\): {tmp_path}/pets/photo/cat/3\.png"
    assert re.match(f"carft: {image} cannot be read: ", err)
