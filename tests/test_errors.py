"""Errors and their messages: invalid values, suggestions, several problems, pickling."""

import pickle
import subprocess
import sys

import pytest

from domainbed_carft import suggestions
from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import (
    CarftError,
    HparamProblem,
    JobExit,
    TransientError,
    collect_problems,
    invalid,
    raise_for,
)
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms

HPARAMS = [*algorithms.recorded_hparams("CARFT")]
KEYS = ["algorithms", "compare_with", "datasets", "hparams", "name", "steps", "trials"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("lr", "fast", "lr is 'fast', expected a number"),
        ("", [], "got [], expected a number"),
        ("id", [7] * 12, "id is [7, 7, 7, 7, 7, 7, 7, 7, 7, 7 and 2 more], expected a number"),
        ("words", "w" * 1000, f"words is '{'w' * 199}..., expected a number"),
    ],
)
def test_invalid_value_is_named_and_shortened(name, value, sentence):
    assert invalid(name, value, "a number") == sentence


def test_hparam_problem_omits_the_name_after_its_key():
    problem = HparamProblem("lr", "fast", "a number > 0")
    assert str(problem) == "lr is 'fast', expected a number > 0"
    assert problem.message_after_key() == "got 'fast', expected a number > 0"
    assert HparamProblem("lr", 3, message="lr is high").message_after_key() == "lr is high"


def test_error_lists_each_problem_once():
    assert str(CarftError("no such folder: x")) == "no such folder: x"
    with pytest.raises(CarftError) as caught:
        raise_for(["lr is 3", "no such folder: x", "no such folder: x"])
    assert str(caught.value).splitlines()[1:] == ["- lr is 3", "- no such folder: x"]
    assert collect_problems(raise_for, ["lr is 3", "x"]) == ["lr is 3", "x"]
    with pytest.raises(KeyError):
        collect_problems({}.__getitem__, "x")


@pytest.mark.parametrize(
    "error",
    [
        CarftError("a", "b"),
        TransientError("full"),
        JobExit("no CLIP"),
        BadFile("PACS.zip", "empty"),
    ],
)
def test_pickled_error_keeps_its_problems(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.problems == error.problems
    assert str(copy) == str(error) and vars(copy) == vars(error)


def test_job_exit_prints_its_message_on_stderr():
    script = "from domainbed_carft.errors import JobExit; raise JobExit('no CLIP')"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (1, "domainbed-carft: no CLIP\n")


@pytest.mark.parametrize(
    ("name", "valid", "expected"),
    [
        ("learning_rate", HPARAMS, ["lr"]),
        ("learning-rate", HPARAMS, ["lr"]),
        ("bs", HPARAMS, ["batch_size"]),
        ("lambda", HPARAMS, ["kl_weight"]),
        ("temperature", HPARAMS, ["context_scale"]),
        ("templates", HPARAMS, ["contexts"]),
        ("epochs", HPARAMS, []),
        ("epochs", KEYS, ["steps"]),
        ("metric", KEYS, []),
        ("learning_rate", KEYS, []),
        ("MIRO", ALGORITHMS, ["CLIPMIRO"]),
        ("CAR-FT", ALGORITHMS, ["CARFT"]),
        ("WiSE-FT", ALGORITHMS, ["CLIPWiSEFT"]),
    ],
)
def test_similar_names_and_synonyms_are_suggested(name, valid, expected):
    assert suggestions.near_matches(name, valid) == expected
