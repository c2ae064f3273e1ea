"""Exports classify image files like the run, with the exported transform, for each protocol."""

import numpy as np
import open_clip_folders
import pytest
import runs_jobs
import torch
from PIL import Image
from torch.nn.functional import normalize

from domainbed_carft import cli
from domainbed_carft.images.protocols import HOST, PROTOCOLS
from domainbed_carft.runs import export, saved

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Image files of several shapes whose content depends on the place and the filter."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    # transformers crops a pixel beside torchvision's crop if the margin is odd, so it is even here.
    shapes = [(90, 61), (75, 75), (64, 130), (60, 300), (152, 70), (333, 500)]
    for number, (height, width) in enumerate(shapes):
        columns = np.linspace(0, 255, width)
        stripes = 127 + 127 * np.sign(np.sin(noise.uniform(0.3, 1.5) * np.arange(height)))
        channels = [np.broadcast_to(columns, (height, width))]
        channels += [np.broadcast_to(stripes[:, None], (height, width)), channels[0][:, ::-1]]
        pixels = np.stack([channels[n] for n in noise.permutation(3)], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def clip_name(tmp_path_factory):
    return open_clip_folders.write(tmp_path_factory.mktemp("clip"), "quickgelu")


@pytest.fixture(scope="module", params=[*PROTOCOLS])
def run(request, clip_name, tmp_path_factory):
    """A run with a protocol; the learning rate is so high that the logits differ by image."""
    folder = tmp_path_factory.mktemp("run")
    images = runs_jobs.write_images(folder / "pets", 4)
    protocol = "domainbed" if request.param == HOST else request.param
    hparams = {"clip_backbone": clip_name, "protocol": protocol}
    job = runs_jobs.train_job(folder / "job", images, "CARFT", **hparams)
    if request.param == HOST:  # as another DomainBed saves it
        job = runs_jobs.copy_changed(job, folder / "host", image_plan=None, protocol=HOST)
    return saved.load_run(job, device="cpu")


def encode_by_transformers(folder, paths):
    preprocess = transformers.CLIPProcessor.from_pretrained(folder)
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    images = [Image.open(path) for path in paths]
    inputs = preprocess(images=images, return_tensors="pt")
    return model(**inputs).image_embeds


def encode_by_open_clip(folder, paths):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval().encode_image(torch.stack([preprocess(Image.open(p)) for p in paths]))


@pytest.mark.parametrize(
    ("format", "encode"),
    [("transformers", encode_by_transformers), ("original", encode_by_open_clip)],
)
def test_exported_transform_gives_the_logits_of_the_run(
    format, encode, run, clip_name, paths, tmp_path
):
    folder = tmp_path / "folder"
    files = export.export(run, folder, format=format, original=clip_name)
    head = torch.load(files.head, weights_only=True)
    with torch.no_grad():
        features = normalize(encode(folder, paths), dim=-1)
    logits = head["logit_scale"] * features @ head["weight"].T + head["bias"]

    predictions = run.predict(paths)
    expected = predictions.class_probabilities.log()
    torch.testing.assert_close(logits.double().log_softmax(dim=1), expected, rtol=0, atol=0.01)
    assert (expected[:, None] - expected).abs().max() > 0.3


def test_export_says_that_the_transforms_of_another_host_are_not_known(
    run, clip_name, tmp_path, capsys
):
    folder = tmp_path / "folder"
    assert cli.main(["export", str(run.path), "-o", str(folder), "--original", clip_name]) == 0
    is_host = run.hparams["protocol"] == HOST
    assert ("does not contain the transforms" in capsys.readouterr().out) == is_host
    page = (folder / "README.md").read_text().replace("\n", " ")
    assert ("does not contain the transforms" in page) == is_host


def test_card_names_a_second_resize_that_a_single_transform_lacks(clip_name, tmp_path):
    images = runs_jobs.write_images(tmp_path / "pets", 4)
    hparams = {"clip_backbone": clip_name, "preprocessing": "48 bicubic shortest"}
    job = runs_jobs.train_job(tmp_path / "job", images, "CARFT", **hparams)
    files = export.export(job, tmp_path / "folder", original=clip_name)
    page = files.readme.read_text().replace("\n", " ")
    assert "resized images to 48 pixels and then to 64" in page
