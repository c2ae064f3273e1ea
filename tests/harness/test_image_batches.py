"""Images made in two stages, compared with upstream's transforms."""

import dataclasses
import json

import torch
from domainbed import datasets
from domainbed.lib import image_batches

from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def test_images_for_a_model_equal_renormalised_upstream_images(images):
    model_input = (32, (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    dataset = datasets.get_dataset_class(str(images))(None, [0], {"data_augmentation": True})
    plain = image_batches.choose(dataset, 0).source(dataset[0])
    for_model = image_batches.choose(dataset, 0, lambda: model_input)
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
            (images_for_model, *model_input[1:]),
            (expected, IMAGENET_MEAN, IMAGENET_STD),
        )
    ]
    torch.testing.assert_close(*levels)
