"""Whole test sets in `carft collect` and `carft report`, from the lines in jobs' suites.jsonl."""

import itertools

import numpy as np
import pytest
import report_page
from collect_sweeps import collect, write_job

from domainbed_carft.report import page
from domainbed_carft.results import collection, suites
from domainbed_carft.suites import catalogue, records

SETS = [one.name for one in catalogue.get("imagenet").sets]


def write_run(folder, algorithm, trial, lines, dataset="ImageNet", suite="imagenet"):
    """A job that left nothing out, and an evaluation for each (alpha, accuracies, weights)."""
    name = f"{algorithm}-{trial}"
    job = write_job(
        folder,
        name,
        dataset=dataset,
        algorithm=algorithm,
        trial_seed=trial,
        test_envs=[],
        environments=["train"],
        recorded={"clip_backbone": "ViT-B/16"},
    )

    for alpha, accuracies, weights in lines:
        sets = {
            name: {"n": 8, "right": 4, "accuracy": value, "ece": 0.1, "complete": value > 0.1}
            for name, value in accuracies.items()
        }
        complete_sets = {name: value for name, value in accuracies.items() if value > 0.1}
        means = catalogue.get(suite).means(complete_sets)
        record = {"suite": suite, "weights": weights, "step": None, "wise_ft_alpha": alpha}
        record |= {"weights_digest": "0" * 64, "algorithm": algorithm, "sets": sets}
        records.append(job, {**record, **means})
    return job


@pytest.fixture
def sweep(tmp_path):
    draw = np.random.RandomState(0)
    accuracies_of = {}
    for trial in range(2):
        for algorithm in ("CARFT", "CLIPZeroShot"):
            lines = []
            for alpha in (None, *((0.0, 0.5, 1.0) if algorithm == "CARFT" else ())):
                accuracies_of[algorithm, alpha, trial] = accuracies = dict(
                    zip(SETS, draw.uniform(0.2, 1, 6).tolist())
                )
                lines.append((alpha, accuracies, "model.pkl"))
            if algorithm == "CLIPZeroShot" and trial:
                lines[0][1]["ObjectNet"] = 0.05  # not complete
            write_run(tmp_path / "sweep", algorithm, trial, lines)

    (tmp_path / "sweep" / "CARFT-0" / records.FILE).open("a").write('{"suite": "imag')
    return tmp_path / "sweep", accuracies_of


def shown(values):
    """Mean, standard error and number, as tables have them."""
    return f"{np.mean(values):.1f} ± {np.std(values) / len(values) ** 0.5:.1f} ({len(values)})"


def test_suite_rows_are_means_over_trials(sweep):
    folder, accuracies_of = sweep
    document = collect(folder, compare=True)
    grids = {grid.title: grid for grid in document.grids}
    grid = grids["Suite imagenet, trained on ImageNet"]

    assert grid.header == [
        "Algorithm",
        "ImageNet, in distribution",
        *SETS[1:],
        "Mean of the shifts",
        "Mean without ObjectNet",
    ]

    rows = {row[0]: row[1:] for row in grid.rows}
    labels = ["CARFT", "CARFT, alpha 0", "CARFT, alpha 0.5", "CARFT, alpha 1", "CLIPZeroShot"]
    assert list(rows) == labels

    for label, key in (("CARFT", None), ("CARFT, alpha 0.5", 0.5)):
        trials = [[100 * accuracies_of["CARFT", key, t][name] for name in SETS] for t in range(2)]
        expected = [shown(column) for column in zip(*trials)]
        expected += [
            shown([np.mean(t[1:]) for t in trials]),
            shown([np.mean(t[1:5]) for t in trials]),
        ]
        assert rows[label] == expected

    # Of the second trial's copy a set is not complete: no mean of that trial needs it.
    zero_shot = [100 * accuracies_of["CLIPZeroShot", None, t]["ObjectNet"] for t in range(2)]
    assert rows["CLIPZeroShot"][5] == f"{shown(zero_shot)}*"
    assert rows["CLIPZeroShot"][6].endswith(" (1)")

    entries = {
        (entry["algorithm"], entry["alpha"]): entry for entry in document.as_dict()["suites"]
    }
    assert entries["CARFT", 0.5]["cells"]["mean"]["n"] == 2
    assert entries["CLIPZeroShot", None]["partial"] == ["ObjectNet"]


def test_suite_rows_stand_beside_published_figures(sweep):
    document = collect(sweep[0], compare=True)
    grids = {grid.title: grid for grid in document.grids}
    rows = {row[0]: row[1:] for row in grids["Suite imagenet, trained on ImageNet"].rows}
    published_grid = grids["Suite imagenet, beside published figures"]
    our_rows = published_grid.rows[:2]
    published_rows = {(row[0], row[1]): row[2:] for row in published_grid.rows[2:]}
    assert [row[:2] for row in our_rows] == [
        [f"{name}, ours", "ViT-B/16"] for name in ("CARFT", "CLIPZeroShot")
    ]
    assert our_rows[0][2:] == rows["CARFT"]

    values = [82.72, 72.76, 71.32, 48.49, 49.87, 54.83]  # FLYP by TRACER's table 1
    means = [np.mean(values[1:]), np.mean(values[1:5])]
    assert published_rows["FLYP (TRACER)", "ViT-B/16"] == [f"{v:.1f}" for v in (*values, *means)]
    assert published_rows["CaRot (TRACER)", "ViT-L/14"] == ["87.0", "", "", "", "", "", "74.1", ""]

    source_notes = [
        note
        for note in published_grid.notes
        if note.startswith("zero-shot CLIP: ObjectNet zero-shot")
    ]
    assert len(published_rows) == 27 and len(source_notes) == 1
    assert not [method for method, _ in published_rows if method == "CAR-FT"]  # nobody has read it


