"""`carft evaluate`, `wise-ft` and `soup` on a suite of test sets with the classes of the pets."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs_jobs
import suite_evaluations
import torch
from clip.clip import _transform as openai_transform
from PIL import Image, ImageOps
from runs_jobs import CLASSES
from torch.nn.functional import cross_entropy, normalize

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.data import image_files
from domainbed_carft.files.weights import sha256
from domainbed_carft.jobs.job_folder import RECORDS
from domainbed_carft.method import prompts
from domainbed_carft.results import metrics
from domainbed_carft.runs import saved, zero_shot
from domainbed_carft.runs.predictions import LoadingOptions
from domainbed_carft.runs.suites import make_suite_test
from domainbed_carft.suites import catalogue
from domainbed_carft.suites.suite import Folders, Suite, TestSet

GROUPS = {"photo": ((0,), (1,)), "Turned": ((0,), (1,)), "One": ((0, 1),), "Cut": ((0,), (1,))}
SHIFTED = ("Turned", "One", "Cut")


def make_set(name, environment, border=0):
    labels = {folder: 0 if name == "One" else label for label, folder in enumerate(CLASSES)}
    if name == "Turned":
        labels = {"cat": 1, "wild dog": 0}
    find = Folders((environment,), labels, 20, 20 if name == "One" else 10)
    classes = tuple(labels)[: len(GROUPS[name])]
    return TestSet(name, classes, GROUPS[name], find, name != "photo", border)


@pytest.fixture
def suite(monkeypatch):
    """The pets' environments as test sets; "Cut" has its border cut, "One" has a single class."""
    sets = (
        make_set("photo", "photo"),
        make_set("Turned", "art"),
        make_set("One", "sketch"),
        make_set("Cut", "art", border=4),
    )
    suite = Suite("pets", CLASSES, sets, "emoji", excluded="Cut")
    monkeypatch.setitem(catalogue.SUITES, "pets", lambda: suite)
    return suite


@pytest.fixture
def job(pets, tmp_path):
    job = shutil.copytree(pets / "CLIPLinearProbe", tmp_path / "job")
    (job / "model_best.pkl").unlink(missing_ok=True)
    return job


@pytest.fixture
def data(pets, tmp_path):
    return shutil.copytree(pets / "my pets", tmp_path / "data")


def carft(capsys, *words, status=0):
    """Run a command on the suite, and return the printed text."""
    command, *others = words
    runs_jobs.carft(command, *others, "--suite", "pets", status=status)
    return capsys.readouterr()


def evaluate(capsys, *words, status=0):
    """Return the document of `carft evaluate` on the suite."""
    printed = carft(capsys, "evaluate", *words, "--json", "--workers", 0, status=status)
    return json.loads(printed.out)


def accuracies(document):
    return {name: scores["accuracy"] for name, scores in document["sets"].items()}


def count_correct(run, test_set, data):
    """Predict one image at a time, and count the correct ones."""
    correct = 0
    for path, label in test_set.find(data).samples:
        image = ImageOps.crop(image_files.open_image(path), test_set.border)
        with torch.no_grad():
            (logits,) = run.algorithm.predict(run.transform()(image)[None]).tolist()
        scores = [max(logits[place] for place in group) for group in test_set.groups]
        correct += scores.index(max(scores)) == label
    return correct


def test_scores_equal_a_direct_computation_and_are_saved(suite, job, data, capsys):
    document = evaluate(capsys, job, "--data_dir", data)
    run = saved.load_run(job, device="cpu")
    for test_set in suite.sets:
        scores = document["sets"][test_set.name]
        assert scores["image_set"]["images"] == 20
        assert sum(scores["class_correct"]) == count_correct(run, test_set, data)
        assert scores["accuracy"] == sum(scores["class_correct"]) / 20
        assert scores["image_set"]["is_complete"]

    shares = accuracies(document)
    assert shares["One"] == 1 and 0 < shares["Turned"] != shares["photo"] < 1
    means = document["means"]
    assert means["mean"] == pytest.approx(sum(shares[name] for name in SHIFTED) / 3)
    assert means["mean_without_objectnet"] == pytest.approx((shares["Turned"] + 1) / 2)

    # The files have the metrics that are printed, in the format of evaluations of the dataset.
    (path,) = job.glob("evaluation_step*.json")
    step = int(max(record["step"] for record in map(json.loads, (job / RECORDS).open())))
    assert path.name == f"evaluation_step{step}_pets.json"
    measured = suite_evaluations.load(job, step)
    assert {part.image_set.name: part.accuracy for part in measured.image_sets} == shares
    by_set = {part.image_set.name: part for part in measured.image_sets}
    assert by_set["photo"].calibration.nll == document["sets"]["photo"]["calibration"]["nll"]
    assert [by_set["One"].image_set.classes, by_set["photo"].image_set.classes] == [["cat"], []]
    assert [name for name, part in by_set.items() if part.image_set.is_target] == [*SHIFTED]
    assert (measured.facts.suite, measured.facts.temperature) == ("pets", None)


