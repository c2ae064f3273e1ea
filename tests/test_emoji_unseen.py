"""EmojiUnseen: which styles `tiny` has seen, their families, the data set, the suite."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
import sys
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace
from importlib import resources
from pathlib import Path

import collect_sweeps
import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from domainbed.lib import misc
from PIL import Image

from domainbed_carft.data import benchmarks, emoji, emoji_styles, verify
from domainbed_carft.data.emoji_styles import FAMILY_SEEN, NEVER_SEEN, SEEN
from domainbed_carft.method import algorithms, prompts
from domainbed_carft.plugin import data_sets
from domainbed_carft.results import collection, comparisons, evaluations, selection, suites
from domainbed_carft.runs.predictions import LoadingOptions
from domainbed_carft.runs.suites import SuiteTest
from domainbed_carft.suites import catalogue, records

TOOLS = Path(__file__).resolve().parent.parent / "tools"
ASSETS = resources.files("domainbed_carft") / "assets"
HPARAMS = {"class_names": "dataset:EmojiUnseen", "clip_backbone": "tiny"}
#: Of the pictures of a seen family, the share that nearly equals the seen drawing, at least.
REDRAWN = {"openmoji": 0.9, "fluentflat": 0.03}


@pytest.fixture(scope="module")
def near_duplicates():
    """The module with the difference hash, which lives with the scripts and not in the wheel."""
    if not TOOLS.is_dir():
        pytest.skip("needs the source tree")
    sys.path.insert(0, str(TOOLS))
    try:
        import build_emoji
    finally:
        sys.path.remove(str(TOOLS))
    return build_emoji


@pytest.fixture(scope="module")
def audit() -> list[dict[str, str]]:
    text = (ASSETS / "tiny_pretraining.csv").read_text("ascii")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def split() -> dict[str, dict[str, str]]:
    text = (ASSETS / "emoji_split.csv").read_text("ascii")
    return {row["codepoints"]: row for row in csv.DictReader(io.StringIO(text))}


def read_pictures(archive: str) -> dict[str, np.ndarray]:
    """Member -> pixels."""
    with zipfile.ZipFile(io.BytesIO((ASSETS / archive).read_bytes())) as opened:
        return {
            name: np.asarray(Image.open(io.BytesIO(opened.read(name))).convert("RGB"))
            for name in opened.namelist()
            if name.endswith(".png")
        }


@pytest.fixture(scope="module")
def drawings() -> dict[str, dict[str, np.ndarray]]:
    """Style -> "class/thing.png" -> pixels, of all styles in the package."""
    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for archive in (emoji.ARCHIVE, emoji.FURTHER_ARCHIVE):
        for name, pixels in read_pictures(archive).items():
            *_, style, class_name, thing = name.split("/")
            found[style][f"{class_name}/{thing}"] = pixels
    return found


# The labels


def test_tiny_was_trained_on_the_seen_styles_and_never_on_a_held_out_thing(audit, split):
    assert {row["style"] for row in audit} == {*emoji_styles.names(SEEN)}
    assert {split[row["codepoints"]]["split"] for row in audit} == {"pretrain"}
    assert len(audit) == 5835 == len({(row["codepoints"], row["style"]) for row in audit})


def test_a_label_follows_from_the_family(audit):
    trained = {row["style"] for row in audit}
    trained_families = {emoji_styles.get(name).family for name in trained}
    for style in emoji_styles.styles():
        is_family_seen = style.family in trained_families
        expected = SEEN if style.name in trained else FAMILY_SEEN if is_family_seen else NEVER_SEEN
        assert style.label == expected, style.name
    independent = {emoji_styles.get(name).family for name in emoji_styles.names(NEVER_SEEN)}
    assert independent == {"emojione", "fxemoji", "streamline"}


def test_no_never_seen_picture_nearly_equals_one_of_pretraining(near_duplicates, audit, drawings):
    trained = np.stack([near_duplicates.from_text(row["hash"]) for row in audit])
    for style in emoji_styles.names(NEVER_SEEN):
        pictures = drawings[style]
        hashes = near_duplicates.difference_hashes(np.stack(list(pictures.values())))
        assert near_duplicates.distances(hashes, trained).min() > near_duplicates.NEAR, style


def test_the_near_duplicates_of_emoji_styles_are_listed(near_duplicates, audit, drawings):
    trained = np.stack([near_duplicates.from_text(row["hash"]) for row in audit])
    text = (ASSETS / "emoji_styles_near_duplicates.csv").read_text("ascii")
    listed = {row["picture"]: row for row in csv.DictReader(io.StringIO(text))}
    assert list(listed) == sorted(listed)

    found = {}
    signs = np.where(trained, 1, -1).astype(np.float32)
    for style in emoji_styles.names(SEEN):
        hashes = near_duplicates.difference_hashes(np.stack([*drawings[style].values()]))
        agreements = np.where(hashes, 1, -1).astype(np.float32) @ signs.T  # equal bits minus others
        n_differing = ((near_duplicates.BITS - agreements) / 2).astype(int)
        for (thing, picture), differing in zip(drawings[style].items(), n_differing, strict=True):
            if differing.min() <= near_duplicates.NEAR:
                nearest = audit[differing.argmin()]
                digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
                found[f"{style}/{thing}"] = {
                    "picture": f"{style}/{thing}",
                    "bits": str(differing.min()),
                    "codepoints": nearest["codepoints"],
                    "style": nearest["style"],
                    "identical": "yes" if digest == nearest["sha256"] else "no",
                }
    assert listed == found

    counts = Counter(picture.split("/")[0] for picture in found)
    assert counts == {"line": 104, "noto": 25, "fluent3d": 18, "twemoji": 16}
    identical = [name for name, row in found.items() if row["identical"] == "yes"]
    assert identical == ["line/face/grinning-face-with-smiling-eyes.png"]
    readme = " ".join((ASSETS / "README.md").read_text("utf-8").split())
    assert "163 of the 1,716 pictures: 104 of `line`, 25 of `noto`, 18 of `fluent3d`" in readme


def test_the_table_without_near_duplicates_is_of_the_kept_predictions(tmp_path):
    tool = collect_sweeps.benchmark("without_near_duplicates")
    kept = tmp_path / "kept"
    correct = {}
    draw = np.random.default_rng(0)
    for algorithm, target, trial in itertools.product(("CARFT", "ERM"), (1, 2), (0, 1)):
        job = collect_sweeps.write_job(
            kept,
            f"{algorithm}-{target}-{trial}",
            algorithm=algorithm,
            test_envs=[target],
            trial_seed=trial,
            dataset="EmojiStyles",
            environments=emoji_styles.names(SEEN),
        )
        correct[algorithm, target, trial] = keep_predictions(job, target, trial, draw)

    percent, missing = tool.accuracies(kept)
    assert missing == 0

    listed = tool.near_duplicates()
    for (algorithm, target, trial), by_picture in correct.items():
        pair = ("EmojiStyles", target, trial)
        others = [right for picture, right in by_picture.items() if picture not in listed]
        assert len(others) < len(by_picture) == 344
        assert percent["all"][algorithm][pair] == 100 * np.mean([*by_picture.values()])
        assert percent["without"][algorithm][pair] == pytest.approx(100 * np.mean(others))

    differences = {row[1]: row for row in tool.table_of_differences(percent)}
    without = percent["without"]
    targets = [
        np.mean([without["ERM"][k] - without["CARFT"][k] for k in without["ERM"] if k[1] == target])
        for target in (1, 2)
    ]
    low, high = scipy.stats.ttest_1samp(targets, 0).confidence_interval()
    mean = f"{np.mean(targets):+.1f}"
    assert differences["without"][:4] == ["ERM", "without", mean, f"{low:+.1f} to {high:+.1f}"]

    shutil.rmtree(kept / "ERM-1-0")
    for rows in (kept / "CARFT-1-0").glob("*.npz"):
        rows.unlink()
    assert tool.accuracies(kept)[1] == 1


def keep_predictions(job, target, trial, draw):
    """Write the rows of a job's target, as `carft evaluate` does; picture -> whether right."""
    dataset = data_sets.EmojiStyles("not read", [target], dict(HPARAMS))
    environment = dataset[target]
    seed = misc.seed_hash(trial, target)
    _, in_split = misc.split_dataset(environment, 85, seed)
    _, reported = misc.split_dataset(in_split, 0, seed)  # as train does; no uda-split
    samples = [environment.samples[in_split.keys[key]] for key in reported.keys]
    labels = np.array([label for _, label in samples])
    is_right = draw.random(len(labels)) < 0.7
    predicted = np.where(is_right, labels, (labels + 1) % 10)

    lines = [json.loads(line) for line in (job / "results.jsonl").open()]
    columns = np.full(len(labels), 0.5)
    split = evaluations.EvaluatedSplit(dataset.ENVIRONMENTS[target], target, "in", len(labels))
    facts = evaluations.EvaluationFacts(
        format=evaluations.FORMAT,
        dataset="EmojiStyles",
        algorithm=lines[0]["args"]["algorithm"],
        test_envs=[target],
        trial_seed=trial,
        hparams_seed=0,
        step=0,
        weights="",
        data="",
        prompts_digest="",
        clip_digest="",
        classes=list(environment.classes),
        contexts=["a {}."],
        pictures=len(labels),
        splits=[split],
        temperature=None,
    )
    rows = evaluations.EvaluatedRows(
        raw=evaluations.PictureRows(labels, predicted, columns, -columns, columns),
        scaled=None,
        zero_shot=labels,
        alignment=columns,
    )
    for record in lines:
        evaluations.save_rows(job, rows, replace(facts, step=record["step"]))
    return {
        "/".join(Path(path).parts[-3:]): bool(right)
        for (path, _), right in zip(samples, is_right, strict=True)
    }


