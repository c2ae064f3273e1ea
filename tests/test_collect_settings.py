"""Runs under different settings are never averaged, and ``--by`` makes them rows."""

import json
import shutil
from pathlib import Path

import pytest
from collect_sweeps import write_job, write_sweep

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job import Job
from domainbed_carft.results import collection
from domainbed_carft.results.collect import collect
from domainbed_carft.results.rows import environment_labels


def collect_settings(folder, **options):
    return sorted({table.setting for table in collect(folder, **options).tables})


SETTINGS = [
    ({"steps": 101}, {}, ["steps 101", "steps default"]),
    ({"holdout_fraction": 0.1}, {}, ["holdout_fraction 0.1", "holdout_fraction 0.2"]),
    ({"task": "other"}, {}, ["task domain_generalization", "task other"]),
    ({"hparams": '{"k": 3, "b": 1}'}, {"hparams": '{"b": 1}'}, ["hparam k 3", "hparam k default"]),
    ({"recorded": {"protocol": "clip"}}, {}, ["protocol clip", "protocol not recorded"]),
    ({"hparams": '{"lr": 1}'}, {"hparams": '{"lr": 1.0}'}, [""]),
    ({"data_edition": "a"}, {"data_edition": "b"}, ["data edition a", "data edition b"]),
    (
        {"steps": 26, "recorded": {"total_steps": 5001}},
        {"steps": 26, "recorded": {"total_steps": 26}},
        ["steps of the schedule 5001", "steps of the schedule the job's"],
    ),
]


@pytest.mark.parametrize(("first", "second", "expected"), SETTINGS)
def test_runs_under_different_settings_have_separate_tables(tmp_path, first, second, expected):
    write_sweep(tmp_path / "one", ["CARFT"], **first)
    write_sweep(tmp_path / "other", ["CARFT"], **second)
    assert collect_settings(tmp_path) == expected


def test_different_versions_split_tables_unless_ignored(tmp_path):
    for trial in range(2):
        job = write_job(tmp_path, f"{trial}", trial_seed=trial)
        text = f"Environment:\n\tPyTorch: 2.{trial}\n\tTorchvision: 0.{trial}\n"
        (job / "out.txt").write_text(text)
    assert collect_settings(tmp_path) == [
        f"version of PyTorch 2.{trial}, version of Torchvision 0.{trial}" for trial in range(2)
    ]
    assert collect_settings(tmp_path, ignored=["versions"]) == [""]


def test_algorithms_with_one_setting_each_share_a_table_with_a_note(tmp_path):
    write_sweep(tmp_path / "a", ["CLIPZeroShot"], steps=1)
    write_sweep(tmp_path / "b", ["CARFT"], hparams='{"kl_weight": 3}')
    # FDAlign has the hparam kl_weight, and CaRot does not.
    write_sweep(tmp_path / "c", ["FDAlign", "CaRot"])
    assert collect_settings(tmp_path) == [""]
    steps, kl_weight = collect(tmp_path).notes
    assert steps.startswith("Not all runs have the same steps: 1: CLIPZeroShot on PACS; default: ")
    values = "3: CARFT on PACS; default: FDAlign on PACS"
    assert kl_weight == f"Not all runs have the same hparam kl_weight: {values}."