def test_missing_or_incomplete_test_sets_leave_no_mean(suite, job, data, capsys, tmp_path):
    (data / "art/cat/3.png").unlink()
    printed = carft(capsys, "wise-ft", job, "--data_dir", data, "-o", tmp_path / "mix").out
    (header,) = (line.split() for line in printed.splitlines() if line.startswith("alpha"))
    assert header[1:5] == ["photo", "Turned*", "One", "Cut*"]
    assert {*evaluate(capsys, job, "--data_dir", data)["means"].values()} == {None}
    shutil.rmtree(data / "sketch")
    document = evaluate(capsys, job, "--data_dir", data)
    assert document["problems"]["Turned"] == ["19 images, expected 20"]
    assert "One" in document["problems"] and "One" not in document["sets"]
    (path,) = job.glob("evaluation_step*_pets.json")
    splits = {part["name"]: part for part in json.loads(path.read_text())["facts"]["image_sets"]}
    assert not splits["Turned"]["is_complete"] and splits["Cut"]["is_complete"] is False
    assert splits["photo"]["is_complete"] and document["means"]["mean"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--suite imagenet", "has 2 classes, expected the 1,000 of the suite"),
        ("--suite pets --data_dir .", "no test set of the suite pets is in"),
    ],
)
def test_unsuitable_suites_are_errors(suite, job, capsys, monkeypatch, words, message):
    monkeypatch.chdir(job)
    runs_jobs.carft("evaluate", job, *words.split(), status=1)
    assert message in capsys.readouterr().err
    assert not [*job.glob("evaluation_*")]


@pytest.mark.parametrize(
    ("spoil", "name", "problem"),
    [
        (lambda data: os.truncate(data / "sketch/cat/3.png", 900), "One", "3.png cannot be read"),
        (lambda data: os.mkfifo(data / "sketch/cat/11.png"), "One", "1 path that cannot be read"),
        # "Turned" has the same image but no border.
        (
            lambda data: Image.new("RGB", (8, 30)).save(data / "art/cat/3.png"),
            "Cut",
            "the image has 8 x 30 pixels, too small to remove a border of 4",
        ),
    ],
)
def test_unreadable_image_affects_only_its_test_set(suite, job, data, capsys, spoil, name, problem):
    carft(capsys, "evaluate", job, "--data_dir", data)
    (path,) = job.glob("evaluation_step*_pets.json")
    earlier = path.read_text()
    spoil(data)
    document = evaluate(capsys, job, "--data_dir", data, status=3)
    assert document["unread"] == [name] and problem in "; ".join(document["problems"][name])
    assert [*document["sets"]] == [key for key in GROUPS if key != name]
    assert document["means"]["mean"] is None
    assert path.read_text() == earlier


def test_results_are_printed_if_they_cannot_be_saved(suite, job, data, capsys, tmp_path):
    """A folder stands in the place of the file of predictions."""
    step = int(max(record["step"] for record in map(json.loads, (job / RECORDS).open())))
    for name in (f"evaluation_step{step}_pets.npz", f"evaluation_step{step}_pets_alpha1.0.npz"):
        (job / name).mkdir()
    words = ("evaluate", job, "--data_dir", data, "--json", "--workers", 0)
    printed = carft(capsys, *words, status=1)
    document = json.loads(printed.out)
    assert [*document["sets"]] == [*GROUPS] and document["unsaved"] in printed.err
    assert "the results were not saved next to the records: " in printed.err

    mixed = ("--alphas", 1, "--save", "all", "-o", tmp_path / "mix")
    printed = carft(capsys, "wise-ft", job, "--data_dir", data, *mixed, status=1)
    assert "pets_alpha1.0.npz" in printed.err
    (row,) = json.loads((tmp_path / "mix/wise_ft.json").read_text())
    assert row["sets"] == document["sets"] and (tmp_path / "mix/model_alpha_1.00.pkl").is_file()