@pytest.mark.parametrize("label", [NEVER_SEEN, FAMILY_SEEN])
def test_near_duplicates_of_the_same_thing_show_the_families(near_duplicates, drawings, label):
    """None in a never-seen style; what a seen family draws again is found, so the hash works."""
    for name in emoji_styles.names(label):
        things = list(drawings[name])
        own = near_duplicates.difference_hashes(np.stack([drawings[name][t] for t in things]))
        is_near = np.zeros(len(things), bool)
        for seen in emoji_styles.names(SEEN):
            same_things = np.stack([drawings[seen][thing] for thing in things])
            other = near_duplicates.difference_hashes(same_things)
            is_near |= (own != other).sum(axis=1) <= near_duplicates.NEAR
        share = is_near.mean()
        assert share == 0 if label == NEVER_SEEN else share >= REDRAWN.get(name, 0), name


def test_the_difference_hash_tells_drawings_apart_and_forgives_colours(near_duplicates, drawings):
    cat = drawings["emojione2"]["animal/cat.png"].astype(int)
    dog = drawings["emojione2"]["animal/mouse.png"].astype(int)
    paler = 255 - (255 - cat) * 3 // 4
    first, second, third = near_duplicates.difference_hashes(
        np.stack([cat, paler, dog]).astype(np.uint8)
    )
    assert (first != second).sum() < near_duplicates.NEAR < (first != third).sum()
    assert (near_duplicates.from_text(near_duplicates.as_text(first)) == first).all()


