"""`carft soup`: means of runs, chosen by training-domain validation, and what is refused."""

import json

import pytest
import torch
from runs_jobs import by_split, carft, evaluated, train_job, weights, write_pictures

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved, soup


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of one start, and one that left another environment out."""
    place = tmp_path_factory.mktemp("soup")
    pictures = write_pictures(place / "noise")
    made = [
        train_job(place / f"{name} {seed}", pictures, name, "--seed", str(seed), lr=lr)
        for name, seed, lr in (("CARFT", 0, 1e-3), ("CARFT", 1, 3e-3), ("CLIPFineTune", 2, 1e-4))
    ]
    return [*made, train_job(place / "other", pictures, "CARFT", test_envs=("1",))]


def test_the_soups_are_the_means_of_what_validation_chose(runs, tmp_path, capsys):
    carft("soup", *runs[:3], "-o", tmp_path / "out")
    document = json.loads((tmp_path / "out" / "soup.json").read_text())
    validation = {one["run"]: one["validation"] for one in document["runs"]}
    # All runs see the pictures as the first saw them: what an augmentation draws depends on a seed.
    last = json.loads((runs[0] / "results.jsonl").read_text().splitlines()[-1])
    recorded = (last["env1_out_acc"] + last["env2_out_acc"]) / 2
    assert validation[str(runs[0] / "model.pkl")] == pytest.approx(recorded)
    by_kind = {one["soup"]: one for one in document["soups"]}
    assert len(by_kind["uniform"]["runs"]) == 3

    def in_domain(parts):
        """Of the mean of some runs' weights, by `carft evaluate`."""
        content = torch.load(runs[0] / "model.pkl", weights_only=True)
        states = [weights(run) for run in parts]
        content["model_dict"] = {n: sum(s[n] for s in states) / len(states) for n in states[0]
                                 if n != "words"} | {"words": states[0]["words"]}  # fmt: skip
        torch.save(content, tmp_path / "mean.pkl")
        found = by_split(evaluated(capsys, tmp_path / "mean.pkl"))
        return (found["env1_out"] + found["env2_out"]) / 2

    chosen, best = [], -1.0
    for run in sorted(validation, key=lambda run: -validation[run]):
        if (reached := in_domain([*chosen, run])) > best:
            chosen, best = [*chosen, run], reached
    assert by_kind["greedy"]["runs"] == chosen
    assert by_kind["greedy"]["in_domain"] == pytest.approx(best)
    for kind, one in by_kind.items():
        path = tmp_path / "out" / f"model_soup_{kind}.pkl"
        parts = [weights(run) for run in one["runs"]]
        for name, found in weights(path).items():
            expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
        assert by_split(evaluated(capsys, path)) == one["splits"]
    assert saved.open_run(tmp_path / "out" / "model_soup_uniform.pkl").step is None


def test_runs_that_held_out_other_pictures_are_refused_by_name(runs, tmp_path, capsys):
    given = [runs[0], runs[3]], runs[:1], [*runs[:2], runs[0] / "model.pkl"]
    told = ("differ in test_envs; expected runs", "has 1 run, expected at least two", "given twice")
    for paths, sentence in zip(given, told):
        carft("soup", *paths, "-o", tmp_path / "out", status=1)
        assert sentence in capsys.readouterr().err
    for name, changed, told in (
        ("args", {"trial_seed": 1}, "differ in trial_seed; expected runs"),
        ("args", {"algorithm": "FLYP"}, "is a run of FLYP, whose head"),
        ("model_hparams", {"prompts_digest": "0" * 16}, "differ in prompts_digest; expected runs"),
        ("model_hparams", {"head_init": "random"}, "started from a random head"),
    ):
        opened = [saved.open_run(run) for run in runs[:2]]
        getattr(opened[1], name.removeprefix("model_")).update(changed)
        with pytest.raises(CarftError, match=told):
            soup.require_alike(opened)
    assert list(tmp_path.iterdir()) == []
