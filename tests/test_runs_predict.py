"""`carft predict`: the probabilities of images of any name and kind; broken ones are told."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from runs_jobs import carft, changed, weights
from torchvision.datasets.folder import default_loader

from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import prompts
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.runs import saved


def predict(capfd, run, *paths, status=0, flags=()):
    """The objects of the JSON Lines that are printed; and what is on stderr."""
    carft("predict", run, *paths, "--format", "jsonl", *flags, status=status)
    out, err = capfd.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def noise(path, seed=0, size=(30, 20), **save_options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save_options)
    return path


def test_predict_gives_the_probabilities_of_the_run(pets, capfd):
    run = saved.open_run(pets / "CARFT")
    folder = pets / "my pets" / "art"
    predictions, err = predict(capfd, pets / "CARFT" / "model.pkl", folder)
    paths = [prediction["path"] for prediction in predictions]
    assert paths == sorted(map(str, folder.glob("*/*.png"))) and err == ""

    plan = plan_for("domainbed", 48, augment=False).for_model(48, CLIP_MEAN, CLIP_STD)
    transform = PlanTransform(plan)
    for prediction in predictions:
        x = transform(default_loader(prediction["path"]))[None]
        with torch.no_grad():
            features = run.algorithm.features(x)
            shares = run.algorithm.class_logits(features).softmax(1)[0].tolist()
            contexts = run.algorithm.context_logits(features).softmax(1)[0].tolist()
        assert list(prediction["classes"]) == run.classes
        assert list(prediction["contexts"]) == run.contexts
        assert list(prediction["classes"].values()) == pytest.approx(shares, abs=1e-5)
        assert list(prediction["contexts"].values()) == pytest.approx(contexts, abs=1e-5)


def test_predict_takes_files_and_folders_and_names_the_weights(pets, tmp_path, capfd):
    folder = tmp_path / "in"
    (folder / "z" / "deep er").mkdir(parents=True)
    bytes_name = os.fsdecode(b"bytes \xff.png")
    for name in ("z/deep er/two\nlines.PNG", "z/ü.jpeg", bytes_name):
        noise(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "link.png").symlink_to(bytes_name)
    (folder / "z" / "around").symlink_to(folder)  # not followed

    predictions, err = predict(capfd, pets / "CARFT", folder)
    names = [bytes_name, "link.png", "z/ü.jpeg", "z/deep er/two\nlines.PNG"]
    assert [prediction["path"] for prediction in predictions] == [f"{folder}/{n}" for n in names]
    assert err.startswith(f"carft: Weights: model_best.pkl of {pets / 'CARFT'}, selected by")

    carft("predict", pets / "CARFT", folder, "-o", tmp_path / "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[0].startswith(rf"{folder}/bytes \udcff.png: ")
    assert lines[3].startswith(rf"{folder}/z/deep er/two\nlines.PNG: ")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_broken_images_are_named_and_skipped(pets, tmp_path, capfd, workers):
    noise(tmp_path / "1 good.png")
    (tmp_path / "2 script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")  # Ghostscript's
    intact_bytes = noise(tmp_path / "3 cut.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "3 cut.jpg").write_bytes(intact_bytes[: len(intact_bytes) // 2])
    (tmp_path / "4 gone.png").symlink_to("nowhere")
    noise(tmp_path / "5 good.png", seed=1)
    (tmp_path / "6 empty").mkdir()
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # the harness's, whose datasets read on

    flags = ("--workers", workers, "--batch_size", "3")
    paths = (tmp_path, tmp_path / "6 empty")
    predictions, err = predict(capfd, pets / "CARFT", *paths, status=3, flags=flags)
    names = [os.path.basename(prediction["path"]) for prediction in predictions]
    assert names == sorted(names) and len(names) == 6

    reasons = [prediction.get("error", "") for prediction in predictions]
    assert reasons[0] == reasons[4] == ""
    assert reasons[1] == "not an image Pillow can read" and "truncated" in reasons[2]
    assert reasons[3] == "No such file or directory"
    assert reasons[5].startswith("no images in this folder")
    for prediction in predictions[1:4]:
        assert f"carft: {prediction['path']} skipped: {prediction['error']}\n" in err
    assert err.endswith("carft: skipped 4 of 6 images\n")

    predict(capfd, pets / "CARFT", tmp_path / "2 script.png", status=1)
    alone, _ = predict(capfd, pets / "CARFT", tmp_path / "5 good.png")
    assert alone[0]["classes"] == pytest.approx(predictions[4]["classes"], abs=1e-6)


def test_the_likeliest_classes_come_first(pets, tmp_path, capfd):
    image = noise(tmp_path / "x.png")
    (every,), _ = predict(capfd, pets / "CARFT", image)
    (top,), _ = predict(capfd, pets / "CARFT", image, flags=("--top", "2"))
    best = sorted(every["contexts"].items(), key=lambda item: -item[1])[:2]
    assert list(top["contexts"].items()) == best and len(every["contexts"]) > 2

    carft("predict", pets / "CARFT", image, "--top", 1)
    context, share = best[0]
    assert capfd.readouterr().out.endswith(f"% | {context} {100 * share:.1f}%\n")


def test_predictions_undo_a_hosts_normalisation(pets, tmp_path):
    """Only its normalisation is known: what the encoder sees is what it saw."""
    run = saved.open_run(pets / "CARFT")
    run.hparams["protocol"] = "host"
    for key in ("images", "image_plan"):  # no other host writes them
        del run.content[key]
    half = (0.5, 0.5, 0.5)
    run.algorithm.input = CLIPInput(run.algorithm.input.preprocessing, half, half)

    image = default_loader(str(noise(tmp_path / "x.png")))
    raw = PlanTransform(plan_for("domainbed", 48, False))(image)
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
    x = run.transform()(image)
    torch.testing.assert_close(x, (raw * std + mean - 0.5) / 0.5, rtol=1e-4, atol=1e-5)


def test_classes_of_the_same_name_are_told_apart_by_label(pets, tmp_path, capfd):
    """Of the folders "Wild_Dog" and "wild-dog", say."""
    text = prompts.as_json(prompts.parse_contexts("emoji"), ["wild dog", "wild dog"])
    words = torch.tensor([*text.encode()], dtype=torch.uint8)
    job = changed(pets / "CARFT", tmp_path, model_dict={"words": words})
    ((prediction,), _) = predict(capfd, job, noise(tmp_path / "x.png"))
    assert list(prediction["classes"]) == ["wild dog (label 0)", "wild dog (label 1)"]
    assert sum(prediction["classes"].values()) == pytest.approx(1)


def test_weights_that_overflow_are_an_error(pets, tmp_path, capfd):
    head = weights(pets / "CARFT" / "model.pkl")["head.weight"].sign() * 3e38
    job = changed(pets / "CARFT", tmp_path, model_dict={"head.weight": head})
    for command in (("predict", job, noise(tmp_path / "x.png")), ("evaluate", job)):
        carft(*command, status=1)
        assert "the weights are finite but overflow: " in capfd.readouterr().err


def test_too_little_memory_is_reported_in_one_line(pets, capfd, monkeypatch):
    monkeypatch.setattr(CLIPAlgorithm, "features", lambda *_: torch.empty(1 << 60))
    carft("evaluate", pets / "CARFT", "--batch_size", "77", status=1)
    error = "carft: out of memory with --batch_size 77; choose a smaller one"
    assert error in capfd.readouterr().err