# The pictures


def test_counts_and_things_are_those_of_the_held_out_split(drawings, split):
    held = Counter(row["class"] for row in split.values() if row["split"] == "held_out")
    whole = set(drawings["noto"])
    for style in emoji_styles.styles():
        assert len(drawings[style.name]) == style.pictures, style.name
        assert set(drawings[style.name]) <= whole
        assert {thing.split("/")[0] for thing in drawings[style.name]} == set(held)


def test_no_picture_is_twice_in_a_further_style(drawings):
    for label in (NEVER_SEEN, FAMILY_SEEN):
        for name in emoji_styles.names(label):
            digests = {hashlib.sha256(p.tobytes()).digest() for p in drawings[name].values()}
            assert len(digests) == len(drawings[name]), name


def test_the_reviewed_table_names_held_out_things(split):
    if not TOOLS.is_dir():
        pytest.skip("needs the source tree")
    rows = list(csv.DictReader((TOOLS / "emoji_icons.csv").open(encoding="ascii")))
    held = {key: row["name"] for key, row in split.items() if row["split"] == "held_out"}
    assert {row["codepoints"]: row["name"] for row in rows} == held
    further = emoji_styles.names(NEVER_SEEN) + emoji_styles.names(FAMILY_SEEN)
    assert [*rows[0]][2:] == further
    for name in further:
        assert sum(bool(row[name]) for row in rows) >= emoji_styles.get(name).pictures


