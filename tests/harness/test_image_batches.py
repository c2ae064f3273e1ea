"""Images made in two stages, compared with upstream's transforms."""

import dataclasses
import json

import torch
from domainbed import datasets
from domainbed.lib import fast_data_loader, preparation

from domainbed_carft.images import stages
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def read(source, requests):
    batch = source.read(requests)
    return stages.second_stage(batch.plan, batch.images, batch.choices)


def test_images_for_a_model_equal_renormalised_upstream_images(images):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    dataset_class = datasets.get_dataset_class(str(images))
    hparams = {"data_augmentation": True}
    upstreams = dataset_class(None, [0], hparams)
    plain = fast_data_loader.find_source(upstreams[0])
    dataset = dataset_class.for_job(None, [0], hparams, Preprocessing(32, mean=mean, std=std))
    assert dataset.input_shape == (3, 32, 32)

    requests = [(0, 3, (1, 2, 3))]
    images_for_model = read(fast_data_loader.find_source(dataset[0]), requests)
    plan = preparation.find_job_plan(dataset)
    recorded = json.loads(json.dumps(preparation.recorded_image_facts(plan)["image_plan"]))
    assert ImagePlan.from_json(recorded) == plan and plan.is_for_model

    smaller = dataclasses.replace(plain, plan=dataclasses.replace(plain.plan, size=32))
    expected = read(smaller, requests)
    levels = [
        x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        for x, mean, std in (
            (images_for_model, mean, std),
            (expected, IMAGENET_MEAN, IMAGENET_STD),
        )
    ]
    torch.testing.assert_close(*levels)
