"""`carft wise-ft`: bit-identical weights between CLIP and a run, and their accuracies."""

import json
import os

import numpy as np
import pytest
import torch
from runs_jobs import accuracies, accuracies_by_split, carft, evaluate_json, load_weights, records

from domainbed_carft.runs import saved, splits, wise_ft


@pytest.fixture(scope="module")
def mixed(pets, tmp_path_factory):
    """A folder with the results and the weights of three alphas."""
    folder = tmp_path_factory.mktemp("mixed") / "wise ft"
    job = pets / "CARFT" / "model.pkl"
    carft("wise-ft", job, "-o", folder, "--alphas", "1", "0", "0.5", "--save", "all")
    return folder


def read_results(folder):
    rows = json.loads((folder / "wise_ft.json").read_text())
    return {row["alpha"]: row for row in rows}


def test_saved_weights_equal_the_formula_to_the_bit(pets, mixed):
    """Alpha 0 is zero-shot CLIP, with the scale folded into the head like CARFT's.

    The packed job's head was computed on another CPU, whose rounding can differ.
    """
    zero_shot, run = (load_weights(pets / name / "model.pkl") for name in ("CLIPZeroShot", "CARFT"))
    zero_shot["head.weight"] *= zero_shot["logit_scale"]
    zero_shot["head_factor"] = torch.tensor(1.0)
    assert not torch.equal(zero_shot["encoder.proj"], run["encoder.proj"])

    start, half, end = (
        load_weights(mixed / f"model_alpha_{a}.pkl") for a in ("0.00", "0.50", "1.00")
    )
    assert start.keys() == zero_shot.keys() == run.keys() == half.keys() == end.keys()
    for name in run:
        rounding = {"rtol": 1e-5, "atol": 1e-6} if name == "head.weight" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(start[name], zero_shot[name], **rounding)
        assert end[name].numpy().tobytes() == run[name].numpy().tobytes(), name

        expected = run[name].numpy()
        if name.startswith(("encoder.", "head.")):
            expected = start[name].numpy() * np.float32(0.5) + expected * np.float32(0.5)
        assert np.array_equal(half[name].numpy(), expected), name


def test_accuracies_equal_the_records(pets, mixed):
    rows = read_results(mixed)
    splits = {alpha: accuracies_by_split(row) for alpha, row in rows.items()}
    assert splits[1.0] == accuracies(records(pets / "CARFT")[-1])

    zero_shot = accuracies(records(pets / "CLIPZeroShot")[-1])
    for name in ("env0_in", "env0_out"):  # images of the target are not augmented
        assert splits[0.0][name] == zero_shot[name]

    for alpha, row in rows.items():
        inner = [splits[alpha][f"env{index}_out"] for index in (1, 2)]
        assert row["means"]["in_domain"] == sum(inner) / 2
        assert row["means"]["out_of_domain"] == splits[alpha]["env0_in"]


def test_saved_weights_are_a_run_that_can_be_interpolated_again(pets, mixed, capsys, tmp_path):
    path = mixed / "model_alpha_0.50.pkl"
    document = evaluate_json(capsys, path)
    assert accuracies_by_split(document) == accuracies_by_split(read_results(mixed)[0.5])
    assert document["wise_ft_alpha"] == 0.5

    carft("wise-ft", path, "-o", tmp_path / "again", "--alphas", "0.5", "--save", "0.5")
    second_run = saved.load_run(tmp_path / "again" / "model_alpha_0.50.pkl", device="cpu")
    assert second_run.alpha == 0.25

    quarter = saved.load_run(pets / "CARFT", "last", device="cpu")
    wise_ft.make_alpha_setter(quarter, None)(0.25)
    torch.testing.assert_close(
        quarter.algorithm.state_dict(), second_run.algorithm.state_dict(), rtol=1e-5, atol=1e-6
    )


def test_wise_ft_saves_no_weights_by_default(pets, tmp_path, capsys):
    carft("wise-ft", pets / "CARFT", "-o", tmp_path / "out", "--alphas", "0", "1")
    assert capsys.readouterr().out.startswith(f"Weights: model_best.pkl of {pets / 'CARFT'}, ")

    assert os.listdir(tmp_path / "out") == [wise_ft.WISE_FT_TABLE]


@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("no run", ["--alphas", "0", "1.5", "-1"], ": expected different numbers"),
        ("no run", ["--alphas", "0.5", "--save", "0.4"], "--save 0.4"),
        ("CLIPZeroShot", [], "CLIPZeroShot, which trains nothing"),
        ("CARFT", ["--suite", "imagnet"], "imagnet"),
    ],
)
def test_invalid_commands_write_nothing(pets, tmp_path, capsys, run, flags, message):
    carft("wise-ft", pets / run, "-o", tmp_path / "out", *flags, status=1)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["wise-ft", "soup"])
def test_file_instead_of_an_output_folder_is_found_before_images_are_read(
    command, pets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(splits, "read_data", None)
    (tmp_path / "FILE").touch()
    runs = {"wise-ft": ["CARFT"], "soup": ["CARFT", "CLIPLinearProbe"]}[command]
    carft(command, *(pets / run for run in runs), "-o", tmp_path / "FILE", status=1)
    assert f"-o {tmp_path}/FILE is a file, expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wise_ft.json", "model_alpha_0.50.pkl"])
def test_wise_ft_overwrites_nothing(pets, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    words = ("-o", tmp_path, "--alphas", 0.5, "--save", "all")
    carft("wise-ft", pets / "CARFT", *words, status=1)
    assert f"already has {name}; choose another --output" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
