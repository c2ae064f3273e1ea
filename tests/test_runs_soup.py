"""`carft soup`: means of runs, chosen by training-domain validation, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs_jobs import by_split, carft, evaluated, train_job, weights, write_pictures

from domainbed_carft import cli
from domainbed_carft.cli import run_texts
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD
from domainbed_carft.runs import (
    export,
    merge_weights,
    saved,
    soup,
    soup_members,
    splits,
)

# Of different rates, seeds and settings; the last two differ in how they scale the head, too.
TRAINED = (
    ("CARFT", 0, {"lr": 1e-3}),
    ("CARFT", 1, {"lr": 3e-3}),
    ("CLIPWiSEFT", 2, {"lr": 1e-4}),
    ("CLIPood", 3, {"lr": 1e-3, "head_init": "random"}),
)

# So many validation pictures that few pictures tell the runs apart.
HALF = ("--holdout_fraction", "0.5", "--skip_training_in_splits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four runs of one start, and one that left another environment out."""
    place = tmp_path_factory.mktemp("soup")
    pictures = write_pictures(place / "noise")
    jobs = [
        train_job(place / f"{name} {seed}", pictures, name, "--seed", str(seed), *HALF, **hparams)
        for name, seed, hparams in TRAINED
    ]
    return [*jobs, train_job(place / "other", pictures, "CARFT", *HALF, test_envs=("1",))]


@pytest.fixture(scope="module")
def uniform(runs, tmp_path_factory):
    """The uniform soup of the first two runs, a file."""
    folder = tmp_path_factory.mktemp("uniform") / "out"
    carft("soup", *last_of(runs[:2]), "-o", folder)
    return folder / "model_soup_uniform.pkl"


def last_of(jobs):
    return [job / "model.pkl" for job in jobs]


def made(folder):
    """The document of a soup, and the content of both of its files."""
    document = json.loads((folder / "soup.json").read_text())
    contents = [torch.load(folder / name, weights_only=True) for name in soup.SOUP_FILES.values()]
    return document, contents


def mean_by_hand(paths):
    """The mean of some runs' weights, with the scale of the head in the head, added by numpy."""
    states = [weights(path) for path in paths]
    common = {}
    for name in states[0]:
        if name in ("words", "head_factor"):
            continue
        parts = [
            state[name].double() * (state["head_factor"].double() if name == "head.weight" else 1)
            for state in states
        ]
        common[name] = sum(part.numpy() for part in parts) / len(parts)
    return common


def check_mean(state, expected):
    """The tensors of a state dict are the expected ones, as far as those go."""
    for name, tensor in state.items():
        if name in expected:
            expected_tensor = torch.as_tensor(expected[name])
            torch.testing.assert_close(tensor.double(), expected_tensor, rtol=1e-6, atol=1e-7)


def test_soups_are_means_of_the_runs_that_validation_chose(runs, tmp_path, capsys):
    carft("soup", *last_of(runs[:3]), "-o", tmp_path / "out")
    assert run_texts.PICTURES_OF_A_SOUP in capsys.readouterr().out

    document, contents = made(tmp_path / "out")
    validation = {row["run"]: row["validation"] for row in document["runs"]}
    by_kind = {row["soup"]: row for row in document["soups"]}
    assert len(by_kind["uniform"]["runs"]) == 3

    def in_domain(parts):
        """Of the mean of some runs' weights, by `carft evaluate`."""
        states = [weights(path) for path in parts]
        mean = {
            name: torch.stack([state[name].double() for state in states]).mean(dim=0).float()
            for name in states[0]
            if name != "words"
        }
        mean["words"] = states[0]["words"]
        torch.save({**contents[0], "model_dict": mean}, tmp_path / "mean.pkl")

        shares = by_split(evaluated(capsys, tmp_path / "mean.pkl"))
        return (shares["env1_out"] + shares["env2_out"]) / 2

    for path, accuracy in validation.items():
        assert in_domain([path]) == pytest.approx(accuracy)

    chosen = []
    best = -1.0
    for path in sorted(validation, key=lambda path: -validation[path]):
        if (reached := in_domain([*chosen, path])) > best:
            chosen = [*chosen, path]
            best = reached
    assert by_kind["greedy"]["runs"] == chosen
    assert by_kind["greedy"]["in_domain"] == pytest.approx(best)

    for kind, row in by_kind.items():
        path = tmp_path / "out" / f"model_soup_{kind}.pkl"
        check_mean(weights(path), mean_by_hand(row["runs"]))
        measured = evaluated(capsys, path)
        assert by_split(measured) == row["splits"] and measured["transform"] == "test"


