"""Seeds, splits, weights and accuracy."""

import hashlib
import json

import pytest
import torch
from domainbed.lib import misc
from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_carft.jobs import splits


def test_seed_hash_equals_upstream(golden):
    for case in golden("seed_hashes.json"):
        assert misc.seed_hash(*case["args"]) == case["hash"]


MAX_LISTED = 50  # numbers


def numbers(split):
    """Return the numbers in a split, or the MD5 of a long list, as in the golden file."""
    values = [split[i][0] for i in range(len(split))]
    if len(values) <= MAX_LISTED:
        return values
    return hashlib.md5(json.dumps(values).encode()).hexdigest()


def test_splits_equal_upstream(golden):
    for case in golden("splits.json"):
        data = [[(number, 0) for number in range(size)] for size in case["sizes"]]
        environments = splits.split_environments(
            environments=data,
            targets=case["test_envs"],
            trial_seed=case["trial_seed"],
            holdout_fraction=case["holdout_fraction"],
            uda_holdout_fraction=case["uda_holdout_fraction"],
            host_functions=misc,
        )

        assert [numbers(environment.in_split) for environment in environments] == case["in"]
        assert [numbers(environment.out_split) for environment in environments] == case["out"]
        uda_splits = [environment.uda_split for environment in environments]
        assert [numbers(split) for split in uda_splits if len(split)] == case["uda"]


def test_item_labels_are_read_without_opening_images(tmp_path):
    for name, count in (("cat", 1), ("dog", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").touch()

    folder = ImageFolder(str(tmp_path))
    with pytest.raises(Image.UnidentifiedImageError):
        folder[0]
    assert misc.item_labels(folder) == [0, 1, 1, 1]

    inner = misc.SplitDataset(misc.SplitDataset(folder, [3, 0]), [1])
    assert misc.item_labels(inner) == [0]

    weights = misc.make_weights_for_balanced_classes(misc.SplitDataset(folder, [3, 0, 1]))
    assert weights.tolist() == [0.25, 0.5, 0.25]


class Echo(torch.nn.Module):
    """Predicts its input, and asserts evaluation mode."""

    def predict(self, x):
        assert not self.training and not torch.is_grad_enabled()
        return x


def test_accuracy_is_averaged_over_items_not_batches():
    logits = torch.eye(3)
    batches = [(logits, torch.tensor([0, 1, 0])), (logits[:1], torch.tensor([0]))]
    network = Echo()

    assert misc.accuracy(network, batches, None, "cpu") == 0.75
    assert misc.accuracy(network, batches, torch.tensor([0.5, 0.25, 0.125, 0.125]), "cpu") == 0.875
    assert network.training
