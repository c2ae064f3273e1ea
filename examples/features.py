"""Draw the image features of a run, and of the CLIP model that it started from, by t-SNE.

Usage: python features.py JOB features.png
"""

import sys

from matplotlib import pyplot as plt
from sklearn.manifold import TSNE
from torch.nn.functional import normalize

import domainbed_carft
from domainbed_carft.data import emoji

job, figure_file = sys.argv[1:]
run = domainbed_carft.load_run(job)
models = {"original CLIP": domainbed_carft.load_original(run), run.title: run}

folder = emoji.environment_folder("EmojiStyles")  # environment/class/image, like your own data
paths = sorted(folder.glob("*/*/*.png"))
environments = [path.parts[-3] for path in paths]
classes = [path.parts[-2] for path in paths]
target = sorted({*environments})[run.args["test_envs"][0]]


def share_of_equal_neighbours(features, labels):
    """Return the share of images whose nearest other image by cosine has the same label."""
    cosines = (features @ features.T).fill_diagonal_(-1)
    neighbours = cosines.argmax(dim=1).tolist()
    equal = [labels[row] == labels[neighbour] for row, neighbour in enumerate(neighbours)]
    return sum(equal) / len(equal)


figure, axes = plt.subplots(2, 2, figsize=(8, 7), layout="constrained")
for (name, model), column in zip(models.items(), axes.T):
    features = normalize(model.features(paths))  # of length 1, as in CLIP's cosines
    points = TSNE(metric="cosine", random_state=0).fit_transform(features.numpy())
    for panel, kind, labels in zip(column, ("environment", "class"), (environments, classes)):
        share = share_of_equal_neighbours(features, labels)
        print(f"{name}: {100 * share:.1f}% of nearest neighbours have the same {kind}")
        panel.set(title=f"{name}, by {kind}", xticks=[], yticks=[])
        for label in sorted({*labels}):
            members = [row for row, label_of_row in enumerate(labels) if label_of_row == label]
            text = f"{label} (target)" if label == target else label
            panel.scatter(*points[members].T, s=2, label=text)
for row in axes:
    row[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4)
figure.savefig(figure_file)