def test_all_commands_exit_with_3_if_test_sets_are_unreadable(suite, job, data, capsys, tmp_path):
    """First an image of the test environment, which no soup is chosen by, then one of every set."""
    (data / "art/cat/3.png").write_bytes(b"no image")
    mixed = ("-o", tmp_path / "mix", "--alphas", 0, 1, "--save", "all")
    carft(capsys, "wise-ft", job, "--data_dir", data, *mixed, status=3)
    (alpha, _) = json.loads((tmp_path / "mix/wise_ft.json").read_text())
    assert alpha["unread"] == ["Turned", "Cut"] and [*alpha["sets"]] == ["photo", "One"]

    ends = [tmp_path / f"mix/model_alpha_{alpha}.pkl" for alpha in ("0.00", "1.00")]
    carft(capsys, "soup", *ends, "-o", tmp_path / "soup", "--data_dir", data, status=3)

    for path in data.glob("*/cat/3.png"):
        path.write_bytes(b"no image")
    printed = carft(capsys, "evaluate", job, "--data_dir", data, status=3)
    assert "no test set of the suite pets can be read: photo: an image of " in printed.err
    assert not [*job.glob("evaluation_*")]


@pytest.fixture
def out(pets, tmp_path):
    """A sweep of the pets' jobs, which have the target "art"."""
    for algorithm in ("CARFT", "CLIPLinearProbe", "CLIPZeroShot"):
        shutil.copytree(pets / algorithm, tmp_path / "OUT" / algorithm)
    return tmp_path / "OUT"


def read_evaluations(out, ending="_pets.json"):
    """Map each algorithm of a sweep to the content of its only evaluation."""
    return {
        folder.name: path.read_text()
        for folder in out.iterdir()
        for path in folder.glob(f"evaluation_step*{ending}")
    }


def test_sweep_is_measured_once_and_not_on_its_training_environments(suite, out, data, capsys):
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    assert "3 runs measured" in carft(capsys, *words).err
    evaluations = read_evaluations(out)
    assert [*evaluations] == [folder.name for folder in out.iterdir()]
    for content in evaluations.values():
        splits = json.loads(content)["facts"]["image_sets"]
        numbers = {split["name"]: split["number"] for split in splits}
        assert numbers == {"Turned": 1, "One": 2, "Cut": 3}
    assert "0 runs measured" in carft(capsys, *words).err
    assert read_evaluations(out) == evaluations

    damaged = saved.choose_weights(out / "CARFT", None)
    damaged.write_bytes(b"no weights")
    printed = carft(capsys, *words, status=3)
    assert f"evaluate: {damaged.parent}: {damaged}" in printed.err
    assert "CLIPLinearProbe" in printed.out

    # The earlier evaluations remain in the table, but no run could be evaluated now.
    for folder in out.iterdir():
        saved.choose_weights(folder, None).write_bytes(b"no weights")
    assert "CLIPLinearProbe" in carft(capsys, *words, status=1).out


def test_run_of_a_sweep_whose_evaluation_cannot_be_saved_is_a_problem(suite, out, data, capsys):
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    carft(capsys, *words)
    (path,) = (out / "CARFT").glob("evaluation_step*_pets.npz")
    path.unlink()
    path.with_suffix(".json").unlink()
    path.mkdir()
    printed = carft(capsys, *words, status=3)
    assert f"evaluate: {out / 'CARFT'}: " in printed.err and path.name in printed.err
    assert "0 runs measured" in printed.err and "CARFT" not in read_evaluations(out)


def test_sweep_is_measured_again_after_missing_images_were_added(suite, out, data, capsys):
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    path = data / "art/cat/3.png"
    content, status = path.read_bytes(), path.stat()
    path.unlink()
    incomplete = carft(capsys, *words)
    assert "3 runs measured" in incomplete.err and "*" in incomplete.out.split("Suites:")[0]

    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    complete = carft(capsys, *words)
    assert "3 runs measured" in complete.err and "*" not in complete.out.split("Suites:")[0]
    assert "0 runs measured" in carft(capsys, *words).err


