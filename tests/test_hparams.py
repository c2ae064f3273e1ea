"""Defaults, draws and checks of the hyperparameters."""

import json
from pathlib import Path
from types import SimpleNamespace

import domainbed
import pytest
import torch
from domainbed import datasets, hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.lib import misc, train_arguments
from fake_checkout import REPO, run_python, write_checkout

from domainbed_carft.checks.subject import Subject, minibatches, take_step
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.jobs.hparams import get_draw_seed
from domainbed_carft.method import algorithms, hparams
from domainbed_carft.method.hparams import Conditions
from domainbed_carft.method.resolution import find_changed_hparams, get_hparams
from domainbed_carft.plugin.foreign_jobs import make_foreign_class

# Defaults on a benchmark that differ from fine-tuning; most of them are published.
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
def test_method_has_its_published_defaults(name):
    values = algorithms.hparam_values(name, "PACS")
    assert {key: values[key] for key in PUBLISHED[name]} == PUBLISHED[name]


# No module but the method's own is imported before.
RECORDED_BY_CARFT = """
import json
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.resolution import get_recorded_hparams
print(json.dumps([*get_recorded_hparams(CARFT)]))
"""


def test_records_have_hparams_of_all_methods_whichever_modules_were_imported():
    variables = {"DOMAINBED_CARFT_DISABLE": "1", "OMP_NUM_THREADS": "1"}  # the plugin imports all
    path = [REPO, REPO / "third_party"]
    code = RECORDED_BY_CARFT
    done = run_python("-W", "ignore", "-c", code, cwd=REPO, path=path, **variables)
    assert done.returncode == 0, done.stderr
    recorded = json.loads(done.stdout)
    assert {"margin", "lp_steps", "starft_rows", "kl_weight"} <= {*recorded}
    assert sorted(recorded) == sorted(algorithms.recorded_hparams("CARFT"))


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
def test_hyperparameters_are_drawn_from_their_ranges(name):
    smallest, largest = (
        SimpleNamespace(uniform=lambda *ends, end=end: ends[end]) for end in (0, 1)
    )
    conditions = Conditions("PACS")
    for hparam in get_hparams(getattr(algorithms, name)).values():
        if hparam.draw:
            ends = [hparam.draw(drawn, conditions) for drawn in (smallest, largest)]
            factor = 10 if name in TEN_TIMES_THE_RATE and hparam.name == "lr" else 1
            assert ends == pytest.approx([factor * end for end in RANGES[hparam.name]])


def test_defaults_and_draws_in_the_harness_equal_upstream():
    golden = Path(__file__).parent / "golden" / "upstream" / "hparams_carft.json"
    for dataset, expected in json.loads(golden.read_text()).items():
        assert hparams_registry.default_hparams("CARFT", dataset) == expected["default"]
        assert algorithms.CARFT.resolve_hparams(dataset, {}).values == expected["default"]
        for draw in expected["random"]:
            seed = misc.seed_hash(*draw["seeds"])
            assert hparams_registry.random_hparams("CARFT", dataset, seed) == draw["hparams"]
            assert algorithms.CARFT.resolve_hparams(dataset, {}, seed).values == draw["hparams"]


# The embedded CLIP model on other datasets than its default

TINY = {"clip_backbone": "tiny"}


def choose(dataset, algorithm="CARFT", seeds=(0, 0), **overrides):
    """Return the hparams of a job in the harness."""
    seed = get_draw_seed({"hparams_seed": seeds[0], "trial_seed": seeds[1]})
    harness_class = domainbed.algorithms.get_algorithm_class(algorithm)
    return harness_class.resolve_hparams(dataset, overrides, seed).values


@pytest.mark.parametrize("dataset", ["./pets", "PACS"])
@pytest.mark.parametrize("algorithm", ["CARFT", "CLIPLinearProbe"])
def test_tiny_changes_only_learning_rate_and_batch_size(dataset, algorithm):
    usual = choose(dataset, algorithm)
    with_tiny = choose(dataset, algorithm, **TINY)
    emoji = choose("EmojiStyles", algorithm)
    changed = {name for name in usual if usual[name] != with_tiny[name]}

    assert changed == {"clip_backbone", "lr", "batch_size"}
    assert all(with_tiny[name] == emoji[name] for name in ("lr", "batch_size"))
    assert with_tiny["total_steps"] == 5001

    user_hparams = choose(dataset, algorithm, **TINY, lr=1e-5, batch_size=3)
    assert user_hparams["lr"] == 1e-5 and user_hparams["batch_size"] == 3