def test_the_archive_does_not_depend_on_when_it_was_made():
    with zipfile.ZipFile(io.BytesIO((ASSETS / emoji.FURTHER_ARCHIVE).read_bytes())) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


def test_emoji_styles_keeps_its_bytes_and_the_assets_stay_small():
    digest = hashlib.sha256((ASSETS / emoji.ARCHIVE).read_bytes()).hexdigest()
    assert digest == "ff4d187db8cbeac21a50c6122ee7ebbe35802fc153a4c6f24d53e23fdea9afb9"
    with resources.as_file(ASSETS) as folder:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert sum(sizes) < 32 * 2**20


def test_licences_travel_with_the_pictures():
    text = (ASSETS / "LICENSES_further_styles.txt").read_text("utf-8")
    with zipfile.ZipFile(io.BytesIO((ASSETS / emoji.FURTHER_ARCHIVE).read_bytes())) as archive:
        assert archive.read("LICENSES.txt").decode() == text
    readme = (ASSETS / "README.md").read_text("utf-8")
    for style in emoji_styles.styles():
        assert style.integrity.startswith("sha512-")
        if style.label != SEEN:
            assert f"\n{emoji_styles.folder(style.label)}/{style.name}/\n" in text
            assert f"{style.package} {style.version}" in " ".join(text.split())
            assert (
                f"| `{style.name}` | {style.label} | {style.family} | {style.pictures} |" in readme
            )


# The data set


def test_the_data_set_has_the_never_seen_styles_as_environments():
    dataset = data_sets.EmojiUnseen("not read", [1], dict(HPARAMS))
    assert emoji_styles.names(NEVER_SEEN) == dataset.ENVIRONMENTS
    assert [len(environment) for environment in dataset] == [
        emoji_styles.get(name).pictures for name in dataset.ENVIRONMENTS
    ]
    assert dataset.num_classes == 10 and dataset.input_shape == (3, 48, 48)
    assert dataset.data_edition == "verified: of the package"
    moves = [not torch.equal(env[5][0], env[5][0]) for env in dataset]
    assert moves == [True, False, True, True, True]
    assert verify.verify("EmojiUnseen").verdict == "verified"


@pytest.mark.parametrize("algorithm", ["CARFT", "CLIPLinearProbe"])
def test_the_data_set_is_trained_like_emoji_styles(algorithm):
    for seed in (None, 0):
        expected = algorithms.hparam_values(algorithm, "EmojiStyles", seed)
        found = algorithms.hparam_values(algorithm, "EmojiUnseen", seed)
        assert {name for name in found if found[name] != expected[name]} <= {"class_names"}
    classes = prompts.BUILT_IN_CLASSES
    assert classes["EmojiUnseen"] == classes["EmojiStyles"]


def test_a_benchmarks_families_are_those_of_the_styles():
    known = benchmarks.get("EmojiUnseen").environments
    assert [e.folder for e in known] == emoji_styles.names(NEVER_SEEN)
    assert [e.family for e in known] == [emoji_styles.get(e.folder).family for e in known]
    units = [benchmarks.independent_unit("EmojiUnseen", index) for index in range(len(known))]
    assert units == ["emojione", "emojione", "emojione", "fxemoji", "streamline"]
    assert benchmarks.independent_unit("EmojiStyles", 2) == "2"
    assert benchmarks.independent_unit("./pets", 1) == "1"


# The suites


