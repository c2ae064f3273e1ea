"""Jobs whose pictures are made in two stages, and those of upstream's transforms."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import pytest
import torch
from domainbed import datasets
from domainbed.lib import picture_batches
from domainbed.scripts import train

from domainbed_carft.pictures import stages
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.pictures.preprocessing import IMAGENET_MEAN, IMAGENET_STD

from . import fakes


def trained(pictures, folder):
    """The records of a job, without what differs between any two runs."""
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "lr": 1e-4}
    fixed = ("--algorithm", "CARFT", "--steps", "4", "--hparams", json.dumps(hparams))
    assert train.main(fakes.quick(folder, *fixed, "--dataset", str(pictures))) == 0

    return fakes.comparable_records(folder)


@pytest.fixture(scope="module")
def fast_job(pictures, tmp_path_factory):
    """The records of a job whose pictures are made in two stages, by numba, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        records = trained(pictures, tmp_path_factory.mktemp("fast"))
    return records, stdout.getvalue()


def test_the_data_sets_own_transforms_change_the_loss_little(
    pictures, fast_job, tmp_path, monkeypatch
):
    fast, _ = fast_job
    assert len(fast) == 3 and {record["pictures"].split()[0] for record in fast} == {"fast,"}

    monkeypatch.setattr(picture_batches, "environment_plan", lambda environment: None)
    by_pillow = trained(pictures, tmp_path / "pillow")
    assert not any("pictures" in record for record in by_pillow)
    for fast_record, pillow_record in zip(fast, by_pillow, strict=True):
        assert fast_record["loss"] == pytest.approx(pillow_record["loss"], abs=0.02)
        assert fast_record["loss"] != pillow_record["loss"]


def test_pictures_are_normalised_once_for_the_model(pictures):
    """Any plugin's: ERM for one size and normalisation, against those of upstream's, undone."""
    model_input = (32, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    dataset = datasets.get_dataset_class(str(pictures))(None, [0], {"data_augmentation": True})
    plain = picture_batches.choose(dataset, 0).source(dataset[0])
    for_model = picture_batches.choose(dataset, 0, lambda: model_input)
    assert dataset.input_shape == (3, 32, 32)

    pictures_for_model, _ = for_model.source(dataset[0]).batch([(0, 3, (1, 2, 3))]).finish()
    recorded_plan = json.loads(json.dumps(for_model.recorded_facts()["picture_plan"]))
    reopened = picture_batches.Pictures(PicturePlan.from_json(recorded_plan)).source(dataset[0])
    assert torch.equal(reopened.batch([(0, 3, (1, 2, 3))]).finish()[0], pictures_for_model)

    smaller = dataclasses.replace(plain, plan=dataclasses.replace(plain.plan, size=32))
    expected, _ = smaller.batch([(0, 3, (1, 2, 3))]).finish()
    levels = [
        x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        for x, mean, std in (
            (pictures_for_model, *model_input[1:]),
            (expected, IMAGENET_MEAN, IMAGENET_STD),
        )
    ]
    torch.testing.assert_close(*levels)


def test_a_processor_without_numba_is_told_once_to_install_it(
    pictures, fast_job, tmp_path, monkeypatch, capsys
):
    with_numba, printed = fast_job
    assert "Pictures: fast" in printed and "install numba" not in printed

    monkeypatch.setattr(stages, "has_numba", lambda: False)
    without = trained(pictures, tmp_path / "without")
    assert capsys.readouterr().out.count("pip install numba") == 1
    assert {record["pictures"] for record in without} == {
        "fast, jitter by torch, normalised for the model"
    }
    for record, expected in zip(without, with_numba, strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], abs=0.02)
