"""Model Stock (`carft soup --method`) and LiNeS (`carft wise-ft --layers`)."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from runs_jobs import by_split, carft, evaluated, train_job, weights

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import merge_weights, saved, saved_checks, soup, wise_ft

# The tiny CLIP's encoder has this many blocks.
BLOCKS = 4


@pytest.fixture(scope="module")
def runs(pets, tmp_path_factory):
    """CARFT on the pets, twice with different seeds and rates."""
    second = tmp_path_factory.mktemp("stock") / "second"
    train_job(second, pets / "my pets", "CARFT", "--seed", "1", lr=3e-3)
    return [pets / "CARFT" / "model.pkl", second / "model.pkl"]


@pytest.fixture(scope="module")
def stock(runs, tmp_path_factory):
    """A folder with the Model Stock of both, and what the command printed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        carft("soup", *runs, "--method", "model-stock", "-o", folder)
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def linear(pets, tmp_path_factory):
    """A folder with CARFT's weights of three alphas by linear layers."""
    folder = tmp_path_factory.mktemp("linear") / "out"
    options = ("--alphas", "0", "0.4", "1", "--save", "all", "--layers", "linear")
    carft("wise-ft", pets / "CARFT" / "model.pkl", "-o", folder, *options)
    return folder


def original_weights(pets):
    """The zero-shot CLIP's weights, its scale folded into the head as CARFT's is."""
    zero_shot = weights(pets / "CLIPZeroShot" / "model.pkl")
    zero_shot["head.weight"] *= zero_shot["logit_scale"]
    return zero_shot


def ratio_by_numpy(displacements):
    """t of the paper's equation for N runs, from the mean cosine over pairs."""
    cosines = [
        np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        for i, a in enumerate(displacements)
        for b in displacements[i + 1 :]
    ]
    cosine = max(0.0, np.mean(cosines))
    return len(displacements) * cosine / (1 + (len(displacements) - 1) * cosine)


def test_each_tensor_of_model_stock_is_the_papers_formula(pets, runs, stock):
    folder, _ = stock
    made = weights(folder / soup.STOCK_FILE)
    ratios = json.loads((folder / soup.STOCK_TABLE).read_text())["ratios"]
    original = original_weights(pets)
    states = [weights(path) for path in runs]

    moved = 0
    for name, tensor in made.items():
        if not name.startswith(("encoder.", "head.")):
            assert torch.equal(tensor, states[0][name]), name
            continue

        start = original[name].double().numpy()
        displacements = [state[name].double().numpy() - start for state in states]
        if not any(displacement.any() for displacement in displacements):
            assert torch.equal(tensor, original[name]) and name not in ratios
            continue
        moved += 1
        ratio = ratio_by_numpy([displacement.ravel() for displacement in displacements])
        expected = start + ratio * np.mean(displacements, axis=0)
        assert ratios[name] == pytest.approx(ratio, abs=1e-9)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert moved == len(ratios) > 20


def test_the_ratio_of_some_angles_is_known():
    along_x = torch.tensor([2.0, 0.0], dtype=torch.float64)
    along_y = torch.tensor([0.0, 3.0], dtype=torch.float64)
    diagonal = torch.tensor([1.0, 3**0.5], dtype=torch.float64)  # 60 degrees to x

    assert merge_weights.stock_ratio([along_x, 5 * along_x]) == pytest.approx(1)
    assert merge_weights.stock_ratio([along_x, diagonal]) == pytest.approx(2 / 3)
    assert merge_weights.stock_ratio([along_x, along_y]) == 0
    assert merge_weights.stock_ratio([along_x, -diagonal]) == 0
    assert merge_weights.stock_ratio([along_x, along_x, along_x]) == pytest.approx(1)
    three = [along_x, diagonal, diagonal]  # cosines 1/2, 1/2 and 1
    assert merge_weights.stock_ratio(three) == pytest.approx(3 * (2 / 3) / (1 + 2 * (2 / 3)))


