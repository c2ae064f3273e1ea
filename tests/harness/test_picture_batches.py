"""Jobs whose pictures are made in two stages, and those of upstream's transforms."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
import warm
from domainbed import datasets
from domainbed.lib import picture_batches

from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.pictures.preprocessing import IMAGENET_MEAN, IMAGENET_STD

from . import fakes


def trained(pictures, folder, *flags, **variables):
    """The finished process, and records without what differs between any two runs."""
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "lr": 1e-4}
    fixed = ("--algorithm", "CARFT", "--steps", "4", "--hparams", json.dumps(hparams))
    arguments = fakes.quick(folder, *fixed, "--dataset", str(pictures), *flags)
    env = {**os.environ, "TMPDIR": str(folder.parent), **variables}
    done = warm.run("-m", "domainbed.scripts.train", *arguments, cwd=folder.parent, env=env)
    assert done.returncode == 0, done.stderr

    records = fakes.records(folder)
    for record in records:
        del record["step_time"], record["evaluation_time"]
        del record["args"]["output_dir"], record["args"]["workers"]
    return done, records


def test_the_store_changes_no_record_and_pillow_changes_them_little(pictures, tmp_path):
    done, plain = trained(pictures, tmp_path / "plain")
    assert len(plain) == 3 and {r["pictures"].split()[0] for r in plain} == {"fast,"}
    assert "decoded pictures are not kept: --picture_cache is 0" in done.stdout
    for name, workers in (("first", "0"), ("second", "2")):  # writes the store, then reads it
        cache = ("--picture_cache", "64M", "--workers", workers)
        done, cached = trained(pictures, tmp_path / name, *cache)
        assert "decoded pictures are kept in" in done.stdout
        assert cached == plain

    (store,) = tmp_path.glob("domainbed-carft-*")
    assert store.stat().st_mode & 0o077 == 0

    done, pillow = trained(pictures, tmp_path / "pillow", DOMAINBED_PICTURES="pillow")
    assert {record["pictures"] for record in pillow} == {"pillow"}
    for fast_record, pillow_record in zip(plain, pillow, strict=True):
        assert fast_record["loss"] == pytest.approx(pillow_record["loss"], abs=0.02)
        assert fast_record["loss"] != pillow_record["loss"]


def test_pictures_are_normalised_once_for_the_model(pictures):
    """Any plugin's: ERM for one size and normalisation, against those of upstream's, undone."""
    model_input = (32, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    dataset = datasets.get_dataset_class(str(pictures))(None, [0], {"data_augmentation": True})
    plain = picture_batches.choose("fast", "0", dataset).source(dataset[0])
    for_model = picture_batches.choose("fast", "0", dataset, lambda: model_input)
    assert dataset.input_shape == (3, 32, 32)

    pictures_for_model, _ = for_model.source(dataset[0]).batch([(0, 3, (1, 2, 3))])
    recorded_plan = json.loads(json.dumps(for_model.recorded_facts()["picture_plan"]))
    reopened = picture_batches.Pictures(PicturePlan.from_json(recorded_plan)).source(dataset[0])
    assert torch.equal(reopened.batch([(0, 3, (1, 2, 3))])[0], pictures_for_model)

    smaller = dataclasses.replace(plain, plan=dataclasses.replace(plain.plan, size=32))
    expected, _ = smaller.batch([(0, 3, (1, 2, 3))])
    levels = [
        x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        for x, mean, std in (
            (pictures_for_model, *model_input[1:]),
            (expected, IMAGENET_MEAN, IMAGENET_STD),
        )
    ]
    torch.testing.assert_close(*levels)

    def unasked():
        raise AssertionError("it cannot be done with Pillow's pictures")

    assert picture_batches.choose("pillow", "0", dataset, unasked).description == "pillow"
