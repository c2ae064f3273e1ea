"""Arguments passed by a foreign host: hparams, shapes of images, numbers of processes."""

import json

import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms
from domainbed_carft.method.algorithms import CARFT
from domainbed_carft.plugin import foreign_jobs


def problems(values=None, input_shape=(3, 32, 32)):
    """Return the problems of a job of CARFT on PACS with these hparams."""
    hparams = algorithms.hparam_values("CARFT", "PACS") | (values or {})
    return foreign_jobs.job_problems(CARFT, input_shape, hparams)


def set_command_line(monkeypatch, **hparams):
    monkeypatch.setattr("sys.argv", ["train.py", "--hparams", json.dumps(hparams)])


def test_invalid_hparams_are_reported_together_with_valid_names(monkeypatch):
    set_command_line(monkeypatch, kl_wieght=3.0)
    wrong = {"lr": 0, "amp": "fp16", "head_init": None, "batch_size": 1.5, "total_steps": 0}
    wrong |= {"weight_decay_all": 1, "context_scale": "big", "class_names": [""], "kl_weight": -1}
    wrong |= {"grad_clip": 10**400, "clip_backbone": "nope", "margin": float("inf")}
    message = "\n".join(problems(wrong | {"kl_wieght": 3.0}, input_shape=(2, 28, 28)))
    for name, value in wrong.items():
        assert f"{name} is {value!r:.150}" in message
    assert "'kl_wieght'" in message and "'kl_weight'" in message
    assert "amp, average" in message
    assert "(2, 28, 28), expected (3, height, width)" in message


@pytest.mark.parametrize("name", ["WORLD_SIZE", "DOMAINBED_PROCESSES"])
def test_foreign_host_refuses_several_processes(monkeypatch, name):
    for number in ("1", ""):
        monkeypatch.setenv(name, number)
        assert not problems()

    monkeypatch.setenv(name, "4")
    in_checkout = foreign_jobs.make_foreign_class(CARFT, "domainbed.algorithms")
    with pytest.raises(CarftError, match=f"{name} is 4"):
        in_checkout((3, 32, 32), 2, 1, algorithms.hparam_values("CARFT", "PACS"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--dataset", "PACS", "--hparams", '{"backbone": "ViT-L/14"}', "--hparams_seed", "0"],
        ['--hparams={"backbone": "a=b"}'],
    ],
)
def test_hparams_of_a_fork_are_accepted_except_from_the_command_line(monkeypatch, argv):
    # As DPLCLIP and MIRO pass them to an algorithm.
    values = {"test_envs": [0], "clip_transform": False, "domain_name": []}
    values |= {"test_batchsize": 128, "backbone": "ViT-L/14"}
    assert not problems(values)
    monkeypatch.setattr("sys.argv", ["train.py", *argv])
    (problem,) = problems(values)
    assert "'backbone'" in problem and "'clip_backbone'" in problem


def test_hparams_of_the_hosts_registry_are_accepted(monkeypatch):
    set_command_line(monkeypatch, hparam_of_the_host=True)
    assert len(problems({"hparam_of_the_host": True})) == 1
    foreign_jobs.allow_keys(["hparam_of_the_host"])
    assert not problems({"hparam_of_the_host": True})