def test_job_run_twice_counts_once_or_fails(tmp_path):
    first = write_job(tmp_path, "a", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    gathered = collection.gather([tmp_path])
    assert len(gathered.runs) == 1
    (warning,) = gathered.warnings
    assert warning.kind == "passed over" and str(first) in warning.text

    write_job(tmp_path, "b", done=False)
    assert len(collection.gather([tmp_path]).runs) == 1
    (tmp_path / "b" / "done").touch()
    message = r"(?s)1 job was run twice .*\n- PACS ERM, test .*: .*/a, .*/b"
    with pytest.raises(CarftError, match=message):
        collection.gather([tmp_path])


@pytest.mark.parametrize(
    ("algorithm", "environments", "expected"),
    [
        ("CARFT", ["b", "c"], ["environments a, b", "environments b, c"]),
        ("ERM", ["b", "c"], ["environments a, b", "environments b, c"]),
        ("ERM", ["a", "b", "c"], ["environments a, b", "environments a, b, c"]),
        ("ERM", ["a", "b"], [""]),
    ],
)
def test_different_environments_have_separate_tables(tmp_path, algorithm, environments, expected):
    """The algorithms can differ, because a column has one name."""
    first = {"algorithm": "CARFT", "environments": ["a", "b"]}
    second = {"algorithm": algorithm, "environments": environments, "trial_seed": 1}
    for name, facts in (("a", first), ("b", second)):
        write_job(tmp_path, name, dataset="./mine", **facts)
    assert collect_settings(tmp_path) == expected
    for table in collect(tmp_path).tables:
        if table.setting and not table.averages:
            assert table.setting == f"environments {', '.join(table.labels)}"


def write_grid(folder, values, **options):
    """Write a variant of a sweep for each value of kl_weight; None is the default, 1."""
    for number, value in enumerate(values):
        hparams = None if value is None else json.dumps({"kl_weight": value})
        recorded = {"kl_weight": 1.0 if value is None else value}
        facts = {"hparams": hparams, "recorded": recorded, "seed": number, **options}
        write_sweep(folder / f"kl_weight={value}", ["CARFT"], choices=1, **facts)


def means_by_row(table):
    return {
        row: [cells[column].mean for column in table.accuracies]
        for row, cells in table.rows.items()
    }


def test_by_makes_values_of_a_hyperparameter_ordered_rows(tmp_path):
    write_grid(tmp_path, [10, None, 0.5])
    apart = collect(tmp_path, methods=["oracle"]).tables
    means = {table.setting: means_by_row(table)["CARFT"] for table in apart if not table.averages}
    joint = collect(tmp_path, methods=["oracle"], by=["kl_weight"])
    table, _ = joint.tables
    assert list(means_by_row(table).items()) == [
        ("CARFT (kl_weight 0.5)", means["hparam kl_weight 0.5"]),
        ("CARFT (kl_weight 1.0, the default)", means["hparam kl_weight default"]),
        ("CARFT (kl_weight 10)", means["hparam kl_weight 10"]),
    ]
    assert not joint.notes


def test_algorithm_of_host_on_resnet_and_on_clip_model_stays_apart(tmp_path):
    on_clip = {"clip_backbone": "ViT-B/16"}
    for number, (algorithm, given) in enumerate([("CORAL", {}), ("CORAL", on_clip), ("IRM", {})]):
        facts = {"hparams": json.dumps(given), "recorded": {"lr": 0.1, **given}, "seed": number}
        write_sweep(tmp_path / str(number), [algorithm], choices=1, **facts)

    apart = collect(tmp_path, methods=["oracle"])
    titles = [table.setting for table in apart.tables if not table.averages]
    assert titles == ['hparam clip_backbone "ViT-B/16"', "hparam clip_backbone default"]

    joint = collect(tmp_path, methods=["oracle"], by=["clip_backbone"])
    table, _ = joint.tables
    assert [*table.rows] == [
        "CORAL (clip_backbone ViT-B/16)",
        "CORAL (clip_backbone default)",
        "IRM",
    ]


def test_rows_on_resnet_and_on_clip_model_have_a_note(tmp_path):
    for number, (algorithm, given) in enumerate(
        [("CORAL", {"clip_backbone": "tiny"}), ("IRM", {})]
    ):
        facts = {"hparams": json.dumps(given), "recorded": {"lr": 0.1, **given}, "seed": number}
        write_sweep(tmp_path / str(number), [algorithm], choices=1, **facts)
    (note,) = collect(tmp_path, methods=["oracle"]).notes
    assert note == (
        'Not all runs have the same hparam clip_backbone: "tiny": CORAL on PACS; default: IRM on '
        "PACS."
    )


def test_by_keeps_tables_of_other_settings_separate(tmp_path):
    write_grid(tmp_path / "short", [1, 2], steps=1)
    write_grid(tmp_path / "long", [1, 2], steps=2)
    tables = collect(tmp_path, methods=["oracle"], by=["kl_weight"]).tables
    assert {table.setting: len(table.rows) for table in tables} == {"steps 1": 2, "steps 2": 2}
    table, _ = collect(tmp_path, methods=["oracle"], by=["kl_weight", "steps"]).tables
    assert len(table.rows) == 4 and "CARFT (kl_weight 1, steps 2)" in means_by_row(table)


@pytest.mark.parametrize(
    ("values", "message"),
    [([1, 2], "--by lr: .* one that varies: kl_weight, variant"), ([1], "omit --by")],
)
def test_by_fails_for_a_name_that_does_not_vary(tmp_path, values, message):
    write_grid(tmp_path, values)
    with pytest.raises(CarftError, match=message):
        collect(tmp_path, by=["lr"])


def test_labels_of_a_manifest_are_used_only_if_they_are_distinct():
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0]}
    planned = [Job(args | {"trial_seed": 0, "hparams_seed": 0}, Path("job"))]
    for labels, expected in (("abcd", "abcd"), ("aabc", "ACPS")):
        listed = {"PACS": tuple(labels)}
        assert environment_labels([], planned, listed) == {"PACS": tuple(expected)}
