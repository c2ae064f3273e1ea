"""The picture plan in records and files of weights, and files of 0.1.0, which describe it in words.

`golden/release-0.1.0` has a job that 0.1.0 trained on the pictures that are drawn here.
"""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import clip_cache
import collect_sweeps
import numpy as np
import pytest
import torch
from domainbed.scripts import train
from PIL import Image
from runs_jobs import carft, evaluated

from domainbed_carft.clips import backbone
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD
from domainbed_carft.pictures.protocols import plan_for, recorded_plan
from domainbed_carft.runs import saved

GOLDEN = Path(__file__).parent / "golden" / "release-0.1.0"
MEASURED = json.loads((GOLDEN / "measured.json").read_text())
CLIP = {
    "embed_dim": 64,
    "image_resolution": 32,
    "vision_layers": 1,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 1,
}
opened_files = Counter()


def count_opened(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, Path)):
        opened_files[str(arguments[0])] += 1


def write_pets(folder):
    """Noise with a tint that tells two classes apart, in three environments."""
    noise = np.random.default_rng(0)
    for environment in ("art", "photo", "sketch"):
        for label, name in enumerate(("cat", "wild dog")):
            (folder / environment / name).mkdir(parents=True)
            for number in range(5):
                pixels = noise.integers(0, 256, (30, 20, 3), dtype=np.uint8)
                pixels[..., label] //= 3
                Image.fromarray(pixels).save(folder / environment / name / f"{number}.png")


def write_clip(path):
    """A CLIP with random weights, as a user's file."""
    from clip.model import CLIP as OpenAICLIP

    torch.manual_seed(0)
    torch.save(OpenAICLIP(**CLIP).state_dict(), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden job in "old", a job of another trial by this version in "new", their "pets"."""
    folder = tmp_path_factory.mktemp("sweep")
    write_pets(folder / "pets")
    (folder / "old").mkdir()
    for name in ("model.pkl", "results.jsonl"):
        shutil.copy(GOLDEN / name, folder / "old")
    (folder / "old" / "done").write_text("done")

    write_clip(folder / "clip.pt")
    record = json.loads((GOLDEN / "results.jsonl").read_text().splitlines()[0])
    arguments = ["--algorithm", "CARFT", "--dataset", "./pets", "--steps", "3", "--workers", "0"]
    arguments += ["--checkpoint_freq", "2", "--hparams", record["args"]["hparams"]]
    arguments += ["--test_envs", "0", "--trial_seed", "1", "--output_dir", "new"]
    sys.addaudithook(count_opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        clip_cache.uninstall(patch)
        assert train.main(arguments) == 0
    return folder


def read(folder, name):
    content = torch.load(folder / name / "model.pkl", weights_only=True)
    records = [json.loads(line) for line in (folder / name / "results.jsonl").open()]
    return content, records


def test_words_and_plan_are_in_records_and_weights(folder):
    content, records = read(folder, "new")
    old_content, old_records = read(folder, "old")
    for record in records:
        assert record["pictures"] == content["pictures"]
        assert record["picture_plan"] == content["picture_plan"]
    by_numba = content["pictures"].replace("torch", "numba")  # without the extra "fast"
    assert by_numba == old_content["pictures"]
    assert old_records[0].keys() < records[0].keys()


def test_records_have_the_numbers_of_0_1_0(folder):
    """Reading the CLIP early, for what it wants of pictures, draws no random number."""
    _, records = read(folder, "new")
    for record, expected in zip(records, MEASURED["trial 1"], strict=True):
        assert record["step"] == expected["step"]
        # Without numba, pictures differ in rounding.
        assert record["loss"] == pytest.approx(expected["loss"], abs=5e-3)


def test_the_plan_is_the_protocols_for_the_clip(folder):
    (content, _), (old_content, _) = read(folder, "new"), read(folder, "old")
    plan = PicturePlan.from_json(content["picture_plan"])
    expected = plan_for("domainbed", 32, augment=True).for_model(32, CLIP_MEAN, CLIP_STD)
    assert plan == replace(expected, mode="fast", jitter=plan.jitter)
    assert plan.describe() == content["pictures"]

    run = saved.open_run(folder / "old")
    assert "picture_plan" not in old_content
    assert run.picture_plan == replace(expected, mode="fast", jitter="numba")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fast, jitter by torch", {"mode": "fast", "jitter": "torch"}),
        ("pillow", {}),
        ("fast, jitter by wind", {}),
        (None, {}),
    ],
)
def test_a_plan_by_other_words_keeps_the_data_sets_normalisation(folder, words, expected):
    run = saved.open_run(folder / "old")
    content = {name: value for name, value in run.content.items() if name != "pictures"}
    if words is not None:
        content["pictures"] = words
    plan = recorded_plan(content, run.algorithm.input)
    assert plan == replace(plan_for("domainbed", 32, augment=True), **expected)


def test_a_file_of_0_1_0_measures_what_0_1_0_measured(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    document = evaluated(capsys, "old", "--workers", 0)
    for split in document["splits"]:
        assert split["accuracy"] == MEASURED["accuracy"][split["name"]]
        assert split["ece"] == pytest.approx(MEASURED["ece"][split["name"]], abs=1e-4)

    carft("predict", "old", "pets/art", "--format", "jsonl", "--workers", 0)
    predictions = map(json.loads, capsys.readouterr().out.splitlines())
    cat_shares = {row["path"]: row["classes"]["cat"] for row in predictions}
    assert cat_shares == pytest.approx(MEASURED["cat"], abs=1e-5)


def test_a_job_measures_what_its_records_say(folder, monkeypatch, capsys):
    _, records = read(folder, "new")
    monkeypatch.chdir(folder)
    document = evaluated(capsys, "new", "--workers", 0)
    for split in document["splits"]:
        assert split["accuracy"] == records[-1][f"{split['name']}_acc"]


def test_a_plan_that_is_none_is_refused(folder, tmp_path):
    content, _ = read(folder, "new")
    content["picture_plan"]["size"] = 10**9
    torch.save(content, tmp_path / "model.pkl")
    with pytest.raises(Exception, match="picture_plan is .*Expected a weights file"):
        saved.open_run(tmp_path)


def test_jobs_with_and_without_a_plan_share_a_table(folder):
    tables = collect_sweeps.tables(folder, ignored=["versions"])
    (row,) = tables["", "oracle", "./pets"]["rows"]
    assert row["cells"][0]["n"] == 2


def test_a_clip_given_as_a_file_is_loaded_for_its_facts_and_to_train_it(folder, monkeypatch):
    opened_in_job = opened_files["clip.pt"]
    monkeypatch.chdir(folder)
    clip_cache.uninstall(monkeypatch)
    backbone.load("clip.pt")  # whose digest is known
    opened_in_load = opened_files["clip.pt"] - opened_in_job
    assert opened_in_job == 2 * opened_in_load + 1
