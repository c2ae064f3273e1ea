"""Example pictures of a real sweep, judged again with plain torch."""

import base64
import io
import itertools
import json
import re
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import report_page
import torch
from domainbed.lib import misc
from domainbed.scripts import train
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from domainbed_carft import cli
from domainbed_carft.data import emoji
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.pictures.preprocessing import CLIP_MEAN as MEAN
from domainbed_carft.pictures.preprocessing import CLIP_STD as STD
from domainbed_carft.runs import saved

ENVIRONMENTS = ("line", "noto", "twemoji")
CLASSES = ("animal", "face", "food")
PICTURES = 12
# Only with two environments as targets, so that the third one's jobs are missing.
JOBS = [("CARFT", 0), ("CARFT", 1), ("CLIPFineTune", 0), ("CLIPFineTune", 1), ("CLIPZeroShot", 0)]
HPARAMS = {
    "total_steps": 5001,
    "clip_backbone": "tiny",
    "contexts": "emoji",
    "batch_size": 4,
    "lr": 3e-3,
    "warmup_steps": 0,
}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A few of the embedded pictures, as a user's own data set."""
    folder = tmp_path_factory.mktemp("data") / "Drawings"
    for environment, name in itertools.product(ENVIRONMENTS, CLASSES):
        (folder / environment / name).mkdir(parents=True)
        for path in sorted((emoji.style_folders() / environment / name).iterdir())[:PICTURES]:
            shutil.copy(path, folder / environment / name)
    return folder


def train_job(drawings, output, algorithm, target, **hparams):
    words = [
        "--dataset",
        str(drawings),
        "--algorithm",
        algorithm,
        "--test_envs",
        str(target),
        "--steps",
        "7",
        "--checkpoint_freq",
        "3",
        "--workers",
        "0",
        "--skip_training_in_splits",
        "--hparams",
        json.dumps({**HPARAMS, **hparams}),
        "--output_dir",
        str(output),
    ]
    assert train.main(words) == 0


@pytest.fixture(scope="module")
def sweep(drawings, tmp_path_factory):
    """A few steps, at a rate at which the two come to differ."""
    folder = tmp_path_factory.mktemp("real")
    for algorithm, target in JOBS:
        train_job(drawings, folder / f"{algorithm}-{target}", algorithm, target)
    return folder


@pytest.fixture(scope="module")
def text(sweep, tmp_path_factory):
    """The page of its report, whose figures are not drawn."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        report_page.leave_undrawn(patch)
        assert cli.main(["report", str(sweep), "-o", str(folder), "--n_examples", "3"]) == 0

    page = report_page.read(folder)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and all("alt" in img for img in page.all("img"))

    return page.text


def block(text, environment):
    """What the page has of one environment left out."""
    return text.split(f"<h4>{environment} left out</h4>")[1].split("</details>")[0]


def file_of(sweep, algorithm, target):
    """The weights that training-domain validation selects, and their record."""
    folder = sweep / f"{algorithm}-{target}"
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    means = [
        np.mean([record[f"env{env}_out_acc"] for env in range(3) if env != target])
        for record in records
    ]
    best = int(np.argmax(means))
    return folder / ("model.pkl" if best == len(records) - 1 else "model_best.pkl"), records[best]


def classify(drawings, file, target):
    """(algorithm, pictures, labels, class logits) on the target's in-split, by hand."""
    algorithm = saved.open_run(file).algorithm
    tensors = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([v2.Resize((48, 48)), *tensors])
    pictures = ImageFolder(str(drawings / ENVIRONMENTS[target]), transform)
    count = int(len(pictures) * 0.2)
    _, in_split = misc.split_dataset(pictures, count, misc.seed_hash(0, target))
    _, in_split = misc.split_dataset(
        in_split, 0, misc.seed_hash(0, target)
    )  # no uda-split, but shuffled
    x = torch.stack([in_split[i][0] for i in range(len(in_split))])
    y = torch.tensor([in_split[i][1] for i in range(len(in_split))])
    with torch.no_grad():
        return algorithm, x, y, algorithm.predict(x)


def test_counts_are_those_of_the_weights_that_were_selected(drawings, sweep, text):
    target = 0
    environment = ENVIRONMENTS[0]
    right = {}
    for name in ("CARFT", "CLIPFineTune"):
        file, record = file_of(sweep, name, target)
        _, _, y, logits = classify(drawings, file, target)
        right[name] = logits.argmax(dim=1) == y
        recorded = 100 * record[f"env{target}_in_acc"]
        assert right[name].double().mean().item() * 100 == pytest.approx(recorded)
        remark = f"{name}: {file.name}, step {record['step']} (selected); "
        remark += f"accuracy {recorded:.1f}% now, {recorded:.1f}% recorded."
        assert remark in block(text, environment)

    carft, tuned = right.values()
    sentence = (
        f"Of {len(carft)} pictures, both get {(carft & tuned).sum()} right and "
        f"{(~carft & ~tuned).sum()} wrong; only CARFT gets {(carft & ~tuned).sum()} right, only "
        f"CLIPFineTune gets {(tuned & ~carft).sum()} right."
    )

    assert sentence in block(text, environment)
    assert (carft & ~tuned).any() and (tuned & ~carft).any()  # or nothing is tested