def test_a_model_stock_opens_as_a_run_and_predicts_what_was_printed(stock, capsys):
    folder, printed = stock
    assert "Model Stock of 2 runs" in printed and "0 is the original CLIP" in printed

    path = folder / soup.STOCK_FILE
    document = json.loads((folder / soup.STOCK_TABLE).read_text())
    run = saved.open_run(path)
    assert run.title == "soup of 2 runs (CARFT)" and run.soup["kind"] == "model-stock"

    assert by_split(evaluated(capsys, path)) == document["splits"]


def test_model_stock_refuses_what_is_no_soup_and_does_not_overwrite(pets, runs, tmp_path):
    with pytest.raises(CarftError, match="1 run, expected at least two"):
        soup.model_stock(runs[:1])
    with pytest.raises(CarftError, match="a run is given twice"):
        soup.model_stock([runs[0], runs[0]])

    (tmp_path / soup.STOCK_FILE).touch()
    with pytest.raises(CarftError, match=f"already has {soup.STOCK_FILE}"):
        soup.model_stock(runs, output=tmp_path)


def linear_share(name, alpha):
    """The run's share of a tensor, by its name in the tiny CLIP's state dict."""
    if name.startswith("encoder.transformer.resblocks."):
        block = int(name.split(".")[3])
        return alpha + (1 - alpha) * block / (BLOCKS - 1)
    return alpha  # of embeddings, final norm, projection and head


def test_linear_layers_grow_from_alpha_in_the_first_block_to_the_run_in_the_last(pets, linear):
    original = original_weights(pets)
    run = weights(pets / "CARFT" / "model.pkl")

    for alpha in (0.0, 0.4, 1.0):
        for name, tensor in weights(linear / f"model_alpha_{alpha:.2f}.pkl").items():
            if not name.startswith(("encoder.", "head.")):
                continue
            share = linear_share(name, alpha)
            if share == 1:
                assert torch.equal(tensor, run[name]), name
            elif share == 0:
                assert torch.equal(tensor, original[name]), name
            else:
                expected = (1 - share) * original[name].double() + share * run[name].double()
                torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)

    assert json.loads((linear / "wise_ft.json").read_text())["layers"] == "linear"
    blocks = {name.split(".")[3] for name in run if name.startswith("encoder.transformer.")}
    assert len(blocks) == BLOCKS


def test_weights_between_clip_and_a_run_are_refused_for_linear_layers(pets, linear, tmp_path):
    job = pets / "CARFT" / "model.pkl"
    wise_ft.wise_ft(job, [0.5], output=tmp_path / "uniform", save=[0.5], workers=0)
    with pytest.raises(CarftError, match=r"alpha 0\.5\); expected the run itself"):
        wise_ft.wise_ft(tmp_path / "uniform" / "model_alpha_0.50.pkl", [0.5], layers="linear")

    for layers in saved_checks.LAYERS:
        with pytest.raises(CarftError, match="expected the run that it was made from"):
            wise_ft.wise_ft(linear / "model_alpha_0.40.pkl", [0.5], layers=layers)


def test_the_depths_of_a_resnets_tensors_follow_its_stages():
    resnet = torch.nn.Module()
    resnet.conv1 = torch.nn.Conv2d(3, 4, 1)
    for number in range(1, 5):
        setattr(resnet, f"layer{number}", torch.nn.Linear(2, 2))
    resnet.attnpool = torch.nn.Linear(2, 2)
    depths = merge_weights.linear_depths(resnet)
    assert depths["encoder.layer1.weight"] == 0
    assert depths["encoder.layer2.bias"] == pytest.approx(1 / 3)
    assert depths["encoder.layer4.weight"] == 1
    assert {name.split(".")[1] for name in depths} == {f"layer{number}" for number in range(1, 5)}


def test_an_encoder_without_blocks_has_no_linear_layers():
    encoder = torch.nn.Module()
    encoder.trunk = torch.nn.Linear(2, 2)
    with pytest.raises(CarftError, match="made of 0 blocks, expected two or more"):
        merge_weights.linear_depths(encoder)
