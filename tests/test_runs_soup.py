"""`carft soup`: means of runs, chosen by training-domain validation, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from runs_jobs import accuracies_by_split, carft, copy_changed, evaluate_json, load_weights

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import export, saved, soup, soup_members, splits


@pytest.fixture(scope="module")
def runs(pets, tmp_path_factory):
    """Four runs of one start, without records, each with half of its images for validation.

    Heads of CARFT have their scale in the weights, those of the last two beside them.
    """
    place = tmp_path_factory.mktemp("soup")
    files = {
        "last": pets / "CARFT" / "model.pkl",
        "best": pets / "CARFT" / "model_best.pkl",
        "probe": pets / "CLIPLinearProbe" / "model.pkl",
        "zero-shot": pets / "CLIPZeroShot" / "model.pkl",
    }
    half = {"holdout_fraction": 0.5}
    return [
        copy_changed(file, place / name, args=half) / "model.pkl" for name, file in files.items()
    ]


@pytest.fixture(scope="module")
def uniform(runs, tmp_path_factory):
    """The uniform soup of the first two runs, a file."""
    folder = tmp_path_factory.mktemp("uniform") / "out"
    carft("soup", *runs[:2], "-o", folder)
    return folder / "model_soup_uniform.pkl"


def made(folder):
    """The document of a soup, and the content of both of its files."""
    document = json.loads((folder / "soup.json").read_text())
    contents = [torch.load(folder / name, weights_only=True) for name in soup.SOUP_FILES.values()]
    return document, contents


def mean_by_hand(paths):
    """The mean of some runs' weights, with the scale of the head in the head."""
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


def test_soups_are_means_of_the_runs_that_validation_chose(runs, tmp_path, capsys):
    carft("soup", *runs, "-o", tmp_path / "out")
    document, contents = made(tmp_path / "out")
    validation = {row["run"]: row["validation"] for row in document["runs"]}
    by_kind = {row["soup"]: row for row in document["soups"]}
    assert len(by_kind["uniform"]["runs"]) == 4
    assert contents[0]["args"]["algorithm"] == "CLIPFineTune"  # the plainest

    def in_domain(parts):
        """Of the mean of some runs' weights, by `carft evaluate`."""
        torch.save({**contents[0], "model_dict": mean_by_hand(parts)}, tmp_path / "mean.pkl")
        shares = accuracies_by_split(evaluate_json(capsys, tmp_path / "mean.pkl"))
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
        expected = mean_by_hand(row["runs"])
        torch.testing.assert_close(load_weights(path), expected, rtol=1e-6, atol=1e-7)
        assert accuracies_by_split(evaluate_json(capsys, path)) == row["splits"]


def test_the_greedy_soup_adds_runs_that_strictly_improve_it():
    best_first = [SimpleNamespace(name=n, validation=v) for n, v in zip("abcd", (7, 6, 6, 5))]
    accuracies = {"ab": 7, "ac": 8, "acd": 9}

    def accuracy_of(members):
        return accuracies["".join(member.name for member in members)]

    chosen = soup.choose_greedily(best_first, accuracy_of)
    assert [member.name for member in chosen] == ["a", "c", "d"]


def test_the_order_of_the_runs_does_not_change_the_soups(runs, tmp_path):
    """To the bit, whichever run is first: its seed and step once chose the images."""
    carft("soup", *runs[:3], "-o", tmp_path / "1")
    carft("soup", *reversed(runs[:3]), "-o", tmp_path / "2")
    first_document, first_contents = made(tmp_path / "1")
    document, contents = made(tmp_path / "2")
    assert document == first_document

    for content, first in zip(contents, first_contents):
        state = content.pop("model_dict")
        torch.testing.assert_close(state, first.pop("model_dict"), rtol=0, atol=0)
        assert content == first


