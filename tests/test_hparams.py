"""Defaults, draws and refusals of the hyperparameters."""

import itertools
import json
from pathlib import Path

import pytest
from domainbed import hparams_registry
from domainbed.lib import checks, misc, preparation
from domainbed.scripts import train
from fake_checkout import run_python_with_torch, write_checkout

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.method.hparam_checks import job_problems
from domainbed_carft.sweep import costs, declaration_file

SETS = ["EmojiStyles", "Debug28", "PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"]


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_are_plain_valid_and_round_trip_through_json(algorithm, dataset):
    algorithm_class = getattr(algorithms, algorithm)
    for seed in (None, *range(5)):
        values = algorithms.hparam_values(algorithm, dataset, seed)
        assert all(type(v) in (int, float, bool, str) for v in values.values())
        assert json.loads(json.dumps(values)) == values
        assert job_problems(algorithm_class, (3, 8, 8), values) == []


def test_draws_are_seeded_in_range_and_independent():
    draws = [algorithms.hparam_values("CARFT", "PACS", seed) for seed in range(50)]

    assert len({d["lr"] for d in draws}) == 50
    assert all(1e-6 <= d["lr"] <= 10**-4.5 for d in draws)
    assert all(0.1 <= d["kl_weight"] <= 10 for d in draws)
    assert all(8 <= d["batch_size"] <= 45 for d in draws)

    # the generator of one name is DomainBed's: RandomState(md5(str((seed, name))) mod 2^31)
    import hashlib

    import numpy as np

    seed = int(hashlib.md5(b"(7, 'lr')").hexdigest(), 16) % 2**31

    assert draws[7]["lr"] == 10 ** np.random.RandomState(seed).uniform(-6, -4.5)