def test_examples_are_the_first_pictures_that_only_one_gets_right(drawings, sweep, text):
    files = [file_of(sweep, name, 0)[0] for name in ("CARFT", "CLIPFineTune")]
    (carft, x, y, logits), (tuned, _, _, tuned_logits) = (
        classify(drawings, file, 0) for file in files
    )
    original = saved.open_run(sweep / "CLIPZeroShot-0" / "model.pkl").algorithm
    expected = (
        ((logits.argmax(1) == y) & (tuned_logits.argmax(1) != y)).nonzero().flatten().tolist()
    )
    part = block(text, "line").split("<h5>CLIPFineTune right")[0]

    assert (
        f"<h5>CARFT right, CLIPFineTune wrong: {min(3, len(expected))} of {len(expected)}" in part
    )

    articles = part.split("<article")[1:]
    assert len(articles) == min(3, len(expected))

    for index, article in zip(expected, articles):
        truth = CLASSES[y[index]]
        assert f'aria-label="{truth}, picture {index}"' in article
        share = logits[index].softmax(0)[y[index]].item()
        assert f"✓ right</span>: {truth} {100 * share:.0f}%" in article
        wrong = tuned_logits[index].softmax(0)
        said = f"{CLASSES[wrong.argmax()]} {100 * wrong.max():.0f}%; {truth} "
        assert f"✗ wrong</span>: {said}{100 * wrong[y[index]]:.0f}%" in article
        with torch.no_grad():
            spread = [
                model.context_logits(model.features(x[index : index + 1])).softmax(1)[0]
                for model in (original, carft, tuned)
            ]
        check_contexts(article, spread, truth)
        for name, probabilities in (("CARFT", spread[1]), ("CLIPFineTune", spread[2])):
            kl = (spread[0] * (spread[0] / probabilities).log()).sum().item()
            printed_kl = re.search(rf"<dt>{name}</dt>.*?KL ([\d.]+) nats", article)
            assert float(printed_kl[1]) == pytest.approx(kl, abs=6e-4)
        check_picture(article, x[index])


def check_contexts(article, spread, truth):
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', article)
    printed = {prompt: re.findall(r"<td>(\d+)%", cells) for prompt, cells in rows}
    words = resources.files("domainbed_carft") / "assets" / "contexts" / "emoji.txt"
    templates = [line.strip() for line in words.read_text().splitlines() if line.strip()]
    expected = {i for probabilities in spread for i in probabilities.topk(3).indices.tolist()}

    assert printed == {
        templates[i].replace("{}", truth): [
            f"{100 * probabilities[i]:.0f}" for probabilities in spread
        ]
        for i in expected
    }


def check_picture(article, x):
    """As CLIP sees it: at its own size."""
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', article)[1]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        pixels = np.asarray(picture.convert("RGB")) / 255
    shrunk = torch.nn.functional.interpolate(x[None], (48, 48), mode="bicubic", antialias=True)[0]
    expected = shrunk.numpy().transpose(1, 2, 0) * np.array(STD) + np.array(MEAN)

    assert pixels == pytest.approx(np.clip(expected, 0, 1), abs=1.5 / 255)


def test_missing_weights_are_named_in_place_of_examples(text):
    assert "No trial has the weights of both CARFT and CLIPFineTune." in block(text, "twemoji")
    assert "nats" in block(text, "line")

    part = block(text, "noto")  # no run there has the original encoder
    assert "nats" not in part and "No KL is shown" in part


@pytest.fixture
def one_target(sweep, tmp_path, monkeypatch):
    """The jobs of one target and trial, to be taken apart; figures are not drawn."""
    report_page.leave_undrawn(monkeypatch)
    for name in ("CARFT", "CLIPFineTune"):
        shutil.copytree(sweep / f"{name}-1", tmp_path / "sweep" / name)
    return tmp_path / "sweep"


def page_of(folder, *words):
    output = folder.parent / "report"
    assert cli.main(["report", str(folder), "-o", str(output), *words]) == 0
    return (output / "index.html").read_text(encoding="utf-8")


def with_arguments(**args):
    def damage(path):
        content = torch.load(path, weights_only=True)
        torch.save({**content, "args": {**content["args"], **args}}, path)

    return damage


@pytest.mark.parametrize(
    "damage, reason",
    [
        (with_arguments(holdout_fraction=1.0), "does not belong to the records in its folder"),
        (Path.unlink, "Run both without --skip_model_save"),
        (lambda path: path.write_bytes(b"no weights"), "CARFT/model"),
    ],
)
def test_unusable_weights_are_named_on_the_page(one_target, damage, reason):
    for name in WEIGHTS.values():
        damage(one_target / "CARFT" / name)
    page = page_of(one_target)

    assert reason in block(page, "noto") and "figures/" in page

    without = page_of(one_target, "--n_examples", "0")
    assert "they were switched off" in without and "left out</h4>" not in without