def test_sweep_is_measured_again_after_the_groups_of_a_test_set_changed(
    suite, out, data, capsys, monkeypatch
):
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    carft(capsys, *words)
    turned = dataclasses.replace(suite.sets[1], groups=((1,), (0,)))
    changed = dataclasses.replace(suite, sets=(suite.sets[0], turned, *suite.sets[2:]))
    monkeypatch.setitem(catalogue.SUITES, "pets", lambda: changed)
    assert "3 runs measured" in carft(capsys, *words).err


def test_zero_shot_predictions_of_a_sweep_are_made_once_for_each_test_set(
    suite, out, data, capsys, monkeypatch
):
    """The flips of zero-shot CLIP itself are none; a plan of its own needs own predictions."""
    predicted = []
    predict = zero_shot.predict_image_sets

    def count(splits, *words, **options):
        predicted.extend(split.name for split in splits)
        return predict(splits, *words, **options)

    monkeypatch.setattr(zero_shot, "predict_image_sets", count)
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(out.parent / "cache"))
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    carft(capsys, *words)
    assert sorted(predicted) == sorted(SHIFTED)

    for part in json.loads(read_evaluations(out)["CLIPZeroShot"])["image_sets"]:
        assert part["zero_shot_accuracy"] == part["accuracy"]
        assert part["flips"]["gained"] == part["flips"]["lost"] == 0
    (probed, *_) = json.loads(read_evaluations(out)["CLIPLinearProbe"])["image_sets"]
    assert sum(probed["flips"].values()) == 20

    run = saved.load_run(out / "CARFT", device="cpu")
    options = LoadingOptions(torch.device("cpu"), workers=0, data_dir=str(data))
    test = make_suite_test("pets", run, options)
    resized = dataclasses.replace(
        test, plan=dataclasses.replace(test.plan, interpolation="bicubic")
    )
    assert resized.plan != test.plan
    cut = dataclasses.replace(suite.sets[1], border=3)
    cropped = dataclasses.replace(test, suite=dataclasses.replace(suite, sets=(cut,)))
    for tested, needed in ((test, []), (resized, ["Turned"]), (cropped, ["Turned"])):
        predicted.clear()
        digest = tested.hash_images("Turned")
        assert digest == test.hash_images("Turned")
        image_set = tested.image_sets["Turned"]
        zero_shot.predict_test_set_zero_shot(run, image_set, digest, options, None)
        assert predicted == needed


def test_zero_shot_clip_predicts_groups_of_classes(suite, out, data, monkeypatch, tmp_path):
    """The first class of the test set is the second one of the run, and the other way round."""
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / "cache"))
    swapped = dataclasses.replace(suite.sets[0], groups=((1,), (0,)))
    run = saved.load_run(out / "CLIPZeroShot", "last", device="cpu")
    options = LoadingOptions(torch.device("cpu"), workers=0, data_dir=str(data))
    test = make_suite_test("pets", run, options)
    test = dataclasses.replace(test, suite=dataclasses.replace(suite, sets=(swapped,)))
    image_set, digest = test.image_sets["photo"], test.hash_images("photo")
    predictions = zero_shot.predict_test_set_zero_shot(run, image_set, digest, options, None)

    for prediction, (path, label) in zip(predictions, swapped.find(data).samples, strict=True):
        pixels = run.transform()(image_files.open_image(path))[None]
        with torch.no_grad():
            (cosines,) = run.algorithm.predict(pixels) / run.algorithm.logit_scale
        assert prediction["zero_shot"] == 1 - int(cosines.argmax())
        assert prediction["alignment"] == pytest.approx(float(cosines[1 - label]), abs=1e-6)


def test_temperature_of_the_dataset_scales_the_predictions_on_a_suite(suite, out, data, capsys):
    words = ("evaluate", out, "--data_dir", data, "--jobs", 1)
    carft(capsys, *words)
    assert all(part["scaled"] is None for part in read_splits(out, "CARFT"))

    runs_jobs.carft("evaluate", out, "--data_dir", data, "--select", "training-domain")
    assert "3 runs measured" in carft(capsys, *words).err
    (turned, *_) = read_splits(out, "CARFT")
    assert turned["temperature"] not in (None, 1)
    assert turned["scaled"]["nll"] != turned["calibration"]["nll"]
    assert "0 runs measured" in carft(capsys, *words).err


