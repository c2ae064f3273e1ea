"""`carft evaluate`, `wise-ft` and `soup` on whole test sets: a suite of the pets' own classes."""

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import runs_jobs
import torch
from data_trees import without_privileges
from PIL import Image
from runs_jobs import CLASSES

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.data import picture_files
from domainbed_carft.method import prompts
from domainbed_carft.pictures import loading
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.runs import saved, suites, sweep, sweep_job
from domainbed_carft.runs.predictions import LoadingOptions
from domainbed_carft.runs.suites import evaluate_on_suite, zero_shot_classifier
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Folders, Suite, TestSet

GROUPS = {"Usual": ((0,), (1,)), "Turned": ((0,), (1,)), "One": ((0, 1),), "Cut": ((0,), (1,))}
SHIFTED = ("Turned", "One", "Cut")


@pytest.fixture
def suite(pets, monkeypatch):
    """The pets' environments as test sets; "Cut" has its border cut, "One" is of all classes."""

    def make_set(name, environment, border=0):
        labels = {folder: 0 if name == "One" else k for k, folder in enumerate(CLASSES)}
        if name == "Turned":
            labels = {"cat": 1, "wild dog": 0}  # what is right there is wrong here
        find = Folders((environment,), labels, 20, 20 if name == "One" else 10)
        classes = tuple(labels)[: len(GROUPS[name])]
        return TestSet(name, classes, GROUPS[name], find, name != "Usual", border)

    sets = (
        make_set("Usual", "photo"),
        make_set("Turned", "art"),
        make_set("One", "sketch"),
        make_set("Cut", "art", 4),
    )
    suite = Suite("pets", CLASSES, sets, "emoji", left_out="Cut", published={"tiny": {"Cut": 12.5}})
    monkeypatch.setitem(catalogue.SUITES, "pets", lambda: suite)
    return suite


@pytest.fixture
def job(pets, tmp_path):
    job = shutil.copytree(pets / "CLIPLinearProbe", tmp_path / "job")
    (job / "model_best.pkl").unlink(missing_ok=True)
    return job


def carft(capsys, *words, status=0, out=False):
    """What a command prints: its errors if it fails, unless ``out``."""
    runs_jobs.carft(*words, status=status)
    captured = capsys.readouterr()
    return captured.err if status and not out else captured.out


def expected(run, test_set, pictures):
    """Right and all, one picture at a time."""
    right = []
    for path, label in test_set.find(pictures).samples:
        picture = picture_files.open_picture(path)
        width, height = picture.size
        picture = picture.crop(
            (test_set.border, test_set.border, width - test_set.border, height - test_set.border)
        )
        with torch.no_grad():
            (logits,) = run.algorithm.predict(run.transform()(picture)[None]).tolist()
        scores = [max(logits[k] for k in group) for group in test_set.groups]
        right.append(scores.index(max(scores)) == label)
    return sum(right), len(right)


def test_a_run_is_scored_by_each_test_sets_own_classes(pets, suite, job, capsys):
    flags = ("--suite", "pets", "--data_dir", pets / "my pets")
    document = json.loads(carft(capsys, "evaluate", job, *flags, "--json", "--workers", 1))
    run = saved.open_run(job)
    for test_set in suite.sets:
        scores = document["sets"][test_set.name]
        assert (scores["right"], scores["n"]) == expected(run, test_set, pets / "my pets")
        low, high = scores["interval"]
        assert low <= scores["accuracy"] == scores["right"] / 20 <= high and scores["complete"]

    of_sets = {name: scores["accuracy"] for name, scores in document["sets"].items()}
    assert of_sets["One"] == 1 and 0 < of_sets["Turned"] != of_sets["Usual"] < 1
    assert document["mean"] == pytest.approx(sum(of_sets[name] for name in SHIFTED) / 3)
    assert document["mean_without_objectnet"] == pytest.approx((of_sets["Turned"] + 1) / 2)

    # The record of the job; the later of two on the same weights counts.
    carft(capsys, "evaluate", job, *flags)
    lines = (job / records.FILE).read_text().splitlines()
    (record,) = records.read(job, [])
    assert len(lines) == 2 and record == json.loads(lines[1])
    assert record["weights"] == "model.pkl" and record["sets"] == document["sets"]
    assert record["wise_ft_alpha"] is None and [*record] == [*records.FIELDS]


