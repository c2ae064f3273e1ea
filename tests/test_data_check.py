"""Broken data: refused by our harness for every algorithm, told of in a foreign checkout."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import warm
from fake_checkout import REPO
from PIL import Image
from test_checkouts import write

from domainbed_carft.data import benchmarks

FAKES = REPO / "tests" / "harness" / "plugin"  # an algorithm that needs no weights
QUICK = ["--steps", "1", "--test_envs", "0", "--hparams", '{"batch_size": 2}']


def python(*arguments, cwd, **variables):
    """With our start hook as it is, on our harness, in a warm fork; else in a new interpreter."""
    env = {**os.environ, "PYTHONPATH": str(FAKES), **variables}
    if variables.keys() <= {"DOMAINBED_CARFT_CACHE"}:
        return warm.run(*arguments, cwd=cwd, env=env)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def train(folder, *arguments, algorithm="Still", **variables):
    given = ["--algorithm", algorithm, "--output_dir", folder / "job", "--workers", "0"]
    command = ["-m", "domainbed.scripts.train", *given, *QUICK, *arguments]
    return python(*command, cwd=folder, **variables)


def grow(root, environments, classes, pictures=5):
    """Folders environment/class of black pictures below ``root``, which is returned."""
    for environment in environments:
        for name in classes:
            (root / environment / name).mkdir(parents=True)
            for number in range(pictures):
                Image.new("RGB", (8, 8)).save(root / environment / name / f"{number}.png")
    return root


@pytest.fixture
def pacs(tmp_path):
    """A PACS that is read in another order: its column A would hold sketches."""
    names = ("Sketch", "cartoon", "pacs_art", "photo")
    return grow(tmp_path / "it's data" / "PACS", names, benchmarks.get("PACS").classes)


def test_the_harness_refuses_it_whatever_the_algorithm(pacs, tmp_path):
    for algorithm in ("Still", "ERM", "CARFT"):
        done = train(tmp_path, "--dataset", "PACS", "--data_dir", pacs.parent, algorithm=algorithm)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        (problem,) = done.stderr.splitlines()[1:]
        assert problem.startswith(f"- The data of PACS in {pacs} is broken: no environment 'art_")
        assert "'pacs_art' would be read as environment" in problem
        assert f"`carft data verify PACS --data_dir '{tmp_path}/it'\"'\"'s data'`" in problem
        ours = """To train on it as it is: --hparams '{"data_edition": "unchecked"}'."""
        assert (ours in problem) == (algorithm == "CARFT")
        assert ("DOMAINBED_CARFT_DISABLE=1" in problem) == (algorithm != "CARFT")
        left = {path.name for path in (tmp_path / "job").iterdir()}
        assert left == {"err.txt", "out.txt"}
        assert (tmp_path / "job" / "err.txt").read_text() == done.stderr
        assert "HParams" not in done.stdout  # nothing is loaded
        shutil.rmtree(tmp_path / "job")


def test_the_remedies_that_it_tells_train(pacs, tmp_path):
    given = ["--dataset", "PACS", "--data_dir", pacs.parent]
    told = train(tmp_path, *given).stderr
    (remedy,) = re.findall(r"as it is: (.*) in the environment", told)
    variables = dict(part.split("=", 1) for part in shlex.split(remedy))
    variables["PYTHONPATH"] += os.pathsep + str(FAKES)
    done = train(tmp_path, *given, **variables)
    assert done.returncode == 0, done.stderr
    tiny = '{"clip_backbone": "tiny", "batch_size": 2, "data_edition": "unchecked"}'
    done = train(tmp_path, *given, "--hparams", tiny, algorithm="CARFT")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("spoil", ["a class less", "a stray folder", "a class without pictures"])
def test_what_cannot_be_trained_on_is_told_no_remedy_but_to_mend_it(tmp_path, spoil):
    names = [environment.folder for environment in benchmarks.get("PACS").environments]
    root = grow(tmp_path / "PACS", names, benchmarks.get("PACS").classes, 1)
    horse = root / "photo" / "horse"
    if spoil == "a stray folder":
        (root / "__MACOSX").mkdir()
    else:
        (horse / "0.png").unlink()
    if spoil == "a class less":
        horse.rmdir()
    done = train(tmp_path, "--dataset", "PACS", "--data_dir", tmp_path)
    assert done.returncode == 2 and "is broken" in done.stderr and "as it is" not in done.stderr


def test_the_harness_tells_it_with_all_other_mistakes(pacs, tmp_path):
    more = ["--dataset", "PACS", "--data_dir", pacs.parent, "--holdout_fraction", "0"]
    done = train(tmp_path, *more)
    assert done.returncode == 2 and "error: 2 problems, nothing was run" in done.stderr


def test_what_no_name_of_a_folder_shows_is_refused_too(tmp_path):
    root = grow(tmp_path / "pets", ("a", "b"), ("cat", "dog"))
    (root / "b" / "cat" / "empty.png").touch()
    done = train(tmp_path, "--dataset", "./pets")
    assert done.returncode == 2 and "b/cat/empty.png" in done.stderr
    assert "`carft data verify ./pets` says more" in done.stderr
    (root / "b" / "cat" / "empty.png").unlink()
    shutil.rmtree(root / "a" / "dog")
    shutil.rmtree(root / "b" / "dog")
    done = train(tmp_path, "--dataset", "./pets")
    assert done.returncode == 2 and "1, expected at least two" in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_variables_that_are_told_the_harness_trains_on_it(pacs, tmp_path):
    given = ["--dataset", "PACS", "--data_dir", pacs.parent]
    words = train(tmp_path, *given).stderr.split()
    variables = dict(word.split("=") for word in words if word.startswith(("DOMAINBED_", "PYTHON")))
    assert variables["DOMAINBED_CARFT_DISABLE"] == "1"
    variables["PYTHONPATH"] += f"{os.pathsep}{FAKES}"
    done = train(tmp_path, *given, **variables)
    assert done.returncode == 0, done.stderr
    assert "data_edition" not in json.loads((tmp_path / "job/results.jsonl").read_text())


UNLISTED = """
from domainbed import datasets

