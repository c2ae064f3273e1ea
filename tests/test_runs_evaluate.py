"""`carft evaluate` finds what the run's records say, and more."""

import json
import shutil

import pytest
import torch
import warm
from runs_jobs import accuracies, by_split, carft, evaluated, records, train_job
from torch.utils.data import DataLoader

from domainbed_carft import cli
from domainbed_carft.data import emoji
from domainbed_carft.runs import saved, splits


@pytest.fixture(scope="module")
def of_styles(tmp_path_factory):
    """A job on a fifth of EmojiStyles's pictures, as a folder of the user's.

    Its rate is so high that the best step is not the last. It has a uda-split.
    """
    folder = tmp_path_factory.mktemp("styles")
    for path in sorted(emoji.environment_folder("EmojiStyles").glob("*/*/*"))[::5]:
        place = folder / "styles" / path.relative_to(path.parents[2])
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)

    words = ("--checkpoint_freq", "2", "--seed", "3", "--uda_holdout_fraction", "0.25")
    return train_job(folder / "CARFT", folder / "styles", "CARFT", *words, lr=3e-3)


def test_evaluate_reproduces_the_last_record_to_the_digit(of_styles, tmp_path):
    """By a process of its own, as a user has it, with pictures loaded by others."""
    output = tmp_path / "found.json"
    command = ["-m", "domainbed_carft", "evaluate", of_styles, "--which", "last", "--json"]
    done = warm.run(*command, "--workers", "2", "-o", output, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

    document = json.loads(output.read_text())
    record = records(of_styles)[-1]
    assert by_split(document) == accuracies(record)
    assert document["targets"] == ["fluent3d"] and document["transform"] == "as in training"
    assert (document["weights"], document["step"]) == ("model.pkl", record["step"])


def test_evaluate_reproduces_the_best_record_to_the_digit(of_styles, capsys):
    document = evaluated(capsys, of_styles, "--which", "best")
    (record,) = (r for r in records(of_styles) if r["step"] == document["step"])
    assert by_split(document) == accuracies(record) != accuracies(records(of_styles)[-1])


def test_selected_weights_are_evaluated_if_environments_were_left_out(of_styles, capsys):
    best_step = saved.open_run(of_styles, "best").step
    record = next(r for r in records(of_styles) if r["step"] == best_step)
    document = evaluated(capsys, of_styles)
    assert document["weights"] == "model_best.pkl" and by_split(document) == accuracies(record)


def test_the_chosen_weights_are_described_with_the_flag_for_the_others(trained):
    chosen_path = trained / "model_best.pkl"
    sentence = saved.describe_choice(trained, None, chosen_path)
    assert sentence.startswith("Weights: model_best.pkl of ") and "--which last" in sentence


def test_without_records_the_weights_themselves_say_what_is_selected(trained, tmp_path):
    job = shutil.copytree(trained, tmp_path / "job")
    for name in ("results.jsonl", "model.pkl"):
        (job / name).unlink()
        assert saved.choose_weights(job, None) == job / "model_best.pkl"

    shutil.copy(trained / "model.pkl", job)
    (job / "model_best.pkl").unlink()
    assert saved.choose_weights(job, None) == job / "model.pkl"


def test_last_weights_are_evaluated_if_nothing_was_left_out(trained, tmp_path, capsys):
    """As on ImageNet, whose records have no target; a stranger's record counts for nothing else."""
    for name in ("model.pkl", "model_best.pkl"):
        content = torch.load(trained / name, weights_only=True)
        content["args"]["test_envs"] = []
        content["model_num_domains"] = 4
        torch.save(content, tmp_path / name)
    assert saved.choose_weights(tmp_path, None) == tmp_path / "model.pkl"
    assert saved.choose_weights(tmp_path, "best") == tmp_path / "model_best.pkl"

    sentence = saved.describe_choice(tmp_path, None, tmp_path / "model.pkl")
    assert (
        sentence == f"Weights: model.pkl of {tmp_path}, of the last step "
        "(for model_best.pkl: --which best)"
    )


def test_each_splits_figures_equal_a_direct_computation(pets, capsys):
    """Calibration as Guo et al. 2017, equation 3, has it, one bin after another."""
    document = evaluated(capsys, pets / "CARFT", "--which", "last")
    assert document["classes"] == ["cat", "wild dog"]

    run = saved.open_run(pets / "CARFT")
    for split, scores in zip(splits.splits(run), document["splits"], strict=True):
        with torch.no_grad():
            x, labels = next(iter(DataLoader(split.items, 64)))
            shares = run.algorithm.predict(x).double().softmax(1).numpy()
        labels = labels.numpy()
        confidence = shares.max(1)
        predicted = shares.argmax(1)
        error = 0.0
        for m in range(1, 16):
            inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
            if inside.any():
                right = (predicted[inside] == labels[inside]).mean()
                error += inside.mean() * abs(right - confidence[inside].mean())
        assert scores["ece"] == pytest.approx(error, abs=1e-9)
        assert scores["confusion"] == [
            [int(((labels == true) & (predicted == guess)).sum()) for guess in (0, 1)]
            for true in (0, 1)
        ]
        assert scores["pictures"] == len(labels)
        assert [row["class"] for row in scores["by_class"]] == ["cat", "wild dog"]
        assert scores["by_class"][1]["accuracy"] == (predicted[labels == 1] == 1).mean()


def test_the_text_output_has_a_row_per_split(pets, capsys):
    document = evaluated(capsys, pets / "CARFT")
    carft("evaluate", pets / "CARFT")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Weights: model")
    first = document["splits"][0]
    (row,) = (line.split() for line in lines if line.startswith("env0_in "))
    figures = [f"{100 * first[key]:.1f}" for key in ("accuracy", "ece")]
    assert row == ["env0_in", "art", "(test)", "16", *figures]
    assert any("Guo et al. 2017" in line for line in lines)


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
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_evaluate_never_overwrites_files_of_a_job(pets, tmp_path, capsys):
    job = shutil.copytree(pets / "CARFT", tmp_path / "job")
    (tmp_path / "link.json").symlink_to(job / "model_best.pkl")
    before = {path.name: path.read_bytes() for path in job.iterdir()}
    for name in ("model_best.pkl", "results.jsonl", "../link.json"):
        carft("evaluate", job, "--which", "last", "-o", job / name, status=1)
        assert "would overwrite a file of a job or sweep" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in job.iterdir()} == before

    carft("evaluate", job, "-o", job / "found.txt")
    alone = shutil.copy(job / "model.pkl", tmp_path)  # no job's, but what is read
    carft("evaluate", alone, "-o", alone, status=1)
    assert "would overwrite an input" in capsys.readouterr().err
    assert (tmp_path / "model.pkl").read_bytes() == before["model.pkl"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_picture_is_named(pets, tmp_path, capsys, workers):
    shutil.copytree(pets / "my pets", tmp_path / "pets")
    (tmp_path / "pets" / "photo" / "cat" / "3.png").write_text("no picture")
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    content["args"]["dataset"] = str(tmp_path / "pets")
    torch.save(content, tmp_path / "model.pkl")
    carft("evaluate", tmp_path, "--workers", workers, status=1)
    (err,) = capsys.readouterr().err.splitlines()
    assert "a picture of photo (env1_" in err
    assert f"{tmp_path}/pets/photo/cat/3.png cannot be read: " in err
