"""Runs under different settings are never averaged, and ``--by`` makes them rows."""

import itertools
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from collect_sweeps import change_records, launch, write_job, write_sweep

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.jobs.job import Job, Role
from domainbed_carft.results import collection
from domainbed_carft.results.collect import collect
from domainbed_carft.results.labels import environment_labels
from domainbed_carft.results.recorded_defaults import add_recorded_defaults


def collect_settings(folder, **options):
    return sorted({table.setting for table in collect(folder, **options).tables})


SETTINGS = [
    ({"steps": 101}, {}, ["steps 101", "steps default"]),
    ({"holdout_fraction": 0.1}, {}, ["holdout_fraction 0.1", "holdout_fraction 0.2"]),
    ({"task": "other"}, {}, ["task domain_generalization", "task other"]),
    (
        {"hparams": '{"k": 3, "b": 1}'},
        {"hparams": '{"b": 1}', "recorded": {"k": 2}},
        ["hparam k 3", "hparam k default"],
    ),
    (
        {"hparams": '{"k": 3, "b": 1}'},
        {"hparams": '{"b": 1}'},
        ["hparam k 3", "hparam k not recorded"],
    ),
    # Versions with other defaults
    (
        {"recorded": {"weight_decay": 0.1}},
        {"recorded": {"weight_decay": 0.5}},
        ["hparam weight_decay default 0.1", "hparam weight_decay default 0.5"],
    ),
    ({"recorded": {"k": 1}}, {}, ["hparam k default 1", "hparam k not recorded"]),
    ({"recorded": {"k": 1}}, {"recorded": {"k": 1.0}}, [""]),
    (
        {"recorded": {"amp": "bf16"}},
        {"recorded": {"amp": "off"}},
        ['hparam amp default "bf16"', 'hparam amp default "off"'],
    ),
    # Facts of a job, which a resumed job can find again on another machine
    ({"recorded": {"clip_digest": "a"}}, {"recorded": {"clip_digest": "b"}}, [""]),
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


def test_other_defaults_of_a_later_trial_are_not_averaged(tmp_path):
    """Also with --ignore versions; prompts can depend on the target."""
    for trial, weight_decay in enumerate([0.1, 0.1, 0.5]):
        for target in range(4):
            recorded = {"weight_decay": weight_decay, "prompts_digest": f"{target}"}
            place = {"test_envs": [target], "trial_seed": trial}
            job = write_job(tmp_path, f"{target}-{trial}", recorded=recorded, **place)
            (job / "out.txt").write_text(f"Environment:\n\tPyTorch: 2.{trial}\n")
    names = ["hparam weight_decay default 0.1", "hparam weight_decay default 0.5"]
    assert collect_settings(tmp_path, ignored=["versions"]) == names
    assert collect_settings(tmp_path, ignored=["versions", "hparams"]) == [""]


def write_search(folder, weight_decays=(0.1,), **facts):
    """Write five draws of lr and batch_size for each of two trials, one of which is the default.

    The draws of a trial have one of the ``weight_decays``, which are not drawn.
    """
    for trial, draw, target in itertools.product(range(2), range(5), range(4)):
        values = random.Random(f"{draw} {trial}" if draw else "default")
        recorded = {"lr": values.uniform(0, 1), "batch_size": values.randint(8, 45)}
        recorded["weight_decay"] = weight_decays[trial % len(weight_decays)]
        place = {"test_envs": [target], "trial_seed": trial, "hparams_seed": draw}
        name = f"{facts.get('dataset', '')}-{draw}-{target}-{trial}"
        write_job(folder, name, recorded=recorded, **place, **facts)


def test_draws_of_a_search_stay_in_one_row(tmp_path):
    write_search(tmp_path)
    assert collect_settings(tmp_path) == [""]


def test_other_defaults_in_a_search_are_separate_with_all_draws(tmp_path):
    write_search(tmp_path, weight_decays=(0.1, 0.5))
    groups = collection.gather([tmp_path]).groups
    assert [(group.title, len(group.runs)) for group in groups] == [
        ("hparam weight_decay default 0.1", 20),
        ("hparam weight_decay default 0.5", 20),
    ]


def test_other_default_of_a_drawn_value_separates_the_default_from_the_draws(tmp_path):
    write_search(tmp_path)
    for job in tmp_path.glob("-0-*-1"):
        change_records(job, lambda record: record | {"hparams": record["hparams"] | {"lr": 2}})
    groups = collection.gather([tmp_path]).groups
    lr = random.Random("default").uniform(0, 1)
    assert [(group.title, len(group.runs)) for group in groups] == [
        (f"hparam lr default {lr}", 4),
        ("hparam lr default 2", 4),
        ("hparam lr drawn", 32),
    ]


def test_defaults_of_a_dataset_stay_in_one_table(tmp_path):
    """Its class names, steps and learning rate, and the learning rate of another CLIP model."""
    for dataset, lr in (("PACS", 5e-6), ("VLCS", 5e-6), ("OfficeHome", 1e-5)):
        recorded = {"clip_backbone": "ViT-B/16", "lr": lr, "class_names": f"dataset:{dataset}"}
        write_sweep(tmp_path / dataset, ["CARFT"], choices=1, dataset=dataset, recorded=recorded)
    assert collect_settings(tmp_path) == [""]

    recorded |= {"clip_backbone": "tiny", "lr": 3e-4}
    hparams = {"hparams": '{"clip_backbone": "tiny"}', "recorded": recorded}
    write_sweep(tmp_path / "tiny", ["CARFT"], choices=1, dataset="OfficeHome", **hparams)
    names = ['hparam clip_backbone "tiny"', "hparam clip_backbone default"]
    assert collect_settings(tmp_path) == names


def test_planned_jobs_belong_to_the_runs_with_any_recorded_default(tmp_path):
    """A job that has not run is missing next to both defaults, not next to a value that was set."""
    launch(tmp_path, run=lambda args: args["trial_seed"] == 0, hparams=("", '{"k": 3}'))
    for path in tmp_path.glob("*/results.jsonl"):
        args = json.loads(path.read_text().splitlines()[0])["args"]
        recorded = {"k": 3 if args["hparams"] else 1 + args["test_envs"][0] % 2}
        change_records(path.parent, lambda record, r=recorded: record | {"hparams": r})
    groups = collection.gather([tmp_path]).groups
    assert [(group.title, len(group.runs), len(group.planned)) for group in groups] == [
        ("hparam k 3", 4, 8),
        ("hparam k default 1", 2, 8),
        ("hparam k default 2", 2, 8),
    ]


def test_planned_jobs_with_a_value_that_no_run_has_are_a_group_of_their_own(tmp_path):
    launch(tmp_path, run=lambda args: "hparams" not in args, hparams=("", '{"k": 3}'))
    groups = collection.gather([tmp_path]).groups
    assert [(group.title, len(group.runs), len(group.planned)) for group in groups] == [
        ("hparam k 3", 0, 8),
        ("hparam k default", 8, 8),
    ]


def test_by_names_recorded_defaults(tmp_path):
    write_sweep(tmp_path / "a", ["CARFT"], choices=1, recorded={"k": 1})
    write_sweep(tmp_path / "b", ["CARFT"], choices=1, recorded={"k": 2})
    write_sweep(tmp_path / "c", ["CARFT"], choices=1, recorded={"k": 1}, hparams='{"k": 1}')
    table, _ = collect(tmp_path, methods=["oracle"], by=["k"]).tables
    assert [*table.rows] == ["CARFT (k 1, a default)", "CARFT (k 1)", "CARFT (k 2, a default)"]


def test_by_gives_planned_jobs_the_row_of_the_recorded_default(tmp_path):
    """Trial 1 has not run; its records would have k, or not, like those of trial 0."""
    launch(tmp_path, run=lambda args: args["trial_seed"] == 0, hparams=("", '{"k": 3}'))
    (group,) = collection.gather([tmp_path], by=["k"]).groups
    rows = {(job.row, job.key.trial) for job in group.planned}
    names = ("ERM (k 3)", "ERM (k not recorded)")
    assert rows == {*itertools.product(names, range(2))}
    assert {run.row for run in group.runs} == {*names}


def test_different_versions_split_tables_unless_ignored(tmp_path):
    for trial in range(2):
        job = write_job(tmp_path, f"{trial}", trial_seed=trial)
        text = f"Environment:\n\tPyTorch: 2.{trial}\n\tTorchvision: 0.{trial}\n"
        (job / "out.txt").write_text(text)
    assert collect_settings(tmp_path) == [
        f"version of PyTorch 2.{trial}, version of Torchvision 0.{trial}" for trial in range(2)
    ]
    assert collect_settings(tmp_path, ignored=["versions"]) == [""]


@pytest.mark.parametrize(
    ("recorded", "expected"), [({"kl_weight": 1}, "default"), ({}, "not recorded")]
)
def test_algorithms_with_one_setting_each_share_a_table_with_a_note(tmp_path, recorded, expected):
    write_sweep(tmp_path / "a", ["CLIPZeroShot"], steps=1)  # never counts as a difference
    write_sweep(tmp_path / "b", ["CARFT"], hparams='{"kl_weight": 3}', steps=2)
    # FDAlign has the hparam kl_weight, and CaRot does not.
    write_sweep(tmp_path / "c", ["FDAlign", "CaRot"], recorded=recorded)
    assert collect_settings(tmp_path) == [""]
    steps, kl_weight = collect(tmp_path).notes
    assert steps == "Runs differ in steps: 2 for CARFT; default for CaRot, FDAlign."
    assert kl_weight == f"Runs differ in hparam kl_weight: 3 for CARFT; {expected} for FDAlign."


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
    names = ['"ViT-B/16"', "default", "not recorded"]  # of CORAL, IRM, CORAL on a ResNet
    assert titles == [f"hparam clip_backbone {name}" for name in names]

    joint = collect(tmp_path, methods=["oracle"], by=["clip_backbone"])
    table, _ = joint.tables
    assert [*table.rows] == [
        "CORAL (clip_backbone ViT-B/16)",
        "CORAL (clip_backbone not recorded)",
        "IRM",
    ]


def test_rows_on_resnet_and_on_clip_model_have_a_note(tmp_path):
    for number, (algorithm, given) in enumerate(
        [("CORAL", {"clip_backbone": "tiny"}), ("IRM", {})]
    ):
        facts = {"hparams": json.dumps(given), "recorded": {"lr": 0.1, **given}, "seed": number}
        write_sweep(tmp_path / str(number), [algorithm], choices=1, **facts)
    (note,) = collect(tmp_path, methods=["oracle"]).notes
    assert note == ('Runs differ in hparam clip_backbone: "tiny" for CORAL; not recorded for IRM.')


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


def test_total_steps_of_jobs_with_and_without_steps_are_no_different_defaults(tmp_path):
    """With --steps, total_steps follows the command line."""
    write_sweep(tmp_path / "a", ["CARFT"], recorded={"total_steps": 5001})
    write_sweep(tmp_path / "b", ["CARFT"], steps=26, recorded={"total_steps": 26})
    assert collect_settings(tmp_path) == ["steps 26", "steps default"]


@pytest.mark.parametrize(
    ("searched", "expected"),
    [("clip_backbone", set()), ("kl_weight", {"default 0.1", "default 0.2"})],
)
def test_other_defaults_follow_a_searched_clip_model_but_no_other_searched_value(
    tmp_path, searched, expected
):
    runs = []
    for lr, value in ((0.1, "a"), (0.2, "b")):
        hparams = {searched: value}
        write_job(tmp_path, value, hparams=json.dumps(hparams), recorded={"lr": lr, **hparams})
        (run,) = records.read([tmp_path / value]).runs
        runs.append(replace(run, job=replace(run.job, role=Role(values=hparams))))
    settings = [run.setting for run in add_recorded_defaults(runs)]
    assert {setting["hparam lr"] for setting in settings if "hparam lr" in setting} == expected


def test_value_that_differs_within_a_draw_is_a_default_in_other_draws(tmp_path):
    """No job has the default hyperparameters; targets 2 and 3 of trial 0 have another default."""
    for trial, target in itertools.product(range(2), range(4)):
        weight_decay = 0.5 if trial == 0 and target > 1 else 0.1
        place = {"test_envs": [target], "trial_seed": trial, "hparams_seed": 1}
        recorded = {"weight_decay": weight_decay}
        write_job(tmp_path, f"{trial}-{target}", recorded=recorded, **place)
    groups = collection.gather([tmp_path]).groups
    assert [(group.title, len(group.runs)) for group in groups] == [
        ("hparam weight_decay default 0.1", 6),
        ("hparam weight_decay default 0.5", 2),
    ]