def test_missing_or_incomplete_test_sets_are_left_out_of_the_mean(
    pets, suite, job, capsys, tmp_path
):
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    (data / "art/cat/3.png").unlink()
    for missing in ("", "\n  One: not there"):
        text = carft(capsys, "evaluate", job, "--suite", "pets", "--data_dir", data)
        assert "Mean of the shifts: -\nMean without Cut: -\n" in text
        problem = f"Turned: 19 pictures, expected 20{missing}"
        assert f"Missing or incomplete:\n  {problem}" in text and "\nTurned (incomplete) " in text
        assert ("\nOne " in text) == (not missing)
        (record,) = records.read(job, [])
        assert (record["mean"], record["sets"]["Turned"]["complete"]) == (None, False)
        shutil.rmtree(data / "sketch", ignore_errors=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{job}", "--suite", "imagenet"], "has 2 classes, expected the 1,000 of the suite"),
        (["{job}", "--suite", "imagnet"], "no suite is called 'imagnet'; did you mean imagenet?"),
        (["--suite", "pets", "--clip", "tiny"], "of the suite pets is in --data_dir .: Usual: not"),
        (["--clip", "tiny"], "give RUN [--suite NAME], or --clip NAME --suite NAME"),
        (["{job}", "--suite", "pets", "--data_dir", "{job}"], "no test set of the suite pets is"),
    ],
)
def test_invalid_combinations_are_refused(suite, job, capsys, arguments, message):
    assert message in carft(capsys, "evaluate", *(a.format(job=job) for a in arguments), status=1)
    assert not (job / records.FILE).exists()


