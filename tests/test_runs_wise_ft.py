"""`carft wise-ft`: the weights between CLIP and a run, to the bit, and what it says of them."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from runs_jobs import accuracies, by_split, carft, evaluated, records, weights

from domainbed_carft.runs import saved, splits, wise_ft
from domainbed_carft.runs.wise_ft import CurvePoint, curve_figure


@pytest.fixture(scope="module")
def mixed(pets, tmp_path_factory):
    """A folder with the results of three alphas."""
    folder = tmp_path_factory.mktemp("mixed") / "wise ft"
    job = pets / "CARFT" / "model.pkl"
    carft("wise-ft", job, "-o", folder, "--alphas", "1", "0", "0.5", "--save", "all")
    return folder


def results(folder):
    rows = json.loads((folder / "wise_ft.json").read_text())["alphas"]
    return {row["alpha"]: row for row in rows}


def original_and_run(pets):
    """The zero-shot CLIP's weights, its scale folded into the head as CARFT's is, and CARFT's."""
    zero_shot, run = (weights(pets / name / "model.pkl") for name in ("CLIPZeroShot", "CARFT"))
    zero_shot["head.weight"] *= zero_shot["logit_scale"]
    zero_shot["head_factor"] = torch.tensor(1.0)
    return zero_shot, run


def test_alpha_0_is_zero_shot_and_alpha_1_the_run_to_the_bit(pets, mixed):
    zero_shot, run = original_and_run(pets)
    start, end = (weights(mixed / f"model_alpha_{alpha}.pkl") for alpha in ("0.00", "1.00"))
    assert start.keys() == zero_shot.keys() == run.keys() == end.keys()
    for name in run:
        assert start[name].numpy().tobytes() == zero_shot[name].numpy().tobytes(), name
        assert end[name].numpy().tobytes() == run[name].numpy().tobytes(), name
    assert not torch.equal(zero_shot["encoder.proj"], run["encoder.proj"])


def test_weights_in_between_equal_the_formula(pets, mixed):
    zero_shot, run = original_and_run(pets)
    half = np.float32(0.5)
    for name, tensor in weights(mixed / "model_alpha_0.50.pkl").items():
        if name.startswith(("encoder.", "head.")):
            expected = zero_shot[name].numpy() * half + run[name].numpy() * half
            assert np.array_equal(tensor.numpy(), expected), name
        else:
            assert torch.equal(tensor, run[name]), name


def test_accuracies_of_wise_ft_equal_the_records(pets, mixed):
    rows = results(mixed)
    assert rows[1.0]["splits"] == accuracies(records(pets / "CARFT")[-1])

    zero_shot = accuracies(records(pets / "CLIPZeroShot")[-1])
    for name in ("env0_in", "env0_out"):  # of the target, whose pictures are not augmented
        assert rows[0.0]["splits"][name] == zero_shot[name]

    for row in rows.values():
        inner = [row["splits"][f"env{index}_out"] for index in (1, 2)]
        assert row["in_domain"] == sum(inner) / 2
        assert row["out_of_domain"] == row["splits"]["env0_in"]


def test_saved_weights_open_in_all_commands(pets, mixed, capsys, tmp_path):
    path = mixed / "model_alpha_0.50.pkl"
    run = saved.open_run(path)
    assert run.alpha == 0.5 and type(run.algorithm).__name__ == "CARFT"

    document = evaluated(capsys, path)
    assert by_split(document) == results(mixed)[0.5]["splits"]
    assert document["wise_ft_alpha"] == 0.5

    carft("predict", path, pets / "my pets" / "art" / "cat" / "0.png")
    carft("wise-ft", path, "-o", tmp_path / "again", "--alphas", "0.5", "--save", "0.5")
    second_run = saved.open_run(tmp_path / "again" / "model_alpha_0.50.pkl")
    assert second_run.alpha == 0.25

    quarter = saved.open_run(pets / "CARFT")
    wise_ft.alpha_setter(quarter, None)(0.25)
    torch.testing.assert_close(
        quarter.algorithm.state_dict(), second_run.algorithm.state_dict(), rtol=1e-5, atol=1e-6
    )


