"""Problems and the errors that carry them: sentences, several at once, pickling."""

import pickle
import subprocess
import sys

import pytest

from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import (
    CarftError,
    EndedJob,
    HparamProblem,
    PassingError,
    invalid,
    problems_of,
    raise_for,
)
from domainbed_carft.files.parsing import YamlSource

BAD_RATE = "lr is 'fast', expected a number > 0; see docs/method.md"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("lr", "fast", "lr is 'fast', expected a number"),
        ("lr", None, "lr is None, expected a number"),
        ("", [], "got [], expected a number"),
        ("id", [7] * 12, "id is [7, 7, 7, 7, 7, 7, 7, 7, 7, 7 and 2 more], expected a number"),
    ],
)
def test_an_invalid_value_becomes_a_sentence(name, value, sentence):
    assert invalid(name, value, "a number") == sentence


def test_a_long_value_is_shortened():
    sentence = invalid("words", "w" * 1000, "fewer")
    assert len(sentence) < 250 and sentence.endswith("..., expected fewer")


def test_a_problem_of_a_hyperparameter_leaves_its_name_to_its_key():
    problem = HparamProblem("lr", "fast", "a number > 0")
    assert str(problem) == "lr is 'fast', expected a number > 0"
    assert problem.behind_its_key() == "got 'fast', expected a number > 0"

    with_message = HparamProblem("lr", 3, message="lr is high")
    assert str(with_message) == with_message.behind_its_key() == "lr is high"


def test_a_place_in_a_file_has_the_line_of_the_innermost_known_key():
    source = YamlSource("x.yaml", {(): 1, ("overrides",): 7, ("overrides", 0): 9})
    assert source.place(("overrides", 0, "hparams", "lr")) == "x.yaml:9: overrides[0].hparams.lr"
    assert source.place(("overrides",)) == "x.yaml:7: overrides"
    assert source.place(()) == "x.yaml:1"


def test_an_error_of_one_problem_prints_as_its_sentence():
    error = CarftError("no such folder: x")
    assert str(error) == "no such folder: x"
    assert error.problems == ("no such folder: x",)


def test_an_error_of_several_problems_lists_each_once_below_a_headline():
    with pytest.raises(CarftError) as caught:
        raise_for([BAD_RATE, "no such folder: x", "no such folder: x"])
    assert str(caught.value).splitlines() == [
        "2 problems, nothing was done",
        f"- {BAD_RATE}",
        "- no such folder: x",
    ]
    assert caught.value.problems == (BAD_RATE, "no such folder: x")


def test_no_problem_raises_nothing():
    raise_for([])
    assert problems_of(raise_for, []) == []


def test_problems_of_returns_the_problems_that_a_function_raises():
    assert problems_of(raise_for, [BAD_RATE, "x"]) == [BAD_RATE, "x"]
    with pytest.raises(KeyError):
        problems_of({}.__getitem__, "x")


@pytest.mark.parametrize(
    "error",
    [
        CarftError(BAD_RATE, "no such folder: x"),
        PassingError("the disk is full"),
        EndedJob("no CLIP"),
        BadFile("PACS.zip", "is empty"),
    ],
)
def test_a_pickled_error_keeps_its_problems(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.problems == error.problems
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_ended_job_exits_with_its_message_on_stderr():
    script = "from domainbed_carft.errors import EndedJob; raise EndedJob('no CLIP')"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr == "domainbed-carft: no CLIP\n"
