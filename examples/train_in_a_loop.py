"""CAR-FT in a training loop of your own: train, predict and save, with images of the package."""

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import domainbed_carft
from domainbed_carft.data import emoji

STEPS = 20
TRAINING_STYLES = ("fluent3d", "line", "noto")

folder = emoji.environment_folder("EmojiStyles")  # style/class/image, like your own data
class_names = ImageFolder(str(folder / "line")).classes
hparams = {"clip_backbone": "tiny", "contexts": "emoji"}  # without these, OpenAI's ViT-B/16
algorithm = domainbed_carft.build("CARFT", class_names, hparams=hparams, steps=STEPS, num_domains=3)

torch.manual_seed(0)
styles = [ImageFolder(str(folder / style), algorithm.preprocess) for style in TRAINING_STYLES]
loaders = [DataLoader(style, batch_size=16, shuffle=True) for style in styles]
for step, batches in zip(range(STEPS), zip(*loaders)):
    losses = algorithm.update(list(batches))  # a pair (images, labels) of each style
    if step % 5 == 0:
        print(f"step {step}: loss {losses['loss']:.3f}, KL {losses['loss_kl']:.4f}")

algorithm.eval()
unseen_style = ImageFolder(str(folder / "twemoji"), algorithm.preprocess)
correct = 0
for images, labels in DataLoader(unseen_style, batch_size=64):
    with torch.no_grad():
        correct += int((algorithm.predict(images).argmax(1) == labels).sum())
print(f"accuracy on an unseen style: {correct / len(unseen_style):.3f}")

torch.save(algorithm.state_dict(), "carft.pt")