def read_splits(out, algorithm):
    return json.loads(read_evaluations(out)[algorithm])["image_sets"]


def test_predictions_on_a_suite_equal_the_probabilities_of_the_groups(suite, out, data, capsys):
    runs_jobs.carft("evaluate", out, "--data_dir", data, "--select", "training-domain")
    carft(capsys, "evaluate", out, "--data_dir", data, "--jobs", 1)
    (path,) = (out / "CARFT").glob("evaluation_step*_pets.npz")
    with np.load(path) as arrays:
        predictions = arrays["predictions"]
    facts = json.loads(read_evaluations(out)["CARFT"])["facts"]

    run = saved.load_run(out / "CARFT", "best", device="cpu")
    assert facts["weights"] == sha256(run.path)
    original = saved.load_run(out / "CLIPZeroShot", "last", device="cpu").algorithm
    scores, labels, alignments = [], [], []
    for test_set in suite.sets[1:]:
        for image_path, label in test_set.find(data).samples:
            image = ImageOps.crop(image_files.open_image(image_path), test_set.border)
            with torch.no_grad():
                pixels = run.transform()(image)[None]
                (logits,) = run.algorithm.predict(pixels).double()
                (cosines,) = original.predict(pixels) / original.logit_scale
            alignments.append(float(max(cosines[place] for place in test_set.groups[label])))
            scores.append(torch.stack([logits[list(group)].max() for group in test_set.groups]))
            labels.append(label)
    for prefix, temperature in (("", 1), (metrics.SCALED, facts["temperature"]["value"])):
        shares = [(image_scores / temperature).softmax(dim=0).numpy() for image_scores in scores]
        expected = {
            "top": [share.max() for share in shares],
            "log_true": [np.log(share[label]) for share, label in zip(shares, labels)],
            "sum_of_squares": [(share**2).sum() for share in shares],
        }
        for name, values in expected.items():
            measured = predictions[f"{prefix}{name}"]
            np.testing.assert_allclose(measured, values, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(predictions["alignment"], alignments, atol=1e-6)


def test_wise_ft_on_a_suite_has_no_temperature(suite, out, data, capsys, tmp_path):
    runs_jobs.carft("evaluate", out, "--data_dir", data, "--select", "training-domain")
    mixed = ("--alphas", 0, 0.5, 1, "-o", tmp_path / "mix")
    carft(capsys, "wise-ft", out / "CARFT", "--data_dir", data, *mixed)
    rows = json.loads((tmp_path / "mix/wise_ft.json").read_text())
    for key, row in zip(metrics.list_suite_evaluations(out / "CARFT"), rows, strict=True):
        measured = metrics.load_metrics(out / "CARFT", key)
        assert measured.facts.temperature is None
        by_set = {part.image_set.name: part for part in measured.image_sets}
        assert {name: part.accuracy for name, part in by_set.items()} == accuracies(row)
        assert {part.scaled for part in by_set.values()} == {None}


def test_temperature_of_other_weights_is_not_used_on_a_suite(suite, out, data, capsys):
    runs_jobs.carft("evaluate", out, "--data_dir", data, "--select", "training-domain")
    (path,) = (out / "CARFT").glob("evaluation_step*.json")
    content = json.loads(path.read_text())
    content["facts"]["weights"] = "0" * 64
    path.write_text(json.dumps(content))
    carft(capsys, "evaluate", out, "--data_dir", data, "--jobs", 1)
    temperatures = {
        name: json.loads(text)["facts"]["temperature"]
        for name, text in read_evaluations(out).items()
    }
    assert temperatures["CARFT"] is None and temperatures["CLIPLinearProbe"] is not None


def test_clip_model_has_the_likelihoods_of_openais_preprocessing(suite, data, capsys):
    pixels = np.random.default_rng(0)
    for path in data.glob("photo/*/*.png"):  # neither square nor of the model's size
        Image.fromarray(pixels.integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    words = ("--clip", "tiny", "--data_dir", data, "--json", "--workers", 0)
    measured = json.loads(carft(capsys, "evaluate", *words).out)["sets"]["photo"]

    clip = backbone.load("tiny")
    contexts = prompts.parse_contexts(suite.contexts, 1)
    texts = [[context.format(name) for name in CLASSES] for context in contexts]
    weights = normalize(normalize(backbone.encode_prompts(clip, texts), dim=-1).mean(0), dim=-1)
    transform = openai_transform(clip.preprocessing.resolution)
    samples = suite.sets[0].find(data).samples
    images = torch.stack([transform(image_files.open_image(path)) for path, _ in samples])
    with torch.no_grad():
        features = normalize(clip.model.visual(images), dim=-1)
        logits = clip.model.logit_scale.exp() * features @ weights.T
    expected = cross_entropy(logits, torch.tensor([label for _, label in samples]))
    assert measured["calibration"]["nll"] == pytest.approx(float(expected), abs=1e-5)


def test_alphas_of_weights_made_by_wise_ft_are_those_of_the_run(suite, job, data, capsys, tmp_path):
    mixed = ("--alphas", 0.5, "--save", "all", "-o", tmp_path / "half")
    carft(capsys, "wise-ft", job, "--data_dir", data, *mixed)
    half = shutil.copy(tmp_path / "half/model_alpha_0.50.pkl", job)
    for path in job.glob("evaluation_*"):
        path.unlink()
    carft(capsys, "wise-ft", half, "--data_dir", data, "--alphas", 0.5, 1, "-o", tmp_path / "mix")
    rows = json.loads((tmp_path / "mix/wise_ft.json").read_text())
    assert [row["wise_ft_alpha"] for row in rows] == [0.25, 0.5]
    assert [key.alpha for key in metrics.list_suite_evaluations(job)] == [0.25, 0.5]


def test_wise_ft_and_soup_have_the_scores_of_their_weights(suite, job, data, capsys, tmp_path):
    alone = evaluate(capsys, job, "--data_dir", data)
    out = tmp_path / "mix"
    mixed = ("--alphas", 0, 0.5, 1, "--save", "all", "-o", out)
    carft(capsys, "wise-ft", job, "--data_dir", data, *mixed)
    rows = json.loads((out / "wise_ft.json").read_text())
    assert rows[2]["sets"] == alone["sets"] and rows[2]["means"] == alone["means"]
    keys = metrics.list_suite_evaluations(job)
    assert [key.alpha for key in keys] == [None, 0, 0.5, 1]
    for key, document in zip(keys, [alone, *rows]):
        measured = metrics.load_metrics(job, key)
        by_set = {part.image_set.name: part.accuracy for part in measured.image_sets}
        assert by_set == accuracies(document)

    half = evaluate(capsys, out / "model_alpha_0.50.pkl", "--data_dir", data)
    assert half["sets"] == rows[1]["sets"] and not [*out.glob("evaluation_*")]

    # The soup of the two ends equals alpha 0.5.
    ends = [out / f"model_alpha_{alpha}.pkl" for alpha in ("0.00", "1.00")]
    carft(capsys, "soup", *ends, "--data_dir", data, "-o", tmp_path / "soup")
    uniform = json.loads((tmp_path / "soup/soup.json").read_text())["uniform"]
    assert (uniform["sets"], uniform["means"]) == (half["sets"], half["means"])


IMAGENET = os.environ.get("CARFT_IMAGENET", "")  # the folder that contains the six sets
WEIGHTS = Path("~/.cache/clip/ViT-B-16.pt").expanduser()


@pytest.mark.weights
@pytest.mark.skipif(
    not (IMAGENET and WEIGHTS.exists()),
    reason="needs CARFT_IMAGENET, a folder with the six test sets, and OpenAI's ViT-B-16.pt",
)
def test_published_zero_shot_accuracies(capsys):
    arguments = ["--clip", "ViT-B/16", "--suite", "imagenet", "--data_dir", IMAGENET, "--json"]
    assert cli.main(["evaluate", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    published = catalogue.get("imagenet").published["ViT-B/16"]
    for name, percent in published.items():
        assert 100 * document["sets"][name]["accuracy"] == pytest.approx(percent, abs=0.2), name