def test_the_order_of_the_runs_does_not_change_the_soups(runs, tmp_path):
    """To the bit, whichever run is first: its seed and step once chose the pictures."""
    first, second, third = last_of([runs[0], runs[2], runs[3]])
    results = []
    for order in ((first, second, third), (second, third, first), (third, first, second)):
        folder = tmp_path / str(len(results))
        carft("soup", *order, "-o", folder)
        results.append(made(folder))

    first_document, first_contents = results[0]
    for document, contents in results[1:]:
        assert document == first_document
        for content, first in zip(contents, first_contents):
            states = content.pop("model_dict"), first["model_dict"]
            assert {**content, "model_dict": 0} == {**first, "model_dict": 0}
            assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_pictures_of_a_soup_are_not_augmented(runs, uniform, tmp_path, capsys):
    """A run's are drawn by its seed and step; evaluate and wise-ft say that a soup has none."""
    opened = saved.open_run(uniform)
    member_plan = saved.open_run(last_of(runs[:1])[0]).picture_plan
    assert member_plan.augmentation is not None
    assert opened.picture_plan == member_plan.without_augmentation()
    soup_splits = splits.splits(opened)
    by_name = {split.name: split for split in splits.splits(saved.open_run(runs[0]))}
    for split in soup_splits:
        as_trained = by_name[split.name].items
        assert torch.equal(split.items[0][0], as_trained[0][0]) == split.is_target
        part = split.items._items
        position = 0
        while hasattr(part, "indices"):
            part, position = part.dataset, part.indices[position]
        path, _ = part.samples[position]
        squeezed = np.asarray(Image.open(path).resize((48, 48), Image.Resampling.BILINEAR)) / 255
        normalised = (squeezed - CLIP_MEAN) / CLIP_STD
        found_picture = split.items[0][0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found_picture, normalised, atol=0.02)  # of bytes, rounded

    capsys.readouterr()
    carft("evaluate", uniform)
    text = capsys.readouterr().out
    assert run_texts.PICTURES_OF_A_SOUP in text and "soup of 2 runs (CARFT) on " in text

    words = ("--alphas", 0, 0.5, 1, "--save", 0.5)
    carft("wise-ft", uniform, "-o", tmp_path / "mix", *words)
    assert run_texts.PICTURES_OF_A_SOUP in capsys.readouterr().out

    rows = json.loads((tmp_path / "mix" / "wise_ft.json").read_text())["alphas"]
    assert rows[2]["splits"] == by_split(evaluated(capsys, uniform))

    half = saved.open_run(tmp_path / "mix" / "model_alpha_0.50.pkl")
    assert half.alpha == 0.5 and half.soup == opened.soup
    assert by_split(evaluated(capsys, half.path)) == rows[1]["splits"]


def test_heads_of_two_scales_are_combined_by_what_they_predict(runs, tmp_path):
    """CARFT's head has the scale in its weights, CLIPood's beside them: 1 and 100."""
    paths = last_of([runs[0], runs[3]])
    carft("soup", *paths, "-o", tmp_path / "out")
    carfts, cliposs = (weights(path) for path in paths)
    assert float(carfts["head_factor"]) == 1 and float(cliposs["head_factor"]) > 10

    run = saved.open_run(tmp_path / "out" / "model_soup_uniform.pkl")

    by_hand = mean_by_hand(paths)
    algorithm = saved.open_run(paths[0]).algorithm
    encoder = {
        name.removeprefix("encoder."): torch.as_tensor(value).float()
        for name, value in by_hand.items()
        if name.startswith("encoder.")
    }
    algorithm.encoder.load_state_dict(encoder)
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = torch.nn.functional.normalize(algorithm.features(x), dim=-1).double()
        expected = features @ torch.as_tensor(by_hand["head.weight"]).T
        expected += torch.as_tensor(by_hand["head.bias"])
        predicted = run.algorithm.predict(x)
    torch.testing.assert_close(predicted.double(), expected, rtol=0, atol=1e-4)
    assert expected.abs().min() > 1  # a head without its scale would give some hundredths


def test_a_folded_head_predicts_the_same(runs):
    run = saved.open_run(runs[3])
    x = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = run.algorithm.predict(x)
        run.algorithm.load_state_dict(merge_weights.fold_head_scale(run.algorithm.state_dict()))
        torch.testing.assert_close(run.algorithm.predict(x), before, rtol=1e-5, atol=1e-4)
    assert float(run.algorithm.head_factor) == 1


@pytest.mark.parametrize("algorithm", ["CLIPZeroShot", "CLIPLinearProbe"])
def test_soups_with_an_original_encoder(runs, tmp_path, algorithm):
    pictures = saved.open_run(runs[0]).args["dataset"]
    job = train_job(tmp_path / "job", pictures, algorithm, *HALF)
    carft("soup", *last_of([runs[0], job]), "-o", tmp_path / "out")
    run = saved.open_run(tmp_path / "out" / "model_soup_uniform.pkl")
    assert run.args["algorithm"] == "CLIPFineTune"

    parts = [weights(runs[0] / "model.pkl"), weights(job / "model.pkl")]
    mean = sum(part["head.weight"] * part["head_factor"] for part in parts) / 2
    torch.testing.assert_close(run.algorithm.head.weight.data, mean, rtol=1e-5, atol=1e-5)