def test_task_test_sets_show_the_mean_over_classes(tmp_path):
    for trial in range(2):
        job = write_run(tmp_path, "CARFT", trial, [], "DTD")
        counts = {"n": 8, "right": 4, "accuracy": 0.5, "mean_per_class": 0.25 + trial / 2, "ece": 0}
        record = {"suite": "DTD", "weights": "model_best.pkl", "step": 3, "wise_ft_alpha": None}
        record |= {"weights_digest": "0" * 64, "algorithm": "CARFT"}
        record |= {"mean": None, "mean_without_objectnet": None}
        records.append(job, {**record, "sets": {"test": {**counts, "complete": True}}})

    document = collect(tmp_path, compare=True)
    (grid,) = (grid for grid in document.grids if grid.title == "Suite DTD")
    assert (grid.header, grid.rows) == (["Algorithm", "test"], [["CARFT, best", "50.0 ± 17.7 (2)"]])

    (published_grid,) = (
        grid for grid in document.grids if grid.title == "Suite DTD, beside published figures"
    )
    assert ["zero-shot CLIP", "ViT-B/16", "45.0"] in published_grid.rows


def test_a_wise_ft_curve_uses_one_file_of_weights(tmp_path):
    values = {name: 0.5 for name in SETS}
    lines = [
        (None, values, "model_best.pkl"),
        (None, values, "model.pkl"),
        (0.0, values, "model.pkl"),
    ]
    write_run(tmp_path, "CARFT", 0, lines)
    (group,) = collection.gather([tmp_path]).groups

    assert suites.points(suites.scores(group, [])) == [
        ("CARFT", a, 50.0, 50.0) for a in (None, 0.0)
    ]


def test_runs_count_on_sets_that_they_were_not_trained_on(tmp_path):
    suite = catalogue.get("EmojiUnseen")
    styles = ["fluent3d", "line", "noto", "twemoji"]
    draw = np.random.RandomState(0)
    accuracies = {}  # algorithm, target, trial, set -> percent
    for algorithm, target, trial in itertools.product(["CARFT", "CLIPZeroShot"], (1, 2), (0, 1)):
        job = write_job(
            tmp_path,
            f"{algorithm}-{target}-{trial}",
            dataset="EmojiStyles",
            algorithm=algorithm,
            trial_seed=trial,
            test_envs=[target],
            environments=styles,
        )
        values = {one.name: draw.uniform(0.2, 1) for one in suite.sets}
        sets = {
            name: {"n": 8, "right": 4, "accuracy": value, "ece": 0.1, "complete": True}
            for name, value in values.items()
        }
        record = {"suite": suite.name, "weights": "model_best.pkl", "step": 0}
        record |= {"wise_ft_alpha": None, "weights_digest": "0" * 64}
        record |= {"algorithm": algorithm, "sets": sets}
        records.append(job, {**record, **suite.means(values)})
        for name, value in values.items():
            if name == styles[target] or name not in styles:
                accuracies[algorithm, target, trial, name] = 100 * value

    document = collect(tmp_path)
    (grid,) = (grid for grid in document.grids if grid.title.startswith("Suite"))
    rows = {row[0]: dict(zip(grid.header, row)) for row in grid.rows}
    for name, shown_trials in (
        ("streamline", [["streamline"] * 2] * 2),
        ("line", [["line"]] * 2),
        ("Mean, seen", [["line", "noto"]] * 2),
    ):
        means = [
            np.mean(
                [
                    accuracies[key]
                    for key in accuracies
                    if key[0] == "CARFT" and key[2] == trial and key[3] in names
                ]
            )
            for trial, names in enumerate(shown_trials)
        ]
        assert rows["CARFT, best"][name] == shown(means)
    assert rows["CARFT, best"]["fluent3d"] == "-"


def test_the_report_has_the_suite_table_and_figure(sweep, tmp_path):
    folder, _ = sweep
    written = page.write_report([folder], tmp_path / "report")
    report = report_page.read(written.index.parent)
    table = report.tables["Suite imagenet, trained on ImageNet"]

    assert [row[0] for row in table[1:4]] == ["CARFT", "CARFT, alpha 0", "CARFT, alpha 0.5"]
    assert (3, "In distribution against the shifts") in report.headings

    (alt,) = (image["alt"] for image in report.all("img") if "WiSE-FT" in image["alt"])
    assert "for CARFT, CLIPZeroShot." in alt

    svg = (tmp_path / "report" / "figures" / "suite-imagenet.svg").read_text()
    assert "accuracy in distribution (%)" in svg and "mean accuracy of the shifts (%)" in svg
    assert "Suite imagenet, beside published figures" in report.tables
