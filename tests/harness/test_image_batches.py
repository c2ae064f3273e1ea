"""Images made in two stages, compared with upstream's transforms."""

import dataclasses
import json

import torch
from domainbed import datasets
from domainbed.lib import image_batches

from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def test_images_for_a_model_equal_renormalised_upstream_images(images):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.1, 0.3)
    dataset_class = datasets.get_dataset_class(str(images))
    hparams = {"data_augmentation": True}
    upstreams = dataset_class(None, [0], hparams)
    plain = image_batches.choose(upstreams, 0).source(upstreams[0])
    dataset = dataset_class.for_job(None, [0], hparams, Preprocessing(32, mean=mean, std=std))
    for_model = image_batches.choose(dataset, 0)
    assert dataset.input_shape == (3, 32, 32)

    images_for_model, _ = for_model.source(dataset[0]).batch([(0, 3, (1, 2, 3))]).finish()
    recorded_plan = json.loads(json.dumps(for_model.recorded_facts()["image_plan"]))
    reopened = image_batches.Images(ImagePlan.from_json(recorded_plan)).source(dataset[0])
    assert torch.equal(reopened.batch([(0, 3, (1, 2, 3))]).finish()[0], images_for_model)

    smaller = dataclasses.replace(plain, plan=dataclasses.replace(plain.plan, size=32))
    expected, _ = smaller.batch([(0, 3, (1, 2, 3))]).finish()
    levels = [
        x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
        for x, mean, std in (
            (images_for_model, mean, std),
            (expected, IMAGENET_MEAN, IMAGENET_STD),
        )
    ]
    torch.testing.assert_close(*levels)
