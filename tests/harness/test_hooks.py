"""What the harness asks of algorithms and data sets has a declaration and a default."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import domainbed
import pytest
import torch
from domainbed import algorithms, datasets
from domainbed.lib import algorithm_state
from domainbed.scripts import train

from . import fakes

HARNESS = Path(domainbed.__file__).parent

ALGORITHM_HOOKS = {
    *("is_constant", "process_group", "hparam_problems", "implied_hparams"),
    "unread_hparams",
    "RESOLVED_HPARAMS",
    *("wants_validation_loss", "trained_logits", "at_checkpoint"),
    *(
        "recorded_facts",
        "wanted_pictures",
        "indivisible",
        "step_on_device",
        "training_state",
        "load_training_state",
    ),
}
DATASET_HOOKS = {"EVALUATED_SPLITS", "data_edition", "protocol", "data_problems"}


def test_every_hook_is_declared_and_its_methods_say_what_they_return():
    for base, hooks in (
        (algorithms.Algorithm, ALGORITHM_HOOKS),
        (datasets.MultipleDomainDataset, DATASET_HOOKS),
    ):
        declared = vars(base)
        assert hooks <= declared.keys()
        for name in hooks:
            hook = inspect.unwrap(getattr(base, name))
            assert not callable(hook) or len(inspect.getdoc(hook) or "") > 60, name


def test_no_module_asks_for_a_hook_by_its_name_in_a_text():
    asked = []
    for path in HARNESS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                asked += [
                    constant.value for constant in node.args if isinstance(constant, ast.Constant)
                ]
    assert not {*asked} & (ALGORITHM_HOOKS | DATASET_HOOKS)


class Plain:
    """A data set by upstream's contract alone, without a base class."""

    ENVIRONMENTS = ("a", "b")
    N_STEPS = 2
    CHECKPOINT_FREQ = 1
    N_WORKERS = 0
    input_shape = (3,)
    num_classes = 2

    def __init__(self, root, test_envs, hparams):
        items = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 2
        self.datasets = [torch.utils.data.TensorDataset(*items) for _ in self.ENVIRONMENTS]

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


@pytest.mark.usefixtures("registered")
def test_a_data_set_without_our_base_class_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "Plain", Plain, raising=False)
    assert train.main(fakes.quick(tmp_path, "--dataset", "Plain", "--algorithm", "Still")) == 0

    last = fakes.records(tmp_path)[-1]
    assert {"env0_in_acc", "env1_out_acc"} <= last.keys()
    assert not {"data_edition", "protocol"} & last.keys()
    assert issubclass(datasets.get_dataset_class("Plain"), Plain)


class Counting(algorithms.Algorithm):
    """Keeps an iterator, which cannot be stored."""

    def __init__(self):
        super().__init__((3,), 2, 1, {})
        self.numbers = iter(range(9))


class Answering(Counting):
    """Answers for it, with None as long as nothing was counted."""

    next_number = None

    def training_state(self):
        return self.next_number

    def load_training_state(self, stored):
        self.numbers = iter(range(stored, 9))


def test_an_algorithm_answers_for_attributes_that_cannot_be_stored():
    counting = Counting()
    with pytest.raises(algorithm_state.StateError, match=r"numbers \(a range_iterator\)"):
        algorithm_state.capture(counting, algorithm_state.structure(counting))

    for next_number, expected in ((None, 0), (5, 5)):
        answering = Answering()
        answering.next_number = next_number
        state = algorithm_state.capture(answering, algorithm_state.structure(answering))

        restored = Answering()
        algorithm_state.restore(restored, state)
        assert next(restored.numbers) == expected