class Mine(datasets.MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["x", "y"]

    def __init__(self, root, test_envs, hparams):
        super().__init__(root + "/mine", test_envs, hparams["data_augmentation"], hparams)

datasets.Mine = Mine
"""


def test_the_data_of_a_users_class_is_refused_when_its_folder_is_known(tmp_path):
    root = grow(tmp_path / "mine", ("a", "b"), ("cat", "dog"))
    (root / "b" / "cat" / "empty.png").touch()
    code = UNLISTED + "import sys; from domainbed.scripts import train; sys.exit(train.main())"
    given = ["--algorithm", "Still", "--dataset", "Mine", "--data_dir", tmp_path, *QUICK]
    done = python("-c", code, *given, "--output_dir", tmp_path / "job", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"- The data of Mine in {root} is broken: empty files" in done.stderr
    assert "DOMAINBED_CARFT_DISABLE=1" in done.stderr and "unchecked" not in done.stderr
    (root / "b" / "cat" / "empty.png").unlink()
    done = python("-c", code, *given, "--output_dir", tmp_path / "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


STILL = """
    def update(self, minibatches, unlabeled=None):
        return {"loss": 0.0}

    def predict(self, x):
        return x.flatten(1)[:, :2]
"""


@pytest.fixture
def checkout(tmp_path):
    root = write("classic", tmp_path)
    path = root / "domainbed" / "algorithms.py"
    path.write_text(
        path.read_text().replace(
            "class ERM(Algorithm):\n    pass\n", f"class ERM(Algorithm):{STILL}"
        )
    )
    return root


def test_a_foreign_checkouts_own_job_goes_on_with_one_warning(checkout, tmp_path):
    root = grow(tmp_path / "data" / "Pets", ("a", "b", "c"), ("cat", "dog"))
    (root / ".cache").mkdir()
    shutil.copytree(root / "a" / "cat", root / ".cache" / "cat")
    shutil.copytree(root / "a" / "cat", root / ".cache" / "dog")
    given = ["--dataset", "Pets", "--data_dir", root.parent, "--output_dir", tmp_path / "job"]
    command = ["-m", "domainbed.scripts.train", "--algorithm", "ERM", *QUICK, *given]
    done = python(*command, cwd=checkout, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "job" / "done").exists()
    first, problem, advice = done.stderr.splitlines()
    assert first.startswith(f"domainbed-carft: Warning: the data of Pets in {root} is broken.")
    assert problem.startswith("- the folder '.cache' would be read as environment 0")
    assert f"`carft data verify {root}` says more" in advice
    assert "DOMAINBED_CARFT_DISABLE=1" in advice
    off = python(*command, cwd=checkout, PYTHONPATH="", DOMAINBED_CARFT_DISABLE="1")
    assert (off.returncode, off.stderr) == (0, "")
    shutil.rmtree(root / ".cache")
    whole = python(*command, cwd=checkout, PYTHONPATH="")
    assert (whole.returncode, whole.stderr) == (0, "")


def test_a_foreign_checkout_that_fails_of_it_has_told_before(checkout, tmp_path):
    root = grow(tmp_path / "data" / "Pets", ("a", "b", "c"), ("cat", "dog"))
    (root / "c" / "owl").mkdir()
    given = ["--dataset", "Pets", "--data_dir", root.parent, "--output_dir", tmp_path / "job"]
    command = ["-m", "domainbed.scripts.train", "--algorithm", "ERM", *QUICK, *given]
    done = python(*command, cwd=checkout, PYTHONPATH="")
    assert done.returncode == 1  # the host's own end
    assert "'c' has no picture in 'owl'" in done.stderr.split("Traceback")[0]


def test_our_own_algorithms_refuse_it_in_a_foreign_checkout(checkout, tmp_path):
    root = grow(tmp_path / "data" / "Pets", ("a", "b", "c"), ("cat", "dog"))
    (root / "b" / "cat" / "empty.png").touch()
    given = ["--dataset", "Pets", "--data_dir", root.parent, "--output_dir", tmp_path / "job"]
    command = ["-m", "domainbed.scripts.train", "--algorithm", "CLIPZeroShot", *QUICK, *given]
    done = python(*command, cwd=checkout, PYTHONPATH="")
    assert done.returncode == 1 and "CarftError: the data is broken: empty files" in done.stderr
    assert "This job goes on" not in done.stderr


def test_the_record_of_any_algorithm_has_the_verdict_and_the_preset(tmp_path):
    grow(tmp_path / "pets", ("a", "b"), ("cat", "dog"))
    done = train(tmp_path, "--dataset", "./pets", "--checkpoint_freq", "1")
    assert done.returncode == 0 and not done.stderr, done.stderr
    record = json.loads((tmp_path / "job/results.jsonl").read_text())
    assert record["data_edition"].startswith("consistent")
    assert record["protocol"] == "domainbed" and "protocol" not in record["hparams"]
    shutil.rmtree(tmp_path / "job")
    done = train(tmp_path, "--dataset", "EmojiStyles")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert json.loads((tmp_path / "job/results.jsonl").read_text())["protocol"] == "domainbed"


# Other errors of ours, on the harness


def test_all_mistakes_in_values_are_told_at_once_before_anything_is_loaded(tmp_path):
    wrong = {"lr": "a", "kl_weight": -3, "clip_backbone": "nope", "kl_weigth": 3, "batch_size": 0}
    wrong |= {"contexts": "no.txt", "warmup_steps": 101}
    given = ["--dataset", "EmojiStyles", "--hparams", json.dumps(wrong)]
    done = train(tmp_path, *given, algorithm="CARFT")
    assert done.returncode == 2 and "HParams" not in done.stdout
    first, *problems = done.stderr.splitlines()
    assert first == "train: error: 7 problems, nothing was run" and len(problems) == 7
    for part in (
        "- --hparams: batch_size must be a whole number of at least 1, not 0.",
        "- --hparams: hyperparameter of CARFT not found: kl_weigth. Nearest: kl_weight",
        "- --hparams: lr is 'a', expected a number > 0.",
        "- --hparams: kl_weight is -3, expected a number >= 0.",
        "- --hparams: clip_backbone is 'nope', which is neither a file nor one of: tiny, RN50, ",
        "- --hparams: contexts is 'no.txt', which is neither a shipped list",
        "- --hparams: warmup_steps is 101, expected fewer than total_steps = 101",
    ):
        assert any(problem.startswith(part) for problem in problems), (part, problems)


def test_the_harness_sweep_tells_wrong_values_once_and_deletes_all_the_same(tmp_path):
    given = ["--algorithms", "CARFT", "CLIPZeroShot", "--datasets", "EmojiStyles", "--data_dir"]
    given += [".", "--output_dir", "out", "--command_launcher", "dummy", "--skip_confirmation"]
    given += ["--hparams", '{"lr": "a"}']
    command = ["-m", "domainbed.scripts.sweep"]
    done = python(*command, "launch", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["- --hparams: lr is 'a', expected a number > 0."]
    assert python(*command, "delete_incomplete", *given, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        ({"lr": float("nan")}, "lr is nan, expected"),
        ({"contexts": ["a {}"]}, "expected at least two"),
        ({"clip_backbone": "no.pt"}, "clip_backbone is 'no.pt'"),
    ],
)
def test_what_we_refuse_is_a_line_and_final(tmp_path, hparams, message):
    given = ["--dataset", "EmojiStyles", "--hparams", json.dumps(hparams)]
    done = train(tmp_path, *given, algorithm="CARFT")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert (tmp_path / "job" / "err.txt").read_text() == done.stderr


def test_what_may_pass_is_a_line_and_tried_again(tmp_path):
    (tmp_path / "a file").touch()
    cache = {"DOMAINBED_CARFT_CACHE": str(tmp_path / "a file" / "cache")}
    done = train(tmp_path, "--dataset", "EmojiStyles", algorithm="CARFT", **cache)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("train: EmojiStyles is unpacked to ")


FAILING = """
import sys
from domainbed.scripts import train
from domainbed_carft.method import algorithms
from domainbed_carft.errors import CarftError

def update(self, minibatches, unlabeled=None):
    raise CarftError("no more, do this")

algorithms.CARFT.update = update
sys.exit(train.main())
"""


def test_what_we_refuse_in_a_step_is_a_failure(tmp_path):
    given = ["--algorithm", "CARFT", "--dataset", "EmojiStyles", "--output_dir", "job", *QUICK]
    done = python("-c", FAILING, *given, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "domainbed_carft.errors.CarftError: no more, do this"


def test_a_fault_of_the_code_keeps_its_traceback(tmp_path):
    code = FAILING.replace("CARFT.update = update", "CARFT.set_up = lambda *more: 1 / 0")
    given = ["--algorithm", "CARFT", "--dataset", "EmojiStyles", "--output_dir", "job", *QUICK]
    done = python("-c", code, *given, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("division by zero\n")
