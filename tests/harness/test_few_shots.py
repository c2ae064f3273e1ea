"""k-shot training: `shots` pictures of each class and environment, drawn by the trial seed."""

import json

import numpy as np
import pytest
from domainbed.lib import few_shots, misc
from domainbed.scripts import train
from runs_jobs import records, train_job
from torch.utils.data import TensorDataset

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.splits import split_environments


class Noise(list):
    """Two environments of 40 items of 4 classes; a data set as the harness has it."""

    ENVIRONMENTS = ("first", "second")
    num_classes = 4


def noise(seed=0):
    import torch

    draw = torch.Generator().manual_seed(seed)
    labels = [torch.randint(4, (40,), generator=draw) for _ in range(2)]
    return Noise(TensorDataset(torch.arange(40.0), column) for column in labels)


def drawn(dataset, shots, trial_seed=0):
    """The items trained on in each environment, as positions in it, with their labels."""
    environments = split_environments(dataset, [], trial_seed, 0.2, 0.0, misc)
    hparams = {} if shots is None else {"shots": shots}
    splits = few_shots.training_splits(dataset, environments, [0, 1], hparams)
    return [[(int(item), int(label)) for item, label in split] for split in splits]


def test_each_class_and_environment_has_so_many_pictures_of_the_in_split():
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


def test_a_class_with_fewer_pictures_is_named():
    with pytest.raises(
        CarftError, match=r"shots is 39, but 'second' has fewer training pictures of .*3 \(\d+\)"
    ):
        drawn(noise(), 39)


def test_a_job_records_the_shots_and_is_evaluated_on_whole_splits(pictures, tmp_path):
    (record, *_) = records(train_job(tmp_path, pictures, "CLIPZeroShot", shots=1))
    assert record["hparams"]["shots"] == 1
    whole_size = 8
    assert {record[f"env{n}_in_acc"] * whole_size for n in (1, 2)} <= {*range(whole_size + 1)}


def test_too_many_shots_end_the_job_before_it_trains(pictures, tmp_path, capsys):
    hparams = json.dumps({"clip_backbone": "tiny", "contexts": "emoji", "shots": 100})
    arguments = ["--algorithm", "CLIPLinearProbe", "--dataset", str(pictures), "--steps", "3"]
    arguments += ["--test_envs", "0", "--hparams", hparams, "--output_dir", str(tmp_path / "job")]
    assert train.main(arguments) == 2
    assert "shots is 100, but 'sketch' has fewer training pictures" in capsys.readouterr().err
    assert not (tmp_path / "job" / "results.jsonl").exists()
