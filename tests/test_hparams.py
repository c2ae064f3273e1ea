"""Defaults, draws and refusals of the hyperparameters."""

import json
from pathlib import Path
from types import SimpleNamespace

import domainbed
import pytest
from domainbed import hparams_registry
from domainbed.lib import checks, misc, preparation
from domainbed.scripts import train
from fake_checkout import run_python, write_checkout

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.method.hparams import Conditions

# On a benchmark, what a method has otherwise than fine-tuning; most of it is published.
PUBLISHED = {
    "CARFT": {"lr": 5e-6, "weight_decay": 0.1, "kl_weight": 1.0, "warmup_steps": 0},
    "CLIPLinearProbe": {"lr": 5e-5},
    "CLIPood": {"average": "beta", "beta": 0.5, "margin": 0.3},
    "CLIPWiSEFT": {"wise_alpha": 0.5},
    "CLIPLPFT": {"lp_steps": 500},
    "CLIPL2SP": {"sp_weight": 0.5, "weight_decay": 0.0},
    "CLIPFeatureDistillation": {"fd_weight": 1.0},
    "LDIFS": {"ldifs_weight": 10.0, "ldifs_axis": "channel"},
    "LipsumFT": {"lipsum_weight": 1.0, "weight_decay": 0.0},
    "CLIPMIRO": {"miro_weight": 1.0, "weight_decay": 0.0},
    "FLYP": {"flyp_targets": "same-class"},
    "CaRot": {"lr": 1e-5, "carot_distillation": 1.5, "carot_orthogonality": 0.2},
    "CLIPLoRA": {"lr": 2e-4, "weight_decay": 0.01, "lora_rank": 2, "lora_dropout": 0.25},
    "StarFT": {"kl_weight": 0.5, "starft_rows": "other-captions"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_method_has_the_defaults_of_its_recipe(name):
    values = algorithms.hparam_values(name, "PACS")
    assert {key: values[key] for key in PUBLISHED[name]} == PUBLISHED[name]


# The smallest and the largest value of the random search on a benchmark.
RANGES = {
    "lr": (1e-6, 10**-4.5),
    "weight_decay": (1e-3, 1),
    "batch_size": (8, 45),
    "kl_weight": (0.1, 10),
    "margin": (10**-1.3, 1),
    "wise_alpha": (0.2, 0.9),
    "sp_weight": (1e-3, 10),
    "fd_weight": (0.1, 100),
    "ldifs_weight": (1, 100),
    "lipsum_weight": (0.1, 10),
    "miro_weight": (0.01, 1),
    "carot_distillation": (0.1, 10),
    "carot_orthogonality": (0.01, 1),
}
TEN_TIMES_THE_RATE = ("CLIPLinearProbe", "CLIPLoRA")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_hyperparameter_is_drawn_from_its_range(name):
    smallest, largest = (
        SimpleNamespace(uniform=lambda *ends, end=end: ends[end]) for end in (0, 1)
    )
    conditions = Conditions("PACS")
    for hparam in getattr(algorithms, name).hparams_by_name().values():
        if hparam.draw:
            ends = [hparam.draw(drawn, conditions) for drawn in (smallest, largest)]
            factor = 10 if name in TEN_TIMES_THE_RATE and hparam.name == "lr" else 1
            assert ends == pytest.approx([factor * end for end in RANGES[hparam.name]])


def test_defaults_and_draws_on_our_harness_equal_those_on_upstream():
    golden = Path(__file__).parent / "golden" / "upstream" / "hparams_carft.json"
    for dataset, expected in json.loads(golden.read_text()).items():
        assert hparams_registry.default_hparams("CARFT", dataset) == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("CARFT", dataset, seed) == draw["hparams"]


# The included CLIP on other datasets than its own

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
    assert preparation.unused_hparams(args, dict.fromkeys(names)) == unread


@pytest.mark.slow
def test_a_checkouts_job_names_once_the_hparams_to_add(tmp_path):
    code = """
import sys
from domainbed import hparams_registry
for name in ("lr", "batch_size"):
    print(hparams_registry.default_hparams("CARFT", sys.argv[1])[name])
"""
    root = write_checkout(tmp_path / "checkout", "classic")
    added = {**TINY, "kl_weight": 3, "lr": 3e-4, "batch_size": 16}
    for overrides, count in (({**TINY, "kl_weight": 3}, 1), (added, 0)):
        done = run_python("-c", code, "Pets", "--hparams", json.dumps(overrides), cwd=root)
        assert done.stdout.split() == ["5e-06", "32"], done.stderr  # by its arguments alone
        assert done.stderr.count(f"Run with --hparams '{json.dumps(added)}'") == count


def test_swad_is_refused_by_name_in_a_checkout(monkeypatch):
    """Whose training hands no validation loss over."""
    monkeypatch.setattr(domainbed, "IS_CARFT_HARNESS", False)
    (problem,) = algorithms.CARFT.hparam_problems("PACS", {"average": "swad"})
    assert "average is 'swad', expected 'none', 'sma', 'ema' or 'beta' in this Dom" in str(problem)


# What the checks before a job know of it: its steps, the facts it may demand


def problems(algorithm, hparams, steps=None):
    return [*map(str, checks.hparams_problems(hparams, algorithm, "EmojiStyles", steps))]


def test_facts_may_be_demanded_of_our_algorithms_only():
    demands = {"data_edition": "unchecked", "prompts_digest": "0123456789abcdef"}
    assert problems("CARFT", demands) == []
    (problem, _) = problems("ERM", demands)
    assert "no hyperparameter of ERM is called 'data_edition'" in problem


def test_a_warm_up_has_to_fit_into_the_steps_of_the_job():
    warm_up = {"warmup_steps": 110}  # the dataset's own steps are 101
    assert problems("CARFT", warm_up, steps=120) == []
    (problem,) = problems("CARFT", warm_up)
    assert "expected less than total_steps = 101" in problem
    (problem,) = problems("CARFT", warm_up, steps=50)
    assert "expected less than total_steps = 50" in problem

    # A sweep has one warm-up for all its algorithms, and zero-shot CLIP takes a single step.
    assert problems("CLIPZeroShot", {**warm_up, "average": "sma"}, steps=1) == []
