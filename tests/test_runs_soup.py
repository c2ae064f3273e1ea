"""`carft soup`: means of runs, chosen by training-domain validation, and errors."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from runs_jobs import accuracies_by_split, carft, copy_changed, evaluate_json, load_weights

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import export, saved, soup, soup_members, splits


@pytest.fixture(scope="module")
def runs(pets, tmp_path_factory):
    """Four weights files of runs with equal starts and splits, without records.

    The head's scale is in the weights of CARFT, and a separate tensor in the last two runs.
    """
    place = tmp_path_factory.mktemp("soup")
    files = {
        "last": pets / "CARFT" / "model.pkl",
        "best": pets / "CARFT" / "model_best.pkl",
        "probe": pets / "CLIPLinearProbe" / "model.pkl",
        "zero-shot": pets / "CLIPZeroShot" / "model.pkl",
    }
    return [
        copy_changed(file, place / name, args={"holdout_fraction": 0.5}) / "model.pkl"
        for name, file in files.items()
    ]


@pytest.fixture(scope="module")
def uniform(runs, tmp_path_factory):
    """The weights file of the uniform soup of the first two runs."""
    folder = tmp_path_factory.mktemp("uniform") / "out"
    carft("soup", *runs[:2], "-o", folder)
    return folder / "model_soup_uniform.pkl"


def read_soups(folder):
    """Return the document of a soup, and the content of both of its files."""
    document = json.loads((folder / "soup.json").read_text())
    contents = [torch.load(folder / name, weights_only=True) for name in soup.SOUP_FILES.values()]
    return document, contents


def compute_mean(paths):
    """Return the mean of the weights of some runs, with the scale of the head in its weights."""
    states = [load_weights(path) for path in paths]
    for state in states:
        state["head.weight"] = state["head.weight"].double() * state["head_factor"].double()
        state["head_factor"] = torch.tensor(1.0)

    means = {}
    for name, tensor in states[0].items():
        means[name] = tensor
        if tensor.is_floating_point():
            means[name] = sum(state[name].double() for state in states).float() / len(states)
    return means


def test_soups_are_means_of_runs_chosen_by_validation(runs, tmp_path, capsys):
    carft("soup", *runs, "-o", tmp_path / "out")
    document, contents = read_soups(tmp_path / "out")
    by_kind = {kind: scores["soup"] for kind, scores in document.items()}
    runs_by_kind = {
        kind: [member["run"] for member in row["members"]] for kind, row in by_kind.items()
    }
    validation = {row["run"]: row["validation"] for row in by_kind["uniform"]["members"]}
    assert contents[0]["args"]["algorithm"] == "CLIPFineTune"

    def measure_in_domain(paths):
        """Return the in-domain accuracy, by `carft evaluate`, of the mean of some runs."""
        torch.save({**contents[0], "model_dict": compute_mean(paths)}, tmp_path / "mean.pkl")
        shares = accuracies_by_split(evaluate_json(capsys, tmp_path / "mean.pkl"))
        return (shares["env1_out"] + shares["env2_out"]) / 2

    path, accuracy = max(validation.items())
    assert measure_in_domain([path]) == pytest.approx(accuracy)
    assert sorted(runs_by_kind["uniform"]) == sorted(map(str, runs))
    assert runs_by_kind["greedy"][0] == max(validation, key=validation.get)
    in_domain = by_kind["greedy"]["in_domain"]
    assert in_domain == pytest.approx(measure_in_domain(runs_by_kind["greedy"]))

    for kind, scores in document.items():
        path = tmp_path / "out" / f"model_soup_{kind}.pkl"
        expected = compute_mean(runs_by_kind[kind])
        torch.testing.assert_close(load_weights(path), expected, rtol=1e-6, atol=1e-7)
        evaluated = evaluate_json(capsys, path)
        assert accuracies_by_split(evaluated) == accuracies_by_split(scores)
        assert evaluated["soup"] == scores["soup"] and evaluated["title"] == scores["title"]


def test_description_has_the_accuracies_in_and_out_of_domain(runs, pets, tmp_path):
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    cats, dogs = data / "art" / "cat", data / "art" / "wild dog"  # of the target
    cats.rename(tmp_path / "cats")
    dogs.rename(cats)
    (tmp_path / "cats").rename(dogs)
    carft("soup", *runs[:2], "-o", tmp_path / "out", "--data_dir", data)
    for scores in read_soups(tmp_path / "out")[0].values():
        assert (scores["soup"]["in_domain"], scores["soup"]["out_of_domain"]) == (1.0, 0.0)


def test_greedy_soup_adds_only_runs_that_strictly_improve_it():
    best_first = [SimpleNamespace(name=n, validation=v) for n, v in zip("abcd", (7, 6, 6, 5))]
    accuracies = {"ab": 7, "ac": 8, "acd": 9}

    def get_accuracy(members):
        return accuracies["".join(member.name for member in members)]

    chosen = soup.choose_greedily(best_first, get_accuracy)
    assert [member.name for member in chosen] == ["a", "c", "d"]


def test_order_of_the_runs_does_not_change_the_soups(runs, tmp_path):
    carft("soup", *runs[:2], "-o", tmp_path / "1")
    carft("soup", *reversed(runs[:2]), "-o", tmp_path / "2")
    first_document, first_contents = read_soups(tmp_path / "1")
    document, contents = read_soups(tmp_path / "2")
    assert document == first_document

    for content, first in zip(contents, first_contents):
        state = content.pop("model_dict")
        torch.testing.assert_close(state, first.pop("model_dict"), rtol=0, atol=0)
        assert content == first


def test_images_of_a_soup_are_not_augmented(runs, uniform, tmp_path, capsys):
    """The augmentation depends on seed and step, which a soup does not have."""
    opened = saved.load_run(uniform, device="cpu")
    member = saved.load_run(runs[0], device="cpu")
    assert member.image_plan.augmentation is not None
    assert opened.image_plan == member.image_plan.without_augmentation()

    unaugmented = splits.read_data(member, is_augmented=False).splits
    for split, as_trained, expected in zip(
        splits.read_data(opened).splits, splits.read_data(member).splits, unaugmented, strict=True
    ):
        assert torch.equal(split.items[0][0], expected.items[0][0])
        assert torch.equal(split.items[0][0], as_trained.items[0][0]) == split.is_target


def test_wise_ft_of_a_soup_keeps_its_description(uniform, tmp_path, capsys):
    carft("wise-ft", uniform, "-o", tmp_path / "mix", "--alphas", 0.5, 1, "--save", 0.5)
    rows = json.loads((tmp_path / "mix" / "wise_ft.json").read_text())
    document = evaluate_json(capsys, uniform)
    assert accuracies_by_split(rows[1]) == accuracies_by_split(document)
    assert (document["transform"], document["title"]) == ("test", "soup of 2 runs (CARFT)")

    half = saved.load_run(tmp_path / "mix" / "model_alpha_0.50.pkl", device="cpu")
    assert half.alpha == 0.5 and half.soup == saved.load_run(uniform, device="cpu").soup
    assert accuracies_by_split(evaluate_json(capsys, half.path)) == accuracies_by_split(rows[0])


def test_soup_describes_its_members_without_their_training_settings(pets, tmp_path):
    carft("soup", pets / "CARFT", pets / "CLIPLinearProbe", "-o", tmp_path / "out")
    document, contents = read_soups(tmp_path / "out")
    for content, (kind, scores) in zip(contents, document.items(), strict=True):
        assert not {"seed", "steps", "hparams", "hparams_seed"} & content["args"].keys()
        description = content["soup"]
        assert description == scores["soup"] and description["kind"] == kind
        assert description["in_domain"] == scores["means"]["in_domain"]
        assert sum(member["weight"] for member in description["members"]) == pytest.approx(1)

    members = {member["run"]: member for member in contents[0]["soup"]["members"]}
    member = members[str(pets / "CARFT" / "model_best.pkl")]
    best_step = saved.load_run(pets / "CARFT", "best", device="cpu").step
    assert (member["algorithm"], member["seed"], member["step"]) == ("CARFT", 0, best_step)

    files = export.export(tmp_path / "out" / "model_soup_uniform.pkl", tmp_path / "soup.pt")
    run = json.loads(files.card.read_text())["run"]
    assert run["soup"] == contents[0]["soup"]
    assert all(run[name] is None for name in ("seed", "steps", "step", "command"))
    assert not {"lr", "wise_alpha"} & run["hparams"].keys()
    page = files.readme.read_text()
    assert all(member["sha256"] in page for member in members.values())


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
def test_invalid_description_of_a_soup_is_an_error(uniform, tmp_path, change):
    with pytest.raises(CarftError, match="its soup is "):
        saved.load_run(copy_changed(uniform, tmp_path, soup=change), device="cpu")


@pytest.mark.parametrize(
    ("indices", "message"), [([0], "got 1 run, expected at least"), ([0, 1, 0], "listed twice")]
)
def test_soup_needs_two_different_runs(runs, tmp_path, capsys, indices, message):
    carft("soup", *(runs[index] for index in indices), "-o", tmp_path / "out", status=1)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_soup_of_no_runs_is_an_error():
    with pytest.raises(CarftError, match="got 0 runs, expected at least two"):
        soup.soup([])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("args", {"test_envs": [1]}, "differ in test_envs; expected runs"),
        ("args", {"trial_seed": 1}, "differ in trial_seed; expected runs"),
        ("args", {"algorithm": "FLYP"}, "is a run of FLYP, whose head"),
        ("args", {"algorithm": "CaRot"}, "is a run of CaRot, whose head"),
        ("hparams", {"prompts_digest": "0" * 16}, "differ in prompts_digest; expected runs"),
        ("hparams", {"head_init": "random"}, "started from a random head"),
    ],
)
def test_incompatible_runs_are_an_error(runs, part, change, message):
    opened = [saved.load_run(run, device="cpu") for run in runs[:2]]
    getattr(opened[1], part).update(change)
    with pytest.raises(CarftError, match=message):
        soup_members.require_compatible(opened)
