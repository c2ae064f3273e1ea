"""Defaults, draws and refusals of the hyperparameters."""

import json

import pytest

from domainbed_carft import hparams
from domainbed_carft.errors import CarftError

SETS = ["EmojiStyles", "Debug28", "PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"]


def defaults(algorithm="CARFT", dataset="PACS"):
    return {name: default for name, (default, _) in hparams.overlay(algorithm, dataset, 0).items()}


@pytest.mark.parametrize("dataset", SETS)
@pytest.mark.parametrize("algorithm", hparams.ALGORITHMS)
def test_values_are_plain_valid_and_survive_json(algorithm, dataset):
    for seed in range(20):
        values = hparams.overlay(algorithm, dataset, seed)
        for index in (0, 1):
            chosen = {name: pair[index] for name, pair in values.items()}
            assert all(type(v) in (int, float, bool, str) for v in chosen.values())
            assert json.loads(json.dumps(chosen)) == chosen
            hparams.check(chosen)


@pytest.mark.parametrize(
    ("dataset", "rate", "backbone"),
    [
        ("PACS", 5e-6, "ViT-B/16"),
        ("OfficeHome", 1e-5, "ViT-B/16"),
        ("DomainNet", 1e-5, "ViT-B/16"),
        ("MyOwnData", 5e-6, "ViT-B/16"),
        ("EmojiStyles", 3e-4, "tiny"),
        ("Debug224", 3e-4, "tiny"),
    ],
)
def test_documented_defaults(dataset, rate, backbone):
    values = defaults(dataset=dataset)
    assert (values["lr"], values["clip_backbone"]) == (rate, backbone)
    assert (values["kl_weight"], values["weight_decay"]) == (1.0, 0.1)
    assert values["class_names"] == f"dataset:{dataset}"


def test_draws_depend_on_the_seed_stay_in_range_and_move_no_other():
    drawn = [
        {n: v for n, (_, v) in hparams.overlay("CARFT", "PACS", seed).items()} for seed in range(50)
    ]
    assert len({d["lr"] for d in drawn}) == 50
    assert all(1e-6 <= d["lr"] <= 10**-4.5 for d in drawn)
    assert all(0.1 <= d["kl_weight"] <= 10 for d in drawn)
    assert all(8 <= d["batch_size"] <= 45 for d in drawn)
    # the generator of one name is DomainBed's: RandomState(md5(str((seed, name))) mod 2^31)
    import hashlib

    import numpy as np

    seed = int(hashlib.md5(b"(7, 'lr')").hexdigest(), 16) % 2**31
    assert drawn[7]["lr"] == 10 ** np.random.RandomState(seed).uniform(-6, -4.5)


def test_every_hparam_says_why():
    for h in hparams.HPARAMS:
        assert len(h.reason) > 20 and h.expected in h.__doc__


def test_all_problems_come_at_once_with_the_valid_names():
    values = {**defaults(), "kl_wieght": 3.0, "lr": 0, "amp": "fp16", "head_init": None}
    del values["grad_clip"]
    with pytest.raises(CarftError) as caught:
        hparams.check(values)
    message = str(caught.value)
    for part in (
        "unknown hparam 'kl_wieght'; did you mean 'kl_weight'?",
        "lr is 0, expected a number > 0",
        "amp is 'fp16', expected one of 'off', 'bf16'",
        "head_init is None",
        "'grad_clip' is missing",
        "Valid hparams: amp, batch_size",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 1.5),
        ("batch_size", True),
        ("total_steps", 0),
        ("weight_decay_all", 1),
        ("context_scale", "big"),
        ("context_scale", 0),
        ("contexts", []),
        ("class_names", [""]),
        ("kl_weight", -1),
        ("lr", float("inf")),
        ("warmup_steps", 5001),
        ("kl_direction", "sideways"),
    ],
)
def test_invalid_values_are_named(name, value):
    with pytest.raises(CarftError, match=name):
        hparams.check({**defaults(), name: value})


def test_the_hosts_own_keys_pass_once_allowed(monkeypatch):
    monkeypatch.setattr(hparams, "_host_keys", {"data_augmentation"})
    values = {**defaults(), "resnet18": False}
    with pytest.raises(CarftError, match="unknown hparam 'resnet18'"):
        hparams.check(values)
    hparams.allow(["resnet18"])
    hparams.check(values)