def test_a_soup_describes_itself_without_settings_of_its_runs(runs, tmp_path, capsys):
    paths = last_of([runs[2], runs[0]])  # one that predicts half-way to the original comes first
    carft("soup", *paths, "-o", tmp_path / "out")
    document, contents = made(tmp_path / "out")
    for content, kind in zip(contents, soup.SOUP_FILES):
        assert content["model_hparams"]["wise_alpha"] == 1
        assert (
            not {"seed", "steps", "hparams", "hparams_seed", "output_dir"} & content["args"].keys()
        )
        assert content["soup"]["kind"] == kind
        assert content["soup"]["chosen_by"] == soup.CHOSEN_BY[kind]
        (row,) = (soup_row for soup_row in document["soups"] if soup_row["soup"] == kind)
        assert content["soup"]["in_domain"] == row["in_domain"]
        members = content["soup"]["members"]
        assert [member["run"] for member in members] == row["runs"]
        assert sum(member["weight"] for member in members) == pytest.approx(1)

    members = {member["run"]: member for member in contents[0]["soup"]["members"]}
    assert members[str(paths[0])]["seed"] == 2 and members[str(paths[0])]["step"] == 2
    assert members[str(paths[1])]["algorithm"] == "CARFT"

    file = tmp_path / "out" / "model_soup_uniform.pkl"
    assert evaluated(capsys, file)["soup"] == contents[0]["soup"]

    written = export.export(saved.open_run(file), tmp_path / "soup.pt")
    card = json.loads(written.card.read_text())
    page = written.readme.read_text()
    assert card["run"]["soup"] == contents[0]["soup"] and card["run"]["command"] is None
    assert {"seed", "steps"} <= card["run"].keys()
    assert card["run"]["seed"] is card["run"]["steps"] is card["run"]["step"] is None
    assert not {"lr", "wise_alpha"} & card["run"]["hparams"].keys()
    assert "# soup of 2 runs (CARFT, CLIPWiSEFT) on " in page
    assert "A soup: the mean of the weights" in page and "domainbed.scripts.train" not in page

    for member in contents[0]["soup"]["members"]:
        assert member["sha256"] in page


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "stone"},
        {"members": [{}]},
        {"members": {}},
        {"in_domain": "high"},
        {"chosen_by": 3},
    ],
)
def test_a_file_with_an_invalid_soup_is_refused(uniform, tmp_path, change):
    content = torch.load(uniform, weights_only=True)
    file = tmp_path / uniform.name
    torch.save({**content, "soup": {**content["soup"], **change}}, file)
    with pytest.raises(CarftError, match="its soup is "):
        saved.open_run(file)


def test_runs_that_held_out_other_pictures_are_refused_by_name(runs, tmp_path, capsys):
    runs_to_mix = [runs[0], runs[4]], runs[:1], [*runs[:2], runs[0] / "model_best.pkl"]
    sentences = (
        "differ in test_envs; expected runs",
        "has 1 run, expected at least two",
        "given twice",
    )
    for paths, sentence in zip(runs_to_mix, sentences):
        carft("soup", *paths, "-o", tmp_path / "out", status=1)
        assert sentence in capsys.readouterr().err

    for name, changed, message in (
        ("args", {"trial_seed": 1}, "differ in trial_seed; expected runs"),
        ("args", {"algorithm": "FLYP"}, "is a run of FLYP, whose head"),
        ("args", {"algorithm": "CaRot"}, "is a run of CaRot, whose head"),
        ("model_hparams", {"prompts_digest": "0" * 16}, "differ in prompts_digest; expected runs"),
        ("model_hparams", {"head_init": "random"}, "started from a random head"),
    ):
        opened = [saved.open_run(run) for run in runs[:2]]
        getattr(opened[1], name.removeprefix("model_")).update(changed)
        with pytest.raises(CarftError, match=message):
            soup_members.require_alike(opened)
    assert list(tmp_path.iterdir()) == []


def test_soups_use_the_selected_weights(runs, tmp_path, capsys):
    """Where environments were left out; else, and where there are no others, the last."""
    carft("soup", *runs[:2], "-o", tmp_path / "out")
    document, _ = made(tmp_path / "out")
    assert {row["run"] for row in document["runs"]} == {
        str(run / "model_best.pkl") for run in runs[:2]
    }
    assert cli.main(["export", str(runs[0]), "-o", str(tmp_path / "x.pt")]) == 0

    output = capsys.readouterr().out
    assert f"Weights: model_best.pkl of {runs[0]}, selected by training-domain validation" in output