def test_tiny_changes_only_the_draw_of_the_learning_rate():
    for seed in range(1, 9):
        with_tiny = choose("./pets", seeds=(seed, 1), **TINY)
        assert 10**-4.5 <= with_tiny["lr"] <= 1e-3
        usual = choose("./pets", seeds=(seed, 1))
        assert {n for n in with_tiny if with_tiny[n] != usual[n]} == {"clip_backbone", "lr"}


@pytest.mark.parametrize(
    ("algorithm", "dataset", "overrides", "expected"),
    [
        ("CARFT", "PACS", {}, []),
        ("CARFT", "OfficeHome", {"lr": 1e-5, "kl_weight": 1}, []),
        ("CARFT", "PACS", {"lr": 1e-5, "lora_rank": 4}, ["lr", "lora_rank"]),
        ("CARFT", "PACS", {"shots": 16, "class_balanced": True}, ["class_balanced", "shots"]),
        # Neither rounding, nor measurements, nor other methods' weights change the result.
        ("CARFT", "PACS", {"compile_blocks": True, "micro_batch": 8, "drift_every": 0}, []),
        ("CLIPFineTune", "PACS", {"kl_weight": 3}, []),
        ("CLIPZeroShot", "PACS", {"lr": 1, "contexts": "emoji"}, ["contexts"]),
        ("CARFT", "PACS", {"total_steps": 7}, []),
        ("CARFT", "DTD", {"lr": 1}, None),  # its class names do not name the dataset
    ],
)
def test_changed_hparams_differ_from_the_defaults_and_change_the_result(
    algorithm, dataset, overrides, expected
):
    hparams = choose(dataset, algorithm, **overrides)
    assert find_changed_hparams(getattr(algorithms, algorithm), hparams) == expected


def test_changed_hparams_contain_what_was_drawn():
    names = find_changed_hparams(algorithms.CARFT, choose("PACS", seeds=(1, 0)))
    assert names == ["lr", "weight_decay", "batch_size", "kl_weight"]


def test_other_clip_models_and_algorithms_imply_no_hparams():
    assert choose("./pets", clip_backbone="RN50")["lr"] == 5e-6
    usual = choose("EmojiStyles", clip_backbone="ViT-B/16")
    assert (usual["lr"], usual["batch_size"], usual["contexts"]) == (5e-6, 32, "emoji")
    assert choose("EmojiStyles", **TINY) == choose("EmojiStyles")
    assert choose("./pets", "ERM")["lr"] == 5e-5


UNUSED_BY_A_PROBE = ["kl_weight", "sp_weight", "kl_direction", "context_scale"]
OF_BLOCKS = ["compile_blocks", "checkpoint_blocks"]
OF_LORA = ["lora_rank", "lora_alpha", "lora_dropout", "lora_scaling"]


@pytest.mark.parametrize(
    "algorithm, unused",
    [
        ("CARFT", []),
        ("CLIPFineTune", ["kl_weight"]),
        ("CLIPLinearProbe", [*UNUSED_BY_A_PROBE, "head_scale", *OF_BLOCKS, *OF_LORA]),
        (
            "CLIPZeroShot",
            [*UNUSED_BY_A_PROBE, "lr", "head_init", "head_scale", *OF_BLOCKS, *OF_LORA],
        ),
        ("CLIPood", ["kl_weight", "head_init", "head_scale"]),
        ("CLIPLoRA", ["kl_weight", "head_init", "head_scale"]),
        ("FLYP", [*UNUSED_BY_A_PROBE, "head_init", "head_scale", *OF_LORA]),
        ("CaRot", [*UNUSED_BY_A_PROBE, "head_init", "head_scale", *OF_LORA]),
        ("ERM", []),
    ],
)
def test_unused_hparams_of_an_algorithm_are_listed(algorithm, unused):
    names = [*UNUSED_BY_A_PROBE, "lr", "batch_size", "clip_digest", "data_augmentation", "shots"]
    names += ["head_init", "head_scale", *OF_BLOCKS, *OF_LORA]
    resolved = get_algorithm_class(algorithm).resolve_hparams("PACS", dict.fromkeys(names))
    assert [*resolved.unread] == unused