def test_the_suite_of_shifts_keeps_its_mean_beside_those_of_the_groups():
    suite = catalogue.get("EmojiShift")
    accuracies = {one.name: 0.5 for one in suite.sets}
    accuracies |= {"fluent3d": 0.3, "line": 0.6, "twemoji": 0.9, "streamline": 1.0}
    means = suite.means(accuracies)
    assert means["mean"] == pytest.approx(0.6)
    assert means["mean_never_seen"] == pytest.approx(0.6)
    assert means["mean_family_seen"] == pytest.approx(0.5)
    del accuracies["streamline"]
    assert suite.means(accuracies)["mean_never_seen"] is None
    assert suite.means(accuracies)["mean"] == pytest.approx(0.6)
    assert [one.name for one in suite.sets[:4]] == ["noto", "fluent3d", "line", "twemoji"]
    assert suite.in_distribution == "noto"
    assert list(suite.mean_titles.values()) == [
        "Mean of the shifts",
        "Mean, never seen",
        "Mean, family seen",
    ]


def test_the_suite_of_unseen_styles_finds_all_pictures(tmp_path):
    suite = catalogue.get("EmojiUnseen")
    assert [one.name for one in suite.sets] == [
        *emoji_styles.names(NEVER_SEEN),
        *emoji_styles.names(FAMILY_SEEN),
        *emoji_styles.names(SEEN),
    ]
    for one in suite.sets:
        found = one.find(tmp_path)
        assert not found.problems and len(found.samples) == emoji_styles.get(one.name).pictures
    assert suite.mean_titles.keys() == {"mean_never_seen", "mean_family_seen", "mean_seen"}


@pytest.mark.parametrize("protocol", ["domainbed", "clip"])
def test_the_suite_and_the_data_set_make_the_same_input_of_a_picture(protocol):
    """Both resize by Pillow; torch's bicubic, of `clip`, differs by a grey level here and there."""
    styles = emoji_styles.names(NEVER_SEEN)
    hparams_of_run = {**HPARAMS, "protocol": protocol}
    dataset = data_sets.EmojiUnseen("not read", [*range(len(styles))], hparams_of_run)
    whole_suite = catalogue.get("EmojiUnseen")
    suite = replace(whole_suite, sets=whole_suite.sets[: len(styles)])
    copies = {test_set.name: test_set.find(Path()) for test_set in suite.sets}
    test = SuiteTest(
        suite=suite,
        copies={name: replace(copy, samples=copy.samples[::4]) for name, copy in copies.items()},
        unread={},
        plan=dataset[0].transform.plan,
        options=LoadingOptions(torch.device("cpu"), workers=0),
    )
    batches = []

    def predict(pictures):
        batches.append(pictures.clone())
        return [torch.zeros(len(pictures), 10)]

    test.scores(predict)

    places = {
        path: (environment, position)
        for environment in dataset
        for position, (path, _) in enumerate(environment.samples)
    }
    paths = [path for copy in test.copies.values() for path, _ in copy.samples]
    pictures = [environment[position][0] for environment, position in map(places.get, paths)]
    expected = torch.stack(pictures)
    assert torch.allclose(torch.cat(batches), expected, rtol=0, atol=1e-5)


def test_a_record_keeps_the_means_of_the_groups_and_tables_show_them(tmp_path):
    suite = catalogue.get("EmojiUnseen")
    one_set = {"n": 8, "right": 4, "accuracy": 0.5, "ece": 0, "complete": True}
    record = {
        "suite": suite.name,
        "weights": "model.pkl",
        "step": 3,
        "wise_ft_alpha": None,
        "weights_digest": "0" * 64,
        "algorithm": "CARFT",
        "sets": {one.name: one_set for one in suite.sets},
        **suite.means({one.name: 0.5 for one in suite.sets}),
        "problems": {},
        "unread": [],
    }
    records.append(tmp_path, record)
    (kept,) = records.read(tmp_path, warnings=[])
    assert kept["mean_never_seen"] == kept["mean_family_seen"] == kept["mean_seen"] == 0.5
    assert kept["mean"] is None and "problems" not in kept
    assert [*suites.columns(suite).values()][-3:] == [
        "Mean, never seen",
        "Mean, family seen",
        "Mean, seen",
    ]


