"""`carft predict`: the probabilities of pictures of any name and kind; broken ones are told."""

import json
import os

import numpy as np
import pytest
import torch
from domainbed import datasets
from PIL import Image, ImageFile
from runs_jobs import carft
from torchvision.datasets.folder import default_loader
from torchvision.transforms import Normalize

from domainbed_carft import cli
from domainbed_carft.method import algorithm, prompts
from domainbed_carft.pictures.clip_input import CLIPInput
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.runs import saved


def predict(capfd, run, *paths, status=0, flags=()):
    """The objects of the JSON Lines that are printed; and what is on stderr."""
    carft("predict", run, *paths, "--format", "jsonl", *flags, status=status)
    out, err = capfd.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def noise(path, mode="RGB", seed=0, size=(30, 20), **save_options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save_options)
    return path


def test_predict_gives_the_probabilities_of_the_run(pets, capfd):
    """Through DomainBed's own data set, normalised for the model as in training, and ours."""
    run = saved.open_run(pets / "CARFT")
    folder = datasets.get_dataset_class(str(pets / "my pets"))(None, [0], dict(run.hparams))[0]
    folder.transform.transforms[-1] = Normalize(CLIP_MEAN, CLIP_STD)
    predictions, err = predict(capfd, pets / "CARFT" / "model.pkl", pets / "my pets" / "art")
    assert [prediction["path"] for prediction in predictions] == sorted(
        path for path, _ in folder.samples
    )
    assert err == ""

    by_path = {path: x for (path, _), (x, _) in zip(folder.samples, folder)}
    for prediction in predictions:
        with torch.no_grad():
            features = run.algorithm.features(by_path[prediction["path"]][None])
            shares = run.algorithm.class_logits(features).softmax(1)[0].tolist()
            contexts = run.algorithm.context_logits(features).softmax(1)[0].tolist()
        assert (
            list(prediction["classes"]) == run.classes
            and list(prediction["contexts"]) == run.contexts
        )
        assert list(prediction["classes"].values()) == pytest.approx(shares, abs=1e-5)
        assert list(prediction["contexts"].values()) == pytest.approx(contexts, abs=1e-5)
        assert sum(prediction["contexts"].values()) == pytest.approx(1)


def test_predict_names_the_weights_on_stderr(pets, tmp_path, capfd):
    picture = noise(tmp_path / "x.png")
    _, error_output = predict(capfd, pets / "CARFT", picture)
    assert error_output.startswith(
        f"carft: Weights: model_best.pkl of {pets / 'CARFT'}, selected by"
    )
    for flags in (("--which", "best"), ("--which", "last")):
        assert predict(capfd, pets / "CARFT", picture, flags=flags)[1] == ""


NAMES = [b"a b.png", b'it\'s "so".PNG', b"two\nlines.png", b"bytes \xff\xfe.png", "ü.jpeg".encode()]


def test_predict_takes_files_and_folders(pets, tmp_path, capfd):
    root = os.fsencode(tmp_path / "in")
    os.makedirs(root + b"/z/deep er")
    for number, name in enumerate(NAMES):
        place = root if number % 2 else root + b"/z/deep er"
        with open(os.path.join(place, name), "wb") as file:
            kind = "JPEG" if name.endswith(b"jpeg") else "PNG"
            noise(file, seed=number, format=kind)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "link.png").symlink_to(os.fsdecode(NAMES[1]))
    (tmp_path / "in" / "z" / "around").symlink_to(tmp_path / "in")  # not followed
    predictions, _ = predict(capfd, pets / "CARFT", tmp_path / "in")
    paths = [prediction["path"] for prediction in predictions]
    assert paths == sorted(paths)
    assert sorted(map(os.path.basename, paths)) == sorted([*map(os.fsdecode, NAMES), "link.png"])

    text = tmp_path / "out.txt"
    carft("predict", pets / "CARFT", tmp_path / "in", "-o", text)
    lines = text.read_text().splitlines()
    for name in ("two\\nlines.png: ", "bytes \\udcff\\udcfe.png: "):
        assert len(lines) == 6 and sum(name in line for line in lines) == 1


