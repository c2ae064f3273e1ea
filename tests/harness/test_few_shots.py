"""Few-shot training: `shots` images per class and environment, drawn by the trial seed."""

import json

import numpy as np
import torch
from domainbed.lib import few_shots, misc
from domainbed.scripts import train
from torch.utils.data import TensorDataset

from domainbed_carft.jobs.splits import split_environments


class Noise(list):
    """A dataset of two environments, with 40 items of 4 classes each."""

    ENVIRONMENTS = ("first", "second")
    num_classes = 4

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        labels = [torch.randint(4, (40,), generator=draw) for _ in range(2)]
        super().__init__(TensorDataset(torch.arange(40.0), column) for column in labels)


def draw_items(shots, trial_seed=0):
    """Return (position, label) of the items to train on in each environment."""
    dataset = Noise()
    environments = split_environments(dataset, [], trial_seed, 0.2, 0.0, misc)
    hparams = {} if shots is None else {"shots": shots}
    splits = few_shots.training_splits(dataset, environments, [0, 1], hparams)
    return [[(int(item), int(label)) for item, label in split] for split in splits]


def test_shots_are_drawn_per_class_from_the_in_split_by_the_trial_seed():
    in_splits = draw_items(None)
    for shots in (1, 3):
        for items, in_split in zip(draw_items(shots), in_splits, strict=True):
            counts = np.bincount([label for _, label in items], minlength=4)
            assert counts.tolist() == [shots] * 4
            assert set(items) <= set(in_split)

    assert draw_items(2) == draw_items(2) != draw_items(2, trial_seed=1)
    for items, more_items in zip(draw_items(1), draw_items(3), strict=True):
        assert set(items) < set(more_items)


def test_job_with_too_many_shots_ends_before_training(images, tmp_path, capsys):
    hparams = json.dumps({"clip_backbone": "tiny", "contexts": "emoji", "shots": 100})
    arguments = ["--algorithm", "CLIPLinearProbe", "--dataset", str(images), "--steps", "3"]
    arguments += ["--test_envs", "0", "--hparams", hparams, "--output_dir", str(tmp_path / "job")]
    assert train.main(arguments) == 2
    assert "shots is 100, but 'sketch' has fewer training images" in capsys.readouterr().err
    assert not (tmp_path / "job" / "results.jsonl").exists()
