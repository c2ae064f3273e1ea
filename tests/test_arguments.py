"""What a foreign host hands over: hparams of every kind, pictures, several processes."""

import pytest

from domainbed_carft.errors import CarftError, raise_for
from domainbed_carft.method import algorithms
from domainbed_carft.method.algorithms import CARFT
from domainbed_carft.plugin import foreign_jobs


def defaults():
    return algorithms.hparam_values("CARFT", "PACS")


def check(values, input_shape=(3, 32, 32)):
    raise_for(foreign_jobs.job_problems(CARFT, input_shape, values))


def test_all_hparam_problems_are_listed_at_once_with_valid_names(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--hparams", '{"kl_wieght": 3.0}'])
    values = {**defaults(), "kl_wieght": 3.0, "lr": 0, "amp": "fp16", "head_init": None}
    values["clip_backbone"] = "nope"

    with pytest.raises(CarftError) as caught:
        check(values)

    message = str(caught.value)
    for part in (
        "unknown hparam 'kl_wieght' (did you mean 'kl_weight'?)",
        "lr is 0, expected a number > 0",
        "amp is 'fp16', expected one of 'auto', 'off', 'bf16'",
        "head_init is None",
        "clip_backbone is 'nope', expected an existing file, open_clip:NAME/TAG, or one of: tiny",
        "valid hparams: amp, average",
    ):
        assert part in message


def test_inputs_without_three_channels_are_refused():
    with pytest.raises(CarftError, match=r"shape \(2, 28, 28\), expected \(3, height, width\)"):
        check(defaults(), input_shape=(2, 28, 28))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "DOMAINBED_PROCESSES"])
def test_a_host_that_cannot_split_batches_may_use_one_process_only(monkeypatch, name):
    for number in ("1", ""):
        monkeypatch.setenv(name, number)
        check(defaults())

    monkeypatch.setenv(name, "4")
    in_checkout = foreign_jobs.in_foreign_host(CARFT, "domainbed.algorithms")
    with pytest.raises(CarftError, match=f"{name} is 4, and this DomainBed trains a job in"):
        in_checkout((3, 32, 32), 2, 1, defaults())


def test_invalid_values_are_named():
    wrong = {"batch_size": 1.5, "total_steps": 0, "weight_decay_all": 1, "context_scale": "big"}
    wrong |= {"class_names": [""], "kl_weight": -1, "lr": float("inf"), "grad_clip": 10**400}
    with pytest.raises(CarftError) as caught:
        check({**defaults(), **wrong})

    message = str(caught.value)
    for name, value in wrong.items():
        assert f"{name} is {value!r:.150}" in message
    assert "valid hparams" not in str(caught.value)  # no name is wrong
    with pytest.raises(CarftError, match="warmup_steps is 5001, expected less than total_steps"):
        check({**defaults(), "warmup_steps": 5001})


@pytest.mark.parametrize(
    "argv",
    [
        ["--dataset", "PACS", "--hparams", '{"backbone": "ViT-L/14"}', "--hparams_seed", "0"],
        ['--hparams={"backbone": "a=b"}'],
    ],
)
def test_hparams_added_by_a_fork_pass_but_not_from_the_user(monkeypatch, argv):
    # DPLCLIP's and MIRO's own, as they reach an algorithm there
    values = defaults() | {"test_envs": [0], "clip_transform": False, "domain_name": []}
    values |= {"test_batchsize": 128, "backbone": "ViT-L/14"}
    check(values)
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    with pytest.raises(CarftError, match="'backbone' .did you mean 'clip_backbone'"):
        check(values)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("kl_wieght", "unknown hparam 'kl_wieght' (did you mean 'kl_weight'?); valid hparams: amp"),
        (
            "learning_rate",
            "unknown hparam 'learning_rate' (did you mean 'lr'?); valid",
        ),
        ("Temperature", "unknown hparam 'Temperature' (did you mean 'context_scale'?); valid"),
        ("wings", "unknown hparam 'wings'; valid hparams: amp"),
    ],
)
def test_an_unknown_hparam_of_the_user_gets_one_suggestion_at_most(monkeypatch, key, message):
    monkeypatch.setattr("sys.argv", ["train.py", "--hparams", f'{{"{key}": 3}}'])
    with pytest.raises(CarftError) as caught:
        check({**defaults(), key: 3})
    assert str(caught.value).startswith(message)


def test_hparams_of_the_registry_pass_silently(monkeypatch, capsys):
    monkeypatch.setattr(foreign_jobs, "_host_keys", {"data_augmentation"})
    monkeypatch.setattr("sys.argv", ["train.py", "--hparams", '{"resnet18": true}'])
    values = {**defaults(), "resnet18": True}

    with pytest.raises(CarftError, match="unknown hparam 'resnet18'"):
        check(values)

    foreign_jobs.allow(["resnet18"])
    check(values)
    assert capsys.readouterr().out == ""