def test_pictures_of_every_mode_are_read_as_rgb(pets, tmp_path, capfd):
    values = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "16 bits.png")
    for mode in ("CMYK", "P", "L", "1", "RGBA", "LA"):
        noise(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", mode)
    for path in list(tmp_path.iterdir()):
        Image.open(path).convert("RGB").save(f"{path}.bmp")
    predictions, _ = predict(capfd, pets / "CARFT", tmp_path)  # each before its copy
    for prediction, copy in zip(predictions[::2], predictions[1::2], strict=True):
        assert copy["path"] == f"{prediction['path']}.bmp"
        assert prediction["classes"] == pytest.approx(copy["classes"], abs=1e-6)


# Which Pillow gives to Ghostscript, if it may.
POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n"


def break_in_every_way(folder):
    noise(folder / "1 good.png")
    (folder / "2 empty.png").touch()
    (folder / "3 text.jpg").write_text("no picture")
    intact_bytes = noise(folder / "4 cut.jpg", size=(300, 300)).read_bytes()
    (folder / "4 cut.jpg").write_bytes(intact_bytes[: len(intact_bytes) // 2])
    (folder / "5 gone.png").symlink_to("nowhere")
    (folder / "6 script.png").write_text(POSTSCRIPT)
    intact_bytes = noise(folder / "7 damaged.png", size=(300, 300)).read_bytes()
    (folder / "7 damaged.png").write_bytes(intact_bytes[:500] + bytes(200) + intact_bytes[700:])
    noise(folder / "8 good.png", seed=1)
    (folder / "9 empty").mkdir()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_broken_pictures_are_named_and_skipped(pets, tmp_path, capfd, workers):
    break_in_every_way(tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # the harness's, whose data sets read on

    flags = ("--workers", workers, "--batch_size", "3")
    paths = (tmp_path, tmp_path / "9 empty")
    predictions, err = predict(capfd, pets / "CARFT", *paths, status=3, flags=flags)
    assert predictions.pop()["error"].startswith("no pictures in this folder")

    names = [os.path.basename(prediction["path"]) for prediction in predictions]
    assert names == sorted(names) and len(names) == 8

    good = [prediction for prediction in predictions if "error" not in prediction]
    assert [os.path.basename(prediction["path"]) for prediction in good] == [
        "1 good.png",
        "8 good.png",
    ]

    reasons = {
        name[:1]: prediction["error"]
        for name, prediction in zip(names, predictions)
        if "error" in prediction
    }
    assert reasons["2"] == reasons["3"] == reasons["6"] == "not an image Pillow can read"
    assert "truncated" in reasons["4"] and reasons["5"] == "No such file or directory"

    for prediction in predictions[1:7]:
        assert f"carft: {prediction['path']} skipped: {prediction['error']}\n" in err
    assert err.endswith("carft: skipped 7 of 9 pictures\n")
    assert ImageFile.LOAD_TRUNCATED_IMAGES

    predict(capfd, pets / "CARFT", tmp_path / "3 text.jpg", status=1)
    alone, _ = predict(capfd, pets / "CARFT", tmp_path / "8 good.png")
    assert alone[0]["classes"] == pytest.approx(good[1]["classes"], abs=1e-6)


def test_the_likeliest_classes_come_first(pets, tmp_path, capfd):
    noise(tmp_path / "x.png")
    ((every,), _), ((top,), _) = (
        predict(capfd, pets / "CARFT", tmp_path / "x.png", flags=flags)
        for flags in ((), ("--top", "2"))
    )
    best = sorted(every["contexts"].items(), key=lambda item: -item[1])[:2]
    assert list(top["contexts"].items()) == best and len(every["contexts"]) > 2

    carft("predict", pets / "CARFT", tmp_path / "x.png", "--top", 1)
    context, share = best[0]
    line = capfd.readouterr().out
    assert line.startswith(f"{tmp_path / 'x.png'}: ")
    assert line.endswith(f"% | {context} {100 * share:.1f}%\n") and line.count("%") == 2


def test_predictions_undo_a_hosts_normalisation(pets, tmp_path):
    """Only its normalisation is known: what the encoder sees is what it saw."""
    run = saved.open_run(pets / "CARFT")
    run.hparams["protocol"] = "host"
    for key in ("pictures", "picture_plan"):  # no other host writes them
        del run.content[key]
    half = (0.5, 0.5, 0.5)
    run.algorithm.input = CLIPInput(run.algorithm.input.preprocessing, half, half)
    transform = run.transform()
    x = transform(default_loader(str(noise(tmp_path / "x.png"))))
    raw = PlanTransform(plan_for("domainbed", 48, False))(default_loader(str(tmp_path / "x.png")))
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_STD, IMAGENET_MEAN))
    torch.testing.assert_close(x, (raw * std + mean - 0.5) / 0.5, rtol=1e-4, atol=1e-5)


def test_classes_of_the_same_name_are_told_apart_by_label(pets, tmp_path, capfd):
    """Of the folders "Wild_Dog" and "wild-dog", say: their labels tell them apart."""
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    words = prompts.as_json(prompts.contexts("emoji"), ["wild dog", "wild dog"]).encode()
    content["model_dict"]["words"] = torch.tensor([*words], dtype=torch.uint8)
    torch.save(content, tmp_path / "model.pkl")
    ((prediction,), _) = predict(capfd, tmp_path, noise(tmp_path / "x.png"))
    assert list(prediction["classes"]) == ["wild dog (label 0)", "wild dog (label 1)"]
    assert sum(prediction["classes"].values()) == pytest.approx(1)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_weights_that_overflow_are_an_error(pets, tmp_path, capfd, command):
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    content["model_dict"]["head.weight"].sign_().mul_(3e38)
    torch.save(content, tmp_path / "model.pkl")
    pictures = [noise(tmp_path / "x.png")] if command == "predict" else []
    carft(command, tmp_path, *pictures, status=1)
    out, err = capfd.readouterr()
    assert "the weights are finite but overflow: " in err and "nan" not in out


def of_the_machine(*_):
    return torch.empty(1 << 60)


def of_a_gpu(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("run_out", [of_the_machine, of_a_gpu])
@pytest.mark.parametrize("command", ["evaluate", "predict", "wise-ft"])
def test_too_little_memory_is_reported_in_one_line(
    pets, tmp_path, capfd, monkeypatch, command, run_out
):
    flags = {"predict": [noise(tmp_path / "x.png")], "wise-ft": ["-o", tmp_path / "mix"]}
    arguments = [command, pets / "CARFT", *flags.get(command, ()), "--batch_size", "77"]
    monkeypatch.setattr(algorithm.CLIPAlgorithm, "features", run_out)
    assert cli.main(list(map(str, arguments))) == 1
    error = "carft: out of memory with --batch_size 77; choose a smaller one"
    assert error in capfd.readouterr().err
