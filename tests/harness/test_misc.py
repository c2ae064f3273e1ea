"""Seeds, splits, weights, accuracy, printing."""

from __future__ import annotations

import sys

import pytest
import torch
from domainbed.lib import misc
from PIL import Image
from torchvision.datasets import ImageFolder


def test_seed_hash_is_upstreams(golden):
    for case in golden("seed_hashes.json"):
        assert misc.seed_hash(*case["args"]) == case["hash"]


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


def test_output_goes_to_screen_and_files_and_each_to_its_own(tmp_path, capsys):
    (tmp_path / "out.txt").write_text("before\n")
    with misc.tee_output(str(tmp_path)):
        print("spoken")
        print("complained", file=sys.stderr)
        assert (tmp_path / "err.txt").read_text() == "complained\n"
    print("afterwards")
    assert (tmp_path / "out.txt").read_text() == "before\nspoken\n"
    assert capsys.readouterr() == ("spoken\nafterwards\n", "complained\n")