@pytest.mark.parametrize("name", ["CLIPLinearProbe", "CLIPZeroShot", "CLIPood", "CLIPLoRA", "FLYP"])
def test_unused_hparams_change_no_weight(name):
    other_values = {"head_init": "random", "head_scale": "outside", "context_scale": 7.0}
    other_values |= {"lora_alpha": 3.0, "lora_dropout": 0.5, "kl_direction": "fine-tuned||original"}
    algorithm_class = getattr(algorithms, name)
    unused = algorithm_class.resolve_hparams("PACS", other_values).unread
    outcomes = []
    for given in ({}, {name: other_values[name] for name in unused}):
        algorithm = Subject(algorithm_class, given).build()
        measured = [take_step(algorithm, step, minibatches(step)) for step in range(2)]
        outcomes.append((measured, algorithm.state_dict()))

    (measured, weights), (expected, expected_weights) = outcomes
    assert measured == expected
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


class OwnTerm(algorithms.CLIPLinearProbe):
    """A method whose own loss uses a hyperparameter that is unused by its base class."""

    HPARAMS = tuple(hparam for hparam in hparams.COMMON if hparam.name == "context_scale")


def test_hparams_that_a_method_declares_are_used():
    unread = OwnTerm.resolve_hparams("PACS", {"context_scale": 7.0, "head_scale": "outside"}).unread
    assert [*unread] == ["head_scale"]


@pytest.mark.slow
def test_job_in_a_checkout_prints_missing_implied_hparams_once(tmp_path):
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
        assert done.stdout.split() == ["5e-06", "32"], done.stderr
        assert done.stderr.count(f"Run with --hparams '{json.dumps(added)}'") == count


def test_swad_is_rejected_in_a_checkout():
    in_checkout = make_foreign_class(algorithms.CARFT, "domainbed.algorithms")
    (problem,) = in_checkout.resolve_hparams("PACS", {"average": "swad"}).problems
    assert "average is 'swad', expected 'none', 'sma', 'ema' or 'beta' in this Dom" in str(problem)


# Checks before a job


def problems(algorithm, hparams, steps=None):
    algorithm_class = get_algorithm_class(algorithm)
    resolved = algorithm_class.resolve_hparams("EmojiStyles", hparams, steps=steps)
    return [*map(str, resolved.problems)]


def test_facts_can_be_pinned_only_for_algorithms_of_this_package():
    pinned = {"data_edition": "unverified", "prompts_digest": "0123456789abcdef"}
    assert problems("CARFT", pinned) == []
    (problem, _) = problems("ERM", pinned)
    assert "no hyperparameter of ERM is called 'data_edition'" in problem


def test_values_of_other_methods_are_checked():
    assert problems("CLIPFineTune", {"kl_weight": 2}) == []
    assert problems("CLIPFineTune", {"kl_weight": -1}) == [
        "kl_weight is -1, expected a number >= 0"
    ]


def test_warm_up_must_be_shorter_than_the_job():
    warm_up = {"warmup_steps": 110}  # the dataset's default is 101 steps
    assert problems("CARFT", warm_up, steps=120) == []
    (problem,) = problems("CARFT", warm_up)
    assert "expected less than total_steps = 101" in problem
    (problem,) = problems("CARFT", warm_up, steps=50)
    assert "expected less than total_steps = 50" in problem

    # A sweep sets one warm-up for all algorithms, and zero-shot CLIP takes a single step.
    assert problems("CLIPZeroShot", {**warm_up, "average": "sma"}, steps=1) == []


def test_schedule_ends_with_the_steps_of_a_dataset_class(monkeypatch):
    """A plugin can add such a class. ``--steps`` overrides its number."""
    short = type("Short", (datasets.Debug28,), {"N_STEPS": 300})
    monkeypatch.setattr(datasets, "Short", short, raising=False)
    words = ["--algorithm", "CARFT", "--dataset", "Short", "--test_envs", "0"]
    names = json.dumps({"class_names": ["cat", "dog"]})
    for further_words, total_steps in (([], 300), (["--steps", "20"], 20)):
        args, flags = train_arguments.parse([*words, "--hparams", names, *further_words])
        assert train_arguments.check(args, flags).values["total_steps"] == total_steps
