"""`carft predict`: the probabilities of images with any name and format, and of broken images."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from runs_jobs import carft, copy_changed, load_weights
from torchvision import transforms
from torchvision.datasets.folder import default_loader

import domainbed_carft
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.images.clip_input import CLIPInput
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import prompts
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.runs import saved


def predict(capfd, run, *paths, status=0, flags=()):
    """Return the printed objects (JSON Lines) and the text on stderr."""
    carft("predict", run, *paths, "--format", "jsonl", *flags, status=status)
    out, err = capfd.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def noise(path, seed=0, size=(30, 20), **save_options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save_options)
    return path


def test_probabilities_equal_a_direct_computation(pets, capfd):
    run = saved.load_run(pets / "CARFT", "last", device="cpu")
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


def test_features_equal_clip_with_the_weights_of_the_run(pets):
    run = domainbed_carft.load_run(pets / "CARFT", device="cpu")
    paths = sorted((pets / "my pets" / "art").glob("*/*.png"))
    steps = (transforms.Resize((48, 48)), transforms.ToTensor())
    preprocess = transforms.Compose([*steps, transforms.Normalize(CLIP_MEAN, CLIP_STD)])
    images = torch.stack([preprocess(default_loader(str(path))) for path in paths])

    clip = backbone.load("tiny").model
    state = load_weights(run.path)
    encoder = {name[8:]: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    with torch.no_grad():
        original = clip.encode_image(images)
        clip.visual.load_state_dict(encoder)
        tuned = clip.encode_image(images)
    features = run.features(paths)
    torch.testing.assert_close(features, tuned, rtol=0, atol=1e-5)
    features_of_original = domainbed_carft.load_original(run).features(paths)
    torch.testing.assert_close(features_of_original, original, rtol=0, atol=1e-5)

    cosines = features / features.norm(dim=1, keepdim=True) @ state["head.weight"].T
    logits = cosines * state["head_factor"] + state["head.bias"]
    shares = run.predict(paths).class_probabilities
    torch.testing.assert_close(logits.double().softmax(1), shares, rtol=0, atol=1e-5)


def test_features_do_not_depend_on_batches_or_the_kind_of_image(pets):
    run = domainbed_carft.load_run(pets / "CARFT", device="cpu")
    paths = sorted((pets / "my pets" / "art").glob("*/*.png"))
    features = run.features(paths)
    images = [Image.open(path) for path in paths]
    batch = torch.stack([transforms.functional.pil_to_tensor(image) for image in images])
    for inputs in (images, batch, [*batch], torch.stack([*map(run.transform(), images)])):
        torch.testing.assert_close(run.features(inputs, batch_size=3), features)
    torch.testing.assert_close(run.features(batch[0]), features[:1])

    with pytest.raises(CarftError, match="gone.png cannot be read"):
        run.features([paths[0], "gone.png"])


@pytest.mark.parametrize("job", ["CARFT", "CLIPLinearProbe"])
def test_original_of_a_run_predicts_as_zero_shot_clip(job, pets):
    paths = sorted((pets / "my pets" / "art").glob("*/*.png"))
    run = domainbed_carft.load_run(pets / job, device="cpu")
    before = run.predict(paths).class_probabilities
    predicted = domainbed_carft.load_original(run).predict(paths).class_probabilities
    zero_shot = domainbed_carft.load_run(pets / "CLIPZeroShot", device="cpu").predict(paths)
    torch.testing.assert_close(predicted, zero_shot.class_probabilities, rtol=0, atol=1e-5)
    assert torch.equal(run.predict(paths).class_probabilities, before)


def test_folder_is_searched_recursively_for_any_file_name(pets, tmp_path, capfd):
    folder = tmp_path / "in"
    (folder / "z" / "deep er").mkdir(parents=True)
    bytes_name = os.fsdecode(b"bytes \xff.png")
    for name in ("z/deep er/two\nlines.PNG", "z/ü.jpeg", bytes_name):
        noise(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "link.png").symlink_to(bytes_name)
    (folder / "z" / "around").symlink_to(folder)  # links to folders are not followed

    predictions, err = predict(capfd, pets / "CARFT", folder)
    names = [bytes_name, "link.png", "z/ü.jpeg", "z/deep er/two\nlines.PNG"]
    assert [prediction["path"] for prediction in predictions] == [f"{folder}/{n}" for n in names]
    assert err.startswith(f"carft: Weights: model_best.pkl of {pets / 'CARFT'}, selected by")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_broken_images_are_named_and_skipped(pets, tmp_path, capfd, workers):
    noise(tmp_path / "1 good.png")
    (tmp_path / "2 script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")  # Ghostscript
    intact_bytes = noise(tmp_path / "3 cut.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "3 cut.jpg").write_bytes(intact_bytes[: len(intact_bytes) // 2])
    (tmp_path / "4 gone.png").symlink_to("nowhere")
    noise(tmp_path / "5 good.png", seed=1)
    (tmp_path / "6 empty").mkdir()
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # set by the harness for its datasets

    flags = ("--workers", workers, "--batch-size", "3")
    paths = (tmp_path, tmp_path / "6 empty")
    predictions, err = predict(capfd, pets / "CARFT", *paths, status=3, flags=flags)
    reasons = {os.path.basename(row["path"]): row.get("error", "") for row in predictions}
    assert list(reasons) == sorted(reasons) and len(predictions) == 6
    assert reasons["1 good.png"] == reasons["5 good.png"] == ""
    assert reasons["2 script.png"] == "not an image Pillow can read"
    assert "truncated" in reasons["3 cut.jpg"]
    assert reasons["4 gone.png"] == "No such file or directory"
    assert reasons["6 empty"].startswith("no images in this folder")
    assert f"{tmp_path}/4 gone.png" in err and "4 of 6 images" in err

    predict(capfd, pets / "CARFT", tmp_path / "2 script.png", status=1)
    alone, _ = predict(capfd, pets / "CARFT", tmp_path / "5 good.png")
    assert alone[0]["classes"] == pytest.approx(predictions[4]["classes"], abs=1e-6)


def test_top_prints_the_most_likely_contexts_first(pets, tmp_path, capfd):
    image = noise(tmp_path / "x.png")
    (complete,), _ = predict(capfd, pets / "CARFT", image)
    (top,), _ = predict(capfd, pets / "CARFT", image, flags=("--top", "2"))
    best = sorted(complete["contexts"].items(), key=lambda item: -item[1])[:2]
    assert list(top["contexts"].items()) == best and len(complete["contexts"]) > 2

    carft("predict", pets / "CARFT", image, "--top", 1)
    context, share = best[0]
    assert capfd.readouterr().out.endswith(f"% | {context} {100 * share:.1f}%\n")


def test_transform_replaces_the_normalisation_of_a_foreign_host(pets, tmp_path):
    run = saved.load_run(pets / "CARFT", "last", device="cpu")
    run.hparams["protocol"] = "host"
    for key in ("images", "image_plan"):  # other hosts do not write them
        del run.content[key]
    half = (0.5, 0.5, 0.5)
    run.algorithm.input = CLIPInput(run.algorithm.input.preprocessing, half, half)

    image = default_loader(str(noise(tmp_path / "x.png")))
    raw = PlanTransform(plan_for("domainbed", 48, False))(image)
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
    x = run.transform()(image)
    torch.testing.assert_close(x, (raw * std + mean - 0.5) / 0.5, rtol=1e-4, atol=1e-5)


def test_classes_with_the_same_name_have_their_labels_added(pets, tmp_path, capfd):
    """The prompts of the folders "Wild_Dog" and "wild-dog" are equal, for example."""
    text = prompts.as_json(prompts.parse_contexts("emoji"), ["wild dog", "wild dog"])
    words = torch.tensor([*text.encode()], dtype=torch.uint8)
    job = copy_changed(pets / "CARFT", tmp_path, model_dict={"words": words})
    ((prediction,), _) = predict(capfd, job, noise(tmp_path / "x.png"))
    assert list(prediction["classes"]) == ["wild dog (label 0)", "wild dog (label 1)"]
    assert sum(prediction["classes"].values()) == pytest.approx(1)


def test_overflow_of_logits_is_an_error(pets, tmp_path, capfd):
    head = load_weights(pets / "CARFT" / "model.pkl")["head.weight"].sign() * 3e38
    job = copy_changed(pets / "CARFT", tmp_path, model_dict={"head.weight": head})
    for command in (("predict", job, noise(tmp_path / "x.png")), ("evaluate", job)):
        carft(*command, status=1)
        assert "the weights are finite but overflow: " in capfd.readouterr().err


def test_overflow_of_features_is_an_error(pets, tmp_path):
    weight = load_weights(pets / "CARFT" / "model.pkl")["encoder.conv1.weight"].sign() * 3e38
    job = copy_changed(pets / "CARFT", tmp_path, model_dict={"encoder.conv1.weight": weight})
    with pytest.raises(CarftError, match="the weights are finite but overflow: 1 of 1 images"):
        saved.load_run(job, device="cpu").features(noise(tmp_path / "x.png"))


@pytest.mark.parametrize("flags", [("--batch-size", 2**63), ("--workers", 1_000_000)])
def test_sizes_that_no_machine_has_are_refused(pets, capfd, flags):
    with pytest.raises(SystemExit):
        carft("predict", pets / "CARFT", "x.png", *flags)
    assert (
        f"{flags[0]}: '{flags[1]}'; expected a whole number of at least" in capfd.readouterr().err
    )


def test_out_of_memory_is_reported_in_one_line(pets, capfd, monkeypatch):
    monkeypatch.setattr(CLIPAlgorithm, "features", lambda *_: torch.empty(1 << 60))
    carft("evaluate", pets / "CARFT", "--batch-size", "77", status=1)
    assert "out of memory with --batch-size 77" in capfd.readouterr().err