def test_defaults_and_draws_on_our_harness_equal_those_on_upstream():
    golden = Path(__file__).parent / "golden" / "upstream" / "hparams_carft.json"
    for dataset, expected in json.loads(golden.read_text()).items():
        assert hparams_registry.default_hparams("CARFT", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("CARFT", dataset, seed) == draw["hparams"]


# The included CLIP on other data sets than its own

TINY = {"clip_backbone": "tiny"}


def chosen(dataset, algorithm="CARFT", seeds=(0, 0), **overrides):
    """The hparams of a job on our harness."""
    words = ["--algorithm", algorithm, "--dataset", dataset, "--hparams", json.dumps(overrides)]
    words += ["--hparams_seed", str(seeds[0]), "--trial_seed", str(seeds[1])]
    return preparation.choose_hparams(train.build_parser().parse_args(words), overrides)


@pytest.mark.parametrize("dataset", ["./pets", "PACS"])
@pytest.mark.parametrize("algorithm", ["CARFT", "CLIPLinearProbe"])
def test_tiny_changes_only_learning_rate_and_batch_size(dataset, algorithm):
    usual = chosen(dataset, algorithm)
    with_tiny = chosen(dataset, algorithm, **TINY)
    on_its_own = chosen("EmojiStyles", algorithm)
    changed = {name for name in usual if usual[name] != with_tiny[name]}

    assert changed == {"clip_backbone", "lr", "batch_size"}
    assert all(with_tiny[name] == on_its_own[name] for name in ("lr", "batch_size"))
    assert with_tiny["total_steps"] == 5001

    set_by_hand = chosen(dataset, algorithm, **TINY, lr=1e-5, batch_size=3)
    assert set_by_hand["lr"] == 1e-5 and set_by_hand["batch_size"] == 3


def test_learning_rates_of_tiny_are_drawn_from_its_own_range():
    for seed in range(1, 9):
        with_tiny = chosen("./pets", seeds=(seed, 1), **TINY)
        assert with_tiny["lr"] == chosen("EmojiStyles", seeds=(seed, 1))["lr"]
        assert 10**-4.5 <= with_tiny["lr"] <= 1e-3
        usual = chosen("./pets", seeds=(seed, 1))
        assert {n for n in with_tiny if with_tiny[n] != usual[n]} == {"clip_backbone", "lr"}


def test_other_clips_and_algorithms_imply_no_hparams():
    assert chosen("./pets", clip_backbone="RN50")["lr"] == 5e-6
    usual = chosen("EmojiStyles", clip_backbone="ViT-B/16")
    assert (usual["lr"], usual["batch_size"], usual["contexts"]) == (5e-6, 32, "emoji")
    assert algorithms.CARFT.implied_hparams("EmojiStyles", TINY, None) == {}
    assert chosen("./pets", "ERM")["lr"] == 5e-5


@pytest.mark.parametrize(
    "algorithm, unread",
    [
        ("CARFT", []),
        ("CLIPFineTune", ["kl_weight"]),
        ("CLIPLinearProbe", ["kl_weight", "sp_weight", "kl_direction"]),
        ("CLIPZeroShot", ["kl_weight", "sp_weight", "kl_direction", "lr"]),
        ("FLYP", ["kl_weight", "sp_weight", "kl_direction"]),
        ("CaRot", ["kl_weight", "sp_weight", "kl_direction"]),
        ("ERM", []),
    ],
)
def test_hparams_that_an_algorithm_does_not_read_are_named(algorithm, unread):
    words = ["--algorithm", algorithm, "--dataset", "PACS"]
    args = train.build_parser().parse_args(words)
    names = ["kl_weight", "sp_weight", "kl_direction", "lr", "batch_size", "clip_digest"]
    names += ["data_augmentation", "shots"]
    assert preparation.unread_hparams(args, dict.fromkeys(names)) == unread


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_refuses_an_unknown_direction_of_the_kl(algorithm):
    given = {"kl_direction": "forward"}
    (problem,) = checks.hparams_problems(given, algorithm, "EmojiStyles", None)
    assert problem.startswith("kl_direction is 'forward', expected one of 'original||fine-tuned'")


def test_costs_use_tinys_batch_size_and_job_identities_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for domain, number in itertools.product("abc", "01"):
        folder = tmp_path / "pets" / domain / number
        folder.mkdir(parents=True)
        (folder / "x.png").touch()

    text = "name: x\ndatasets: [./pets]\nalgorithms: [CARFT]\ntrials: 1\nsteps: 10\n"
    declaration = declaration_file.parse(text + "hparams: {clip_backbone: tiny}\n", "x.yaml")
    job = declaration.jobs("D", tmp_path)[0]

    assert job.args["hparams"] == '{"clip_backbone": "tiny"}'
    assert costs.job_cost(job, declaration.facts["./pets"]).trained == 10 * 16 * 2


def test_a_checkouts_job_names_once_the_hparams_to_add(tmp_path):
    code = """
import json, sys
from domainbed import hparams_registry
ask = hparams_registry.default_hparams
print(json.dumps([ask("CARFT", sys.argv[1])["lr"], ask("CARFT", sys.argv[1])["batch_size"]]))
"""
    root = write_checkout(tmp_path / "checkout", "classic")

    def default_values(dataset, **overrides):
        words = ["-c", code, dataset, "--hparams", json.dumps(overrides)]
        done = run_python_with_torch(*words, cwd=root)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    values, stderr = default_values("Pets", **TINY, kl_weight=3)

    assert values == [5e-6, 32]  # a function of its arguments alone

    added = {**TINY, "kl_weight": 3, "lr": 3e-4, "batch_size": 16}
    assert stderr.count(f"Run with --hparams '{json.dumps(added)}'") == 1
    for dataset, overrides in (("Pets", added), ("EmojiStyles", TINY), ("Pets", {})):
        assert default_values(dataset, **overrides)[1] == ""


def test_swad_is_refused_by_name_in_a_checkout(tmp_path):
    """Whose training hands no validation loss over."""
    root = write_checkout(tmp_path / "checkout", "classic")
    words = (
        "-m domainbed.scripts.train --algorithm CARFT --dataset EmojiStyles --test_envs 1".split()
    )
    words += ["--output_dir", str(tmp_path / "job"), "--data_dir", str(tmp_path)]
    done = run_python_with_torch(*words, "--hparams", '{"average": "swad"}', cwd=root)
    assert done.returncode != 0
    assert "average is 'swad', expected 'none', 'sma', 'ema' or 'beta' in this Dom" in done.stderr
    assert "for SWAD train where domainbed is this package's own" in done.stderr
