"""Seeds, splits, weights, accuracy, printing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from domainbed.lib import misc


def test_seed_hash_is_upstreams(golden):
    for case in golden("seed_hashes.json"):
        assert misc.seed_hash(*case["args"]) == case["hash"]


def test_split_dataset_parts_the_items():
    first, rest = misc.split_dataset("abcdefgh", 3, seed=4)
    assert len(first) == 3
    assert sorted([*first_items(first), *first_items(rest)]) == list("abcdefgh")


def first_items(split):
    return [split[i] for i in range(len(split))]


@pytest.mark.parametrize("n", [-1, 9])
def test_split_dataset_refuses_what_it_cannot_take(n):
    with pytest.raises(ValueError, match=f"cannot take {n} of 8 items"):
        misc.split_dataset("abcdefgh", n)


def test_balanced_weights_give_every_class_the_same_total():
    labels = [0, 1, 0, 2, 0, 1]
    weights = misc.make_weights_for_balanced_classes([(None, label) for label in labels])
    totals = [weights[torch.tensor(labels) == label].sum().item() for label in range(3)]
    assert totals == pytest.approx([1 / 3] * 3)


class Echo(torch.nn.Module):
    """Predicts what it is given, and notes in which mode."""

    def predict(self, x):
        assert not self.training and not torch.is_grad_enabled()
        return x


def test_accuracy_counts_over_batches_of_different_size():
    logits = torch.eye(3)
    batches = [(logits, torch.tensor([0, 1, 0])), (logits[:1], torch.tensor([0]))]
    network = Echo()
    assert misc.accuracy(network, batches, None, "cpu") == 0.75
    assert network.training


def test_accuracy_weighs_items():
    batches = [(torch.eye(2), torch.tensor([0, 0])), (torch.eye(2), torch.tensor([1, 1]))]
    weights = torch.tensor([0.5, 0.25, 0.0, 0.25])
    assert misc.accuracy(Echo(), batches, weights, "cpu") == 0.75


def test_accuracy_of_a_single_logit():
    batches = [(torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([1, 0, 0]))]
    assert misc.accuracy(Echo(), batches, None, "cpu") == pytest.approx(2 / 3)


def test_rows_are_filled_up_cut_and_end_in_a_blank(capsys):
    misc.print_row(["a", "abcdefg", 3, 0.5, np.float32(0.5), None], colwidth=5)
    assert capsys.readouterr().out == "a      abcde  3      0.500  0.500  None  \n"


def test_latex_rows(capsys):
    misc.print_row(["a", 1], colwidth=3, latex=True)
    assert capsys.readouterr().out == "a   & 1   \\\\\n"


def test_separator(capsys):
    misc.print_separator()
    assert capsys.readouterr().out == "=" * 80 + "\n"


def test_output_goes_to_screen_and_files_and_each_to_its_own(tmp_path, capsys):
    (tmp_path / "out.txt").write_text("before\n")
    with misc.tee_output(str(tmp_path)):
        print("spoken")
        print("complained", file=sys.stderr)
        assert (tmp_path / "err.txt").read_text() == "complained\n"
    print("afterwards")
    assert (tmp_path / "out.txt").read_text() == "before\nspoken\n"
    assert capsys.readouterr() == ("spoken\nafterwards\n", "complained\n")


def test_numpy_scalars_become_plain():
    values = [misc.plain(value) for value in (np.int64(3), np.float64(0.5), np.bool_(True), "a")]
    assert [type(value) for value in values] == [int, float, bool, str]