def test_a_broken_picture_is_named(pets, suite, job, capsys, tmp_path):
    """Also one that is cut off, which training reads."""
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    path = data / "art/wild dog/3.png"
    os.truncate(path, path.stat().st_size // 2)
    flags = ("--suite", "pets", "--data_dir")
    carft(capsys, "evaluate", job, *flags, pets / "my pets")
    for workers in (0, 1):
        runs_jobs.carft("evaluate", job, *flags, data, "--workers", workers, status=3)
        output = capsys.readouterr().out
        assert f"  Turned: a picture of pets (Turned): {path} cannot be read: " in output
        assert "Mean of the shifts: -\n" in output and "Traceback" not in output
        (record,) = records.read(job, [])  # the earlier one, which is complete
        assert [*record["sets"]] == ["Usual", "Turned", "One", "Cut"]


@pytest.fixture
def impatient():
    """Ends what waits for ever."""

    def end(number, frame):
        pytest.fail("it waited for a minute")  # which nothing takes for an unreadable picture

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def open_place(pets, job):
    """A folder that others may look into, which pytest's own are not, with the job and pictures."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        shutil.copytree(job, place / "job")
        shutil.copytree(pets / "my pets", place / "data")
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        yield place
        for path in place.rglob("*"):
            path.chmod(0o755)


def assert_only_one_is_unread(capsys, job, data, name, problem):
    """The other sets have figures, and the document says why this one has none."""
    flags = ("--suite", "pets", "--data_dir", data, "--json", "--workers", 0)
    document = json.loads(carft(capsys, "evaluate", job, *flags, status=3, out=True))
    assert document["unread"] == [name] and list(document["problems"]) == [name]
    assert problem in "; ".join(document["problems"][name])
    assert {*document["sets"]} == {*GROUPS} - {name}
    assert not (job / records.FILE).exists()


def test_a_pipe_among_the_pictures_fails_only_its_test_set(pets, suite, job, capsys, impatient):
    data = shutil.copytree(pets / "my pets", job.parent / "data")
    os.mkfifo(data / "sketch/cat/11.png")
    problem = "1 path that cannot be read (repair or delete): 'cat/11.png'"
    assert_only_one_is_unread(capsys, job, data, "One", problem)

    with pytest.raises(OSError, match="a pipe, a socket or a device, expected a regular file"):
        loading.decode(str(data / "sketch/cat/11.png"))

    with pytest.raises(OSError, match="a pipe, a socket or a device, expected a regular file"):
        picture_files.open_picture(data / "sketch/cat/11.png")


@pytest.mark.parametrize(
    ("folder", "mode", "problem"),
    [
        ("sketch", 0o000, "/sketch cannot be read (Permission denied); check its permissions"),
        ("sketch", 0o644, "/sketch cannot be read (Permission denied); check its permissions"),
        ("sketch/cat", 0o000, "1 path that cannot be read (repair or delete): 'cat'"),
        ("sketch/cat", 0o644, "10 paths that cannot be read (repair or delete): 'cat/"),
    ],
)
def test_an_unreadable_folder_fails_only_its_test_set(
    suite, open_place, capsys, folder, mode, problem
):
    job = open_place / "job"
    data = open_place / "data"
    carft(capsys, "evaluate", job, "--suite", "pets", "--data_dir", data)  # imports everything
    (job / records.FILE).unlink()
    (data / folder).chmod(mode)
    with without_privileges():
        assert_only_one_is_unread(capsys, job, data, "One", problem)


def test_a_picture_smaller_than_its_border_fails_only_its_test_set(pets, suite, job, capsys):
    """Another set without a border has the same picture."""
    data = shutil.copytree(pets / "my pets", job.parent / "data")
    path = data / "art/cat/3.png"
    Image.new("RGB", (8, 30)).save(path)
    problem = f"{path} cannot be read: of its 8 x 30 pixels nothing is left without the border of 4"
    assert_only_one_is_unread(capsys, job, data, "Cut", problem)


def test_a_suite_without_a_set_that_can_be_read_ends_with_3(pets, suite, job, capsys, tmp_path):
    """All commands; the problems are told with the sets' names, and nothing is written."""
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    for path in data.glob("*/cat/3.png"):
        path.write_bytes(b"no picture")
    flags = ("--suite", "pets", "--data_dir", data)
    message = "no test set of the suite pets can be read: Usual: a picture of pets (Usual): "
    for command in (["evaluate"], ["wise-ft", "-o", tmp_path / "mix", "--alphas", 0, 1]):
        error = carft(capsys, *command[:1], job, *flags, *command[1:], status=3)
        assert message in error and "; One: a picture of pets (One): " in error
    assert not (job / records.FILE).exists() and not list((tmp_path / "mix").iterdir())


def test_wise_ft_and_soup_end_with_3_if_a_set_cannot_be_read(pets, suite, job, capsys, tmp_path):
    """The picture is of the test environment, by whose pictures a soup is not chosen."""
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    (data / "art/cat/3.png").write_bytes(b"no picture")
    flags = ("--suite", "pets", "--data_dir", data)
    mixed = ("-o", tmp_path / "mix", "--alphas", 0, 1, "--save", "all")
    output = carft(capsys, "wise-ft", job, *flags, *mixed, status=3, out=True)
    assert "  Turned: a picture of pets (Turned): " in output

    (alpha, _) = json.loads((tmp_path / "mix/wise_ft.json").read_text())["alphas"]
    assert alpha["unread"] == ["Turned", "Cut"] and [*alpha["sets"]] == ["Usual", "One"]
    assert not (job / records.FILE).exists()

    ends = [tmp_path / f"mix/model_alpha_{alpha}.pkl" for alpha in ("0.00", "1.00")]
    output = carft(capsys, "soup", *ends, *flags, "-o", tmp_path / "soup", status=3, out=True)
    assert "  Cut: a picture of pets (Cut): " in output


def test_runs_that_share_a_pass_are_measured_as_alone(pets, suite, job, tmp_path):
    """Also one that wants its pictures in another way, after one that does not."""
    other = runs_jobs.train_job(tmp_path / "other", pets / "my pets", "CARFT", protocol="clip")
    weights = [saved.choose_weights(folder, None) for folder in (job, other)]
    options = LoadingOptions(torch.device("cpu"), workers=0, data_dir=str(pets / "my pets"))

    sweep_job.evaluate_together(weights, "pets", options, skipped=["One"])

    for path in weights:
        (record,) = records.read(path.parent, [])
        run = saved.open_run(path)
        expected_sets = evaluate_on_suite("pets", run, options).as_dict()["sets"]
        assert record["sets"].keys() == {"Usual", "Turned", "Cut"}
        assert all(scores == _as_json(expected_sets[n]) for n, scores in record["sets"].items())


def _as_json(value):
    return json.loads(json.dumps(value))


def test_a_pass_holds_as_many_runs_as_memory_allows(tmp_path, monkeypatch):
    files = [tmp_path / str(number) for number in range(5)]
    for file, size in zip(files, (40, 60, 10, 150, 5)):
        file.write_bytes(bytes(size))

    monkeypatch.setattr(sweep, "_PASS_BYTES", 100)
    assert list(sweep._parts(files)) == [files[:2], files[2:3], files[3:4], files[4:]]


def test_wise_ft_and_soup_on_a_suite(pets, suite, job, capsys, tmp_path):
    flags = ("--suite", "pets", "--data_dir", pets / "my pets")
    alone = json.loads(carft(capsys, "evaluate", job, *flags, "--json"))
    out = tmp_path / "mix"
    text = carft(capsys, "wise-ft", job, *flags, "--alphas", 0, 0.5, 1, "--save", "all", "-o", out)
    (head,) = (line for line in text.splitlines() if line.startswith("alpha "))
    assert head.split() == "alpha Usual Turned One Cut Mean of the shifts Mean without Cut".split()

    rows = json.loads((out / "wise_ft.json").read_text())["alphas"]
    assert rows[2]["sets"] == alone["sets"] and rows[2]["out_of_domain"] == alone["mean"]
    assert rows[2]["in_domain"] == alone["sets"]["Usual"]["accuracy"]

    kept_records = {record["wise_ft_alpha"]: record for record in records.read(job, [])}
    assert [*kept_records] == [None, 0.0, 0.5, 1.0]
    assert all(kept_records[row["alpha"]]["sets"] == row["sets"] for row in rows)
    assert (out / "wise_ft.svg").exists() and "in distribution" in (out / "wise_ft.svg").read_text()

    half = out / "model_alpha_0.50.pkl"
    of_half = json.loads(carft(capsys, "evaluate", half, *flags, "--json"))
    assert of_half["sets"] == rows[1]["sets"] and not (out / records.FILE).exists()

    # The mean of the two ends is what lies half-way between them.
    ends = [out / f"model_alpha_{alpha}.pkl" for alpha in ("0.00", "1.00")]
    carft(capsys, "soup", *ends, *flags, "-o", tmp_path / "soup")
    (uniform, _) = json.loads((tmp_path / "soup/soup.json").read_text())["soups"]
    assert uniform["sets"] == of_half["sets"] and uniform["mean"] == of_half["mean"]


def test_a_clip_is_evaluated_without_a_run(pets, suite, capsys):
    """As the run of CLIPZeroShot has it, on pictures as CLIP wants them; beside what is known."""
    flags = ("--suite", "pets", "--data_dir", pets / "my pets")
    text = carft(capsys, "evaluate", "--clip", "tiny", *flags)
    assert "published (%)" in text and "12.5" in text

    run = saved.open_run(pets / "CLIPZeroShot")
    plan, predict = zero_shot_classifier(suite, backbone.load("tiny"), torch.device("cpu"))
    x = torch.randn(3, 3, 48, 48)
    (clip_logits,) = predict(x)
    algorithm = run.algorithm
    assert torch.allclose(clip_logits, algorithm.class_logits(algorithm.encoder(x)), atol=1e-4)
    assert (plan.size, plan.resize, plan.interpolation) == (48, "shortest", "bicubic")
    assert plan.mean == backbone.load("tiny").preprocessing.mean


def test_an_exported_run_is_scored_under_the_original_text_head(pets, suite, capsys, tmp_path):
    """How much zero-shot ability a run has left, by export and --clip."""
    pictures = pets / "my pets"
    assert cli.main(["export", str(pets / "CARFT"), "-o", str(tmp_path / "clip.pt")]) == 0
    capsys.readouterr()
    words = ("--suite", "pets", "--data_dir", pictures, "--json")
    document = json.loads(carft(capsys, "evaluate", "--clip", tmp_path / "clip.pt", *words))

    run = saved.open_run(pets / "CARFT", "best")
    clip = backbone.load("tiny")
    texts = prompts.prompts(prompts.contexts(suite.contexts, 1), suite.classes)
    with torch.no_grad():
        features = torch.stack([clip.model.encode_text(clip.tokenize(row)) for row in texts])
        unit = torch.nn.functional.normalize(features, dim=-1).mean(dim=0)
        text_head = torch.nn.functional.normalize(unit, dim=-1)
        transform = saved.open_run(pets / "CLIPZeroShot").transform()

        right = []
        test_set = next(part for part in suite.sets if part.name == "Usual")
        for path, label in test_set.find(pictures).samples:
            x = run.algorithm.input(transform(picture_files.open_picture(path))[None])
            right.append((run.algorithm.encoder(x) @ text_head.T).argmax().item() == label)
    found = document["sets"]["Usual"]
    assert (found["right"], found["n"]) == (sum(right), len(right))


def test_the_thousand_names_reach_the_tokenizer_unchanged(monkeypatch):
    texts = []
    tokenize = openai.tokenize
    monkeypatch.setattr(openai, "tokenize", lambda m, t: texts.extend(t) or tokenize(m, t))
    monkeypatch.setattr(prompts, "contexts", lambda spec, least: ["{}"])
    suite = catalogue.get("imagenet")
    zero_shot_classifier(suite, backbone.load("tiny"), torch.device("cpu"))
    assert tuple(texts) == catalogue.get("imagenet").classes and "T-shirt" in texts


def test_objectnets_border_is_cut_and_no_others(tmp_path):
    """A white picture in a red border of two pixels."""
    picture = Image.new("RGB", (60, 50), "red")
    picture.paste("white", (2, 2, 58, 48))
    picture.save(tmp_path / "0.png")
    plan = PicturePlan(20, "squash", "bilinear", (0,) * 3, (1,) * 3)
    for test_set in catalogue.get("imagenet").sets:
        square, label = suites.TestSetPictures(
            [(str(tmp_path / "0.png"), 3)], test_set.border, plan
        )[0]
        assert bool((square == 255).all()) == (test_set.name == "ObjectNet") and label == 3


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
