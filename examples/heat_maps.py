"""Draw Grad-CAM heat maps of a run, and of the CLIP model that it started from.

Usage: python heat_maps.py JOB heat-maps.png
"""

import sys

import torch
from matplotlib import pyplot as plt
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import domainbed_carft
from domainbed_carft.data import emoji

job, figure_file = sys.argv[1:]
run = domainbed_carft.load_run(job)
models = {"original CLIP": domainbed_carft.load_original(run), run.title: run}

folder = emoji.environment_folder("EmojiStyles") / "line"  # class/image, like your own data
class_folders = sorted(folder.iterdir())
images = [Image.open(min(path.iterdir())).convert("RGB") for path in class_folders]
targets = [ClassifierOutputTarget(label) for label in range(len(images))]
# The gradients also reach an encoder that the run did not train.
x = torch.stack([run.transform()(image) for image in images]).to(run.device).requires_grad_()


def tokens_as_map(tokens):
    """Return a block's tokens (1 + rows * columns, N, C) as a map (N, C, rows, columns)."""
    patches = tokens[1:].permute(1, 2, 0)  # without the class token
    side = round(patches.shape[2] ** 0.5)
    return patches.unflatten(2, (side, side))


figure, axes = plt.subplots(3, len(images), figsize=(len(images), 3.7), layout="constrained")
for panel, image, path in zip(axes[0], images, class_folders):
    panel.imshow(image)
    panel.set_title(path.name, fontsize=9)
for (name, model), row in zip(models.items(), axes[1:]):
    # In the last block, the features depend on the patches only through its attention.
    layer = model.algorithm.encoder.transformer.resblocks[-1].ln_1
    with GradCAM(model.algorithm, [layer], reshape_transform=tokens_as_map) as grad_cam:
        heat_maps = grad_cam(x, targets)
    row[0].set_ylabel(name, fontsize=9)
    probabilities = model.predict(images).class_probabilities.diagonal()
    for panel, image, heat_map, probability in zip(row, images, heat_maps, probabilities):
        panel.imshow(image.convert("L").resize(heat_map.shape), cmap="gray")
        panel.imshow(heat_map, cmap="inferno", alpha=0.6)
        panel.set_xlabel(f"{100 * probability:.0f}%", fontsize=9)
for panel in axes.flat:
    panel.set(xticks=[], yticks=[])
figure.savefig(figure_file)
