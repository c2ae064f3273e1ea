"""Problems and the errors that carry them: sentences, several at once, pickling."""

import pickle
import subprocess
import sys

import pytest

from domainbed_carft.data.archives import BadFile
from domainbed_carft.errors import (
    CarftError,
    EndedJob,
    PassingError,
    Place,
    Problem,
    problems_of,
    raise_for,
)

BAD_RATE = Problem("lr", "fast", expected="a number > 0", remedy="see docs/method.md")
PLACE = Place("sweep.yaml", 9, ("overrides", 0, "hparams", "lr"))


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (BAD_RATE, "lr is 'fast', expected a number > 0; see docs/method.md"),
        (Problem("lr", None), "lr is None"),
        (Problem("lr is missing", expected="a number > 0"), "lr is missing, expected a number > 0"),
        (Problem(message="no such folder: x"), "no such folder: x"),
        (Problem(message="lr varies", remedy="set it"), "lr varies; set it"),
        (Problem("lr", "fast", place=PLACE), "sweep.yaml:9: overrides[0].hparams.lr: got 'fast'"),
        (Problem("the file", 3, place=Place("x.yaml")), "x.yaml: the file is 3"),
        (Problem(value=[], expected="words", place=Place("x", 1)), "x:1: got [], expected words"),
        (Problem("lr", 3, place=Place("x.yaml", 2, ("hparams",))), "x.yaml:2: hparams: lr is 3"),
        (Problem(message="lr is high").with_subject("lr"), "lr is high"),
        (Problem("ids", list(range(12))), f"ids is [{', '.join(map(str, range(10)))} and 2 more]"),
    ],
)
def test_a_problem_becomes_a_sentence(problem, sentence):
    assert problem.sentence() == str(problem) == sentence


def test_a_long_value_is_shortened():
    sentence = Problem("words", "w" * 1000, expected="fewer").sentence()
    assert len(sentence) < 250 and sentence.endswith("..., expected fewer")


def test_a_problem_can_be_placed_in_a_file():
    sentence = BAD_RATE.at(PLACE).sentence()
    assert sentence.startswith("sweep.yaml:9: overrides[0].hparams.lr: got 'fast', expected a nu")


def test_an_error_of_a_text_has_one_problem_with_that_message():
    error = CarftError("no such folder: x")
    assert str(error) == "no such folder: x"
    assert error.problems == (Problem(message="no such folder: x"),)


def test_an_error_of_several_problems_lists_them_below_a_headline():
    with pytest.raises(CarftError) as caught:
        raise_for([BAD_RATE, "no such folder: x", "no such folder: x"])
    assert str(caught.value).splitlines() == [
        "2 problems, nothing was done",
        f"- {BAD_RATE.sentence()}",
        "- no such folder: x",
    ]
    assert [problem.subject for problem in caught.value.problems] == ["lr", ""]


def test_problems_that_differ_in_a_list_of_values_can_be_raised():
    """Such values have no hash."""
    with pytest.raises(CarftError, match="2 problems"):
        raise_for([Problem("ids", [1]), Problem("ids", [2]), Problem("ids", [1])])


def test_no_problem_raises_nothing():
    raise_for([])
    assert problems_of(raise_for, []) == []


def test_problems_of_returns_the_problems_that_a_function_raises():
    assert problems_of(raise_for, [BAD_RATE, "x"]) == [BAD_RATE, Problem(message="x")]
    with pytest.raises(KeyError):
        problems_of({}.__getitem__, "x")


@pytest.mark.parametrize(
    "error",
    [
        CarftError(BAD_RATE, "no such folder: x"),
        CarftError(Problem("lr is missing", place=PLACE)),
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