def test_images_of_a_soup_are_not_augmented(runs, uniform, tmp_path, capsys):
    """A run's are drawn by its seed and step, and a soup has none."""
    opened = saved.open_run(uniform)
    member = saved.open_run(runs[0])
    assert member.image_plan.augmentation is not None
    assert opened.image_plan == member.image_plan.without_augmentation()

    unaugmented = splits.read_data(member, is_augmented=False).splits
    for split, as_trained, expected in zip(
        splits.read_splits(opened), splits.read_splits(member), unaugmented, strict=True
    ):
        assert torch.equal(split.items[0][0], expected.items[0][0])
        assert torch.equal(split.items[0][0], as_trained.items[0][0]) == split.is_target

    words = ("--alphas", 0.5, 1, "--save", 0.5)
    carft("wise-ft", uniform, "-o", tmp_path / "mix", *words)
    rows = json.loads((tmp_path / "mix" / "wise_ft.json").read_text())["alphas"]
    document = evaluate_json(capsys, uniform)
    assert rows[1]["splits"] == accuracies_by_split(document)
    assert (document["transform"], document["title"]) == ("test", "soup of 2 runs (CARFT)")

    half = saved.open_run(tmp_path / "mix" / "model_alpha_0.50.pkl")
    assert half.alpha == 0.5 and half.soup == opened.soup
    assert accuracies_by_split(evaluate_json(capsys, half.path)) == rows[0]["splits"]


def test_a_soup_describes_itself_without_settings_of_its_runs(pets, tmp_path):
    """Made of the selected weights of two jobs."""
    carft("soup", pets / "CARFT", pets / "CLIPLinearProbe", "-o", tmp_path / "out")
    document, contents = made(tmp_path / "out")
    for content, kind in zip(contents, soup.SOUP_FILES):
        assert not {"seed", "steps", "hparams", "hparams_seed"} & content["args"].keys()
        assert content["soup"]["kind"] == kind
        assert content["soup"]["chosen_by"] == soup.CHOSEN_BY[kind]

        (row,) = (soup_row for soup_row in document["soups"] if soup_row["soup"] == kind)
        assert content["soup"]["in_domain"] == row["in_domain"]
        members = content["soup"]["members"]
        assert [member["run"] for member in members] == row["runs"]
        assert sum(member["weight"] for member in members) == pytest.approx(1)

    members = {member["run"]: member for member in contents[0]["soup"]["members"]}
    member = members[str(pets / "CARFT" / "model_best.pkl")]
    best_step = saved.open_run(pets / "CARFT", "best").step
    assert (member["algorithm"], member["seed"], member["step"]) == ("CARFT", 0, best_step)

    run = saved.open_run(tmp_path / "out" / "model_soup_uniform.pkl")
    written = export.export(run, tmp_path / "soup.pt")
    run_facts = json.loads(written.card.read_text())["run"]
    assert run_facts["soup"] == contents[0]["soup"]
    assert all(run_facts[name] is None for name in ("seed", "steps", "step", "command"))
    assert not {"lr", "wise_alpha"} & run_facts["hparams"].keys()

    page = written.readme.read_text()
    assert "# soup of 2 runs (CARFT, CLIPLinearProbe) on " in page
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
def test_a_file_with_an_invalid_soup_is_refused(uniform, tmp_path, change):
    with pytest.raises(CarftError, match="its soup is "):
        saved.open_run(copy_changed(uniform, tmp_path, soup=change))


def test_fewer_than_two_different_runs_make_no_soup(runs, tmp_path, capsys):
    for paths, message in (
        (runs[:1], "has 1 run, expected at least two"),
        ([*runs, runs[0]], "given twice"),
    ):
        carft("soup", *paths, "-o", tmp_path / "out", status=1)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
def test_runs_that_held_out_other_images_are_refused_by_name(runs, part, change, message):
    opened = [saved.open_run(run) for run in runs[:2]]
    getattr(opened[1], part).update(change)
    with pytest.raises(CarftError, match=message):
        soup_members.require_compatible(opened)