def test_an_older_record_without_the_groups_is_read(tmp_path):
    old = {"suite": "EmojiShift", "weights": "model.pkl", "step": 3, "wise_ft_alpha": None}
    old |= {"weights_digest": "0" * 64}
    old |= {"algorithm": "CARFT", "sets": {}, "mean": 0.5, "mean_without_objectnet": None}
    (tmp_path / records.FILE).write_text(json.dumps(old) + "\n")
    assert records.read(tmp_path, warnings=[]) == [old]


# Errors


def test_the_environments_of_a_family_are_one_unit_of_an_interval(tmp_path):
    labels = emoji_styles.names(NEVER_SEEN)
    for algorithm, target, trial in itertools.product(("CARFT", "ERM"), range(5), range(2)):
        collect_sweeps.write_job(
            tmp_path,
            f"{algorithm}-{target}-{trial}",
            algorithm=algorithm,
            test_envs=[target],
            trial_seed=trial,
            dataset="EmojiUnseen",
            environments=labels,
        )
    gathered = collection.gather([tmp_path], ["oracle"])
    found, _ = comparisons.compare_rows(gathered, "ERM", row="CARFT")
    assert (found.unit, found.environments, found.n, found.pairs) == ("environment", 5, 3, 10)

    accuracies = {
        (one.algorithm, one.target, one.trial): 100 * one.outcome.accuracy
        for one in selection.select(gathered.runs, "oracle")
    }
    of_targets = [
        sum(accuracies["CARFT", k, t] - accuracies["ERM", k, t] for t in range(2)) for k in range(5)
    ]
    units = [sum(of_targets[:3]) / 6, of_targets[3] / 2, of_targets[4] / 2]
    interval = scipy.stats.ttest_1samp(units, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx([interval.low, interval.high])


def test_the_styles_of_a_family_are_one_environment_of_a_test():
    pairs = {
        ("EmojiUnseen", target, trial): 5.0 * target + trial
        for target in range(4)
        for trial in range(2)
    }
    accuracies = {"CARFT": pairs, "ERM": dict.fromkeys(pairs, 0.0)}
    (by_environment,) = comparisons.compare(accuracies, "ERM", "environment")
    (by_pair,) = comparisons.compare(accuracies, "ERM", "pair")
    assert (by_environment.n, by_environment.mean_difference) == (2, (5.5 + 15.5) / 2)
    assert (by_pair.n, by_pair.mean_difference) == (8, 8.0)


def test_the_contamination_table_compares_gains_by_group(tmp_path):
    table = collect_sweeps.benchmark("contamination")
    bonus = dict.fromkeys(emoji_styles.names(SEEN), 0.2)
    bonus |= dict.fromkeys(emoji_styles.names(FAMILY_SEEN), 0.1)
    bonus |= {"emojione1": 0.0, "emojione2": 0.1, "emojione2mono": 0.2, "fxemoji": 0.1}
    for algorithm, target in itertools.product(("CLIPZeroShot", "CARFT"), range(4)):
        job = collect_sweeps.write_job(
            tmp_path,
            f"{algorithm}-{target}",
            algorithm=algorithm,
            test_envs=[target],
            dataset="EmojiStyles",
            environments=emoji_styles.names(SEEN),
        )
        trained_on = set(emoji_styles.names(SEEN)) - {emoji_styles.names(SEEN)[target]}
        gains = {
            style.name: bonus.get(style.name, 0.4) * (algorithm == "CARFT")
            for style in emoji_styles.styles()
        } | dict.fromkeys(trained_on, 0.4)
        suite = catalogue.get("EmojiUnseen")
        accuracies = {name: 0.5 + gain for name, gain in gains.items()}
        record = {"suite": suite.name, "weights": "model.pkl", "step": 3, "wise_ft_alpha": None}
        record |= {"weights_digest": "0" * 64}
        sets = {name: {"accuracy": value, "complete": True} for name, value in accuracies.items()}
        records.append(
            job, {**record, "algorithm": algorithm, "sets": sets, **suite.means(accuracies)}
        )

    (row,) = table.table(list(table.read_scores(tmp_path)))
    assert row["seen"] == "+20.0 (+20.0 to +20.0)"
    assert row["family seen"] == "+10.0 (+10.0 to +10.0)"
    # Gains inside EmojiOne that differ do not cancel.
    assert row["never seen"] == "+16.0 (+0.0 to +40.0)"
    assert row["seen - never"] == "+4.0"


def test_the_contamination_table_has_a_row_for_each_variant(tmp_path):
    table = collect_sweeps.benchmark("contamination")
    gains = {"methods/CLIPZeroShot": 0.0, "methods/CARFT": 0.1, "SWAD/CARFT": 0.2}
    for name, gain in gains.items():
        variant, algorithm = name.split("/")
        job = collect_sweeps.write_job(
            tmp_path / variant,
            algorithm,
            algorithm=algorithm,
            test_envs=[0],
            dataset="EmojiStyles",
            environments=emoji_styles.names(SEEN),
        )
        suite = catalogue.get("EmojiUnseen")
        accuracies = {style.name: 0.5 + gain for style in emoji_styles.styles()}
        record = {"suite": suite.name, "weights": "model.pkl", "step": 3, "wise_ft_alpha": None}
        record |= {"weights_digest": "0" * 64}
        sets = {name: {"accuracy": value, "complete": True} for name, value in accuracies.items()}
        records.append(
            job, {**record, "algorithm": algorithm, "sets": sets, **suite.means(accuracies)}
        )

    rows = table.table(list(table.read_scores(tmp_path)))
    never_seen = {row["gain over zero-shot"]: row["never seen"] for row in rows}
    assert never_seen == {
        "CARFT (SWAD)": "+20.0 (+20.0 to +20.0)",
        "CARFT (methods)": "+10.0 (+10.0 to +10.0)",
    }


def test_the_documented_table_is_that_of_the_packed_records(tmp_path):
    records_folder = collect_sweeps.REPO / "benchmarks" / "records"
    shutil.unpack_archive(records_folder / "contamination.tar.xz", tmp_path, filter="data")
    tool = collect_sweeps.benchmark("contamination")

    scores = list(tool.read_scores(tmp_path / "contamination"))
    rows = [*tool.table(scores), *tool.table_of_leads(scores)]

    page = (collect_sweeps.REPO / "benchmarks" / "README.md").read_text()
    section = page.split("## Styles that the CLIP has never seen")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| .* [-+]\d", line)]
    assert lines == [f"| {' | '.join(row.values())} |" for row in rows]


def test_the_leads_on_the_page_of_the_embedded_benchmark_are_those_of_the_records(tmp_path):
    records_folder = collect_sweeps.REPO / "benchmarks" / "records"
    shutil.unpack_archive(records_folder / "contamination.tar.xz", tmp_path, filter="data")
    tool = collect_sweeps.benchmark("contamination")
    scores = list(tool.read_scores(tmp_path / "contamination"))

    frame = pd.DataFrame(scores).set_index(["method", "style", "target", "trial"])["accuracy"]
    leads = (frame["CARFT"] - frame["CLIPFineTune"]).reset_index()
    leads["group"] = leads["style"].map(
        {style.name: style.label for style in emoji_styles.styles()}
    )
    by_target = leads.groupby(["group", "target"])["accuracy"].mean().unstack("group")
    by_target["seen - never"] = by_target[SEEN] - by_target[NEVER_SEEN]

    page = (collect_sweeps.REPO / "docs" / "embedded-benchmark.md").read_text()
    shown = re.findall(r"^\| ([\w -]+) \| ([+-][\d.]+ \(.+\)) \|$", page, re.MULTILINE)
    assert shown == [tuple(row.values()) for row in tool.table_of_leads(scores)]
    assert len(shown) == 4
    for group, text in shown:
        points = by_target[group]
        low, high = scipy.stats.ttest_1samp(points, 0).confidence_interval()
        assert text == f"{points.mean():+.1f} ({low:+.1f} to {high:+.1f})"

    quoted = {
        "README.md": (SEEN, NEVER_SEEN, "seen - never"),
        "docs/methods/carft.md": (NEVER_SEEN,),
        "docs/peers.md": ("seen - never",),
        "docs/verified.md": (NEVER_SEEN,),
    }
    for name, groups in quoted.items():
        page = " ".join((collect_sweeps.REPO / name).read_text().split())
        assert [group for group in groups if dict(shown)[group] not in page] == [], name