def test_wise_ft_writes_json_csv_and_a_plot(mixed):
    names = [f"model_alpha_{alpha}.pkl" for alpha in ("0.00", "0.50", "1.00")]
    assert sorted(os.listdir(mixed)) == sorted(
        [*names, wise_ft.WISE_FT_TABLE, *wise_ft.CURVE_FILES]
    )
    assert Image.open(mixed / "wise_ft.png").format == "PNG"
    comments = (mixed / "wise_ft.svg").read_text()  # text is drawn as paths, said in comments
    for words in ("0 (original CLIP)", "1 (the run)", "CARFT on"):
        assert words in comments


def test_no_weights_are_saved_unless_asked_for(pets, tmp_path, capsys):
    carft("wise-ft", pets / "CARFT", "-o", tmp_path / "out", "--alphas", "0.5")
    output = capsys.readouterr().out
    assert output.startswith(f"Weights: model_best.pkl of {pets / 'CARFT'}, selected by")
    assert f"Results: {tmp_path / 'out'}; for weights add --save all" in output
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        [wise_ft.WISE_FT_TABLE, *wise_ft.CURVE_FILES]
    )


@pytest.mark.parametrize("width", [0.0, 0.0004, 0.01, 0.3])
def test_the_ends_of_the_curve_are_labelled_side_by_side(width):
    points = [
        CurvePoint(i / 10, in_domain=0.7 - width * i, out_of_domain=0.5 + width * (i % 3))
        for i in range(11)
    ]
    figure = curve_figure(points, "CARFT on PACS", is_on_suite=False)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    first, second = (text.get_window_extent() for text in axes.texts)
    assert {text.get_text() for text in axes.texts} == {"0 (original CLIP)", "1 (the run)"}
    assert not first.overlaps(second)
    for box in (first, second):
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1


def test_a_picture_is_read_once_for_all_alphas(pets, tmp_path, monkeypatch):
    read_positions = []
    original = splits._KeyedItems.__getitems__

    def counting(self, positions):
        read_positions.extend(positions)
        return original(self, positions)

    monkeypatch.setattr(splits._KeyedItems, "__getitems__", counting)
    carft("wise-ft", pets / "CARFT", "-o", tmp_path / "out", "--alphas", 0.1, 0.2)
    assert len(read_positions) == 60
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        [wise_ft.WISE_FT_TABLE, *wise_ft.CURVE_FILES]
    )


def changed(pets, folder, **hparams):
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    content["model_hparams"].update(hparams)
    folder.mkdir()
    torch.save(content, folder / "model.pkl")
    return folder


@pytest.mark.parametrize(
    ("run", "flags", "message"),
    [
        ("no run", ["--alphas", "0", "1.5", "-1"], ": expected different numbers"),
        ("no run", ["--alphas", "0.5", "--save", "0.4"], ": expected all, none, or some"),
        ("CLIPZeroShot", [], "CLIPZeroShot, which trains nothing"),
        ("CARFT", ["--suite", "imagnet"], "no suite is called 'imagnet'"),
    ],
)
def test_refused_commands_write_nothing(pets, tmp_path, capsys, run, flags, message):
    carft("wise-ft", pets / run, "-o", tmp_path / "out", *flags, status=1)
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wise_ft_overwrites_nothing(pets, tmp_path, capsys):
    for name in ("wise_ft.json", "wise_ft.png", "model_alpha_0.50.pkl"):
        (tmp_path / name).write_text("mine")
        words = ("-o", tmp_path, "--alphas", 0.5, "--save", "all")
        carft("wise-ft", pets / "CARFT", *words, status=1)
        assert f"already has {name}; choose another --output" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
