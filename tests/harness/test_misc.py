"""Seeds, splits, weights, accuracy, printing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from domainbed.lib import misc
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder


def test_seed_hash_is_upstreams(golden):
    for case in golden("seed_hashes.json"):
        assert misc.seed_hash(*case["args"]) == case["hash"]


def test_split_dataset_parts_the_items():
    first, rest = misc.split_dataset("abcdefgh", 3, seed=4)
    assert len(first) == 3
    assert sorted([*first_items(first), *first_items(rest)]) == list("abcdefgh")


def first_items(split):
    return [split[i] for i in range(len(split))]


def test_balanced_weights_give_every_class_the_same_total():
    labels = [0, 1, 0, 2, 0, 1]
    weights = misc.make_weights_for_balanced_classes([(None, label) for label in labels])
    totals = [weights[torch.tensor(labels) == label].sum().item() for label in range(3)]
    assert totals == pytest.approx([1 / 3] * 3)


@pytest.fixture
def pictures(tmp_path):
    """An environment whose pictures cannot be opened, and its labels."""
    for name, count in (("cat", 1), ("dog", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").touch()
    return ImageFolder(str(tmp_path)), [0, 1, 1, 1]


def test_labels_are_read_without_opening_a_picture(pictures):
    folder, labels = pictures
    with pytest.raises(Image.UnidentifiedImageError):
        folder[0]
    assert misc.labels_of(folder) == labels
    first, rest = misc.split_dataset(folder, 2, seed=1)
    assert misc.labels_of(first) == [labels[i] for i in first.keys]
    inner, _ = misc.split_dataset(rest, 1, seed=1)
    assert misc.labels_of(inner) == [labels[rest.keys[inner.keys[0]]]]
    weights = misc.make_weights_for_balanced_classes(misc.SplitDataset(folder, [3, 0, 1]))
    assert weights.tolist() == [0.25, 0.5, 0.25]


def test_labels_of_tensors_are_read_at_once():
    class Unread(torch.Tensor):
        def __getitem__(self, index):
            raise AssertionError("an input was read")

    inputs = torch.zeros(3, 2).as_subclass(Unread)
    data = TensorDataset(inputs, torch.tensor([2, 0, 1]))
    assert misc.labels_of(misc.SplitDataset(data, [2, 0])) == [1, 2]


def test_changed_labels_are_those_that_training_sees(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2)).save(tmp_path / name / "0.png")
    folder = ImageFolder(str(tmp_path), target_transform=lambda label: 1 - label)
    assert misc.labels_of(folder) == [1, 0]
    listed = misc.SplitDataset(ImageFolder(str(tmp_path)), [0, 1])
    listed.dataset.targets = [0]  # not of its items, then
    assert misc.labels_of(listed) == [0, 1]


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


def test_output_goes_to_screen_and_files_and_each_to_its_own(tmp_path, capsys):
    (tmp_path / "out.txt").write_text("before\n")
    with misc.tee_output(str(tmp_path)):
        print("spoken")
        print("complained", file=sys.stderr)
        assert (tmp_path / "err.txt").read_text() == "complained\n"
    print("afterwards")
    assert (tmp_path / "out.txt").read_text() == "before\nspoken\n"
    assert capsys.readouterr() == ("spoken\nafterwards\n", "complained\n")
