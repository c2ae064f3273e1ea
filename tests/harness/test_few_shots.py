"""k-shot training: `shots` images of each class and environment, drawn by the trial seed."""

import json

import numpy as np
import pytest
import torch
from domainbed import hparams_registry
from domainbed.lib import few_shots, misc, preparation
from domainbed.lib.process_group import ProcessGroup
from domainbed.scripts import train
from torch.utils.data import TensorDataset

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.splits import split_environments


class Noise(list):
    """Two environments of 40 items of 4 classes; a dataset as the harness has it."""

    ENVIRONMENTS = ("first", "second")
    num_classes = 4


def noise(seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = [torch.randint(4, (40,), generator=draw) for _ in range(2)]
    return Noise(TensorDataset(torch.arange(40.0), column) for column in labels)


def drawn(dataset, shots, trial_seed=0):
    """The items trained on in each environment, as positions in it, with their labels."""
    environments = split_environments(dataset, [], trial_seed, 0.2, 0.0, misc)
    hparams = {} if shots is None else {"shots": shots}
    splits = few_shots.training_splits(dataset, environments, [0, 1], hparams)
    return [[(int(item), int(label)) for item, label in split] for split in splits]


def test_each_class_and_environment_has_so_many_images_of_the_in_split():
    dataset = noise()
    everything = drawn(dataset, None)
    for shots in (1, 3):
        for part, whole in zip(drawn(dataset, shots), everything, strict=True):
            counts = np.bincount([label for _, label in part], minlength=4)
            assert counts.tolist() == [shots] * 4
            assert set(part) <= set(whole)


def test_the_trial_seed_draws_and_fewer_shots_are_among_more():
    dataset = noise()
    assert drawn(dataset, 2) == drawn(dataset, 2) != drawn(dataset, 2, trial_seed=1)
    for few, more in zip(drawn(dataset, 1), drawn(dataset, 3), strict=True):
        assert set(few) < set(more)


def test_a_class_with_fewer_images_is_named():
    with pytest.raises(
        CarftError, match=r"shots is 39, but 'second' has fewer training images of .*3 \(\d+\)"
    ):
        drawn(noise(), 39)


def test_a_job_trains_on_the_drawn_images_alone(images):
    hparams = {**hparams_registry.default_hparams("ERM", "PACS"), "shots": 2}
    args = train.build_parser().parse_args(["--dataset", str(images)])
    job = preparation.prepare(args, hparams, memory_limit=0)
    cpu = torch.device("cpu")
    batches = job.batches({}, steps=1, checkpoint_freq=1, device=cpu, process_group=ProcessGroup())
    assert [len(split) for split in batches.in_splits] == [4, 4]  # two sources of two classes


def test_too_many_shots_end_the_job_before_it_trains(images, tmp_path, capsys):
    hparams = json.dumps({"clip_backbone": "tiny", "contexts": "emoji", "shots": 100})
    arguments = ["--algorithm", "CLIPLinearProbe", "--dataset", str(images), "--steps", "3"]
    arguments += ["--test_envs", "0", "--hparams", hparams, "--output_dir", str(tmp_path / "job")]
    assert train.main(arguments) == 2
    assert "shots is 100, but 'sketch' has fewer training images" in capsys.readouterr().err
    assert not (tmp_path / "job" / "results.jsonl").exists()
