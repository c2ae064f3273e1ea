"""What the checks before a job know of it: its steps, the facts it may demand."""

import pytest
from domainbed.lib import checks

from domainbed_carft.errors import CarftError
from domainbed_carft.sweep import declaration_file

SWEEP = "name: x\ndatasets: [EmojiStyles]\nalgorithms: [{}]\nsteps: {}\nhparams: {{{}}}\n"


def declare(algorithm, hparams, steps=101):
    return declaration_file.parse(SWEEP.format(algorithm, steps, hparams), "x.yaml")


def problems(algorithm, hparams, steps=None):
    found = checks.hparams_problems(hparams, algorithm, "EmojiStyles", steps)
    return [str(problem) for problem in found]


def test_facts_may_be_demanded_of_our_algorithms_only():
    demands = {"data_edition": "unchecked", "prompts_digest": "0123456789abcdef"}
    assert problems("CARFT", demands) == []
    declare("CARFT", "data_edition: unchecked")

    (problem, _) = problems("ERM", demands)
    assert "no hyperparameter of ERM is called 'data_edition'" in problem


def test_a_warm_up_has_to_fit_into_the_steps_of_the_job():
    warm_up = {"warmup_steps": 110}  # the data set's own steps are 101
    assert problems("CARFT", warm_up, steps=120) == []
    declare("CARFT", "warmup_steps: 110", steps=120)

    (problem,) = problems("CARFT", warm_up)
    assert "expected less than total_steps = 101" in problem
    (problem,) = problems("CARFT", warm_up, steps=50)
    assert "expected less than total_steps = 50" in problem
    with pytest.raises(CarftError, match="expected less than total_steps = 50"):
        declare("CARFT", "warmup_steps: 110", steps=50)


def test_what_trains_nothing_takes_any_warm_up():
    """A sweep has one for all its algorithms, and zero-shot CLIP takes a single step."""
    assert problems("CLIPZeroShot", {"warmup_steps": 110, "average": "sma"}, steps=1) == []
    declare("CLIPZeroShot", "warmup_steps: 110", steps=1)
