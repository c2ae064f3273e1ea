"""What does not belong together is never averaged."""

import shutil

import collect_sweeps
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results import collection as collecting


def titles(folder, **options):
    return sorted({setting for setting, *_ in collect_sweeps.tables(folder, **options)})


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
def test_runs_under_several_settings_have_tables_of_their_own(tmp_path, first, second, expected):
    collect_sweeps.write_sweep(tmp_path / "one", ["CARFT"], **first)
    collect_sweeps.write_sweep(tmp_path / "other", ["CARFT"], **second)
    assert titles(tmp_path) == expected

    merged = collect_sweeps.tables(tmp_path)
    for folder in ("one", "other"):
        alone = collect_sweeps.tables(tmp_path / folder)["", "oracle", "PACS"]["rows"]
        assert alone in [merged[setting, "oracle", "PACS"]["rows"] for setting in expected]


def test_versions_that_differ_split_and_can_be_ignored(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT"], trials=2, choices=1)
    for job in tmp_path.iterdir():
        trial = job.name.split("-")[2]
        text = f"Environment:\n\tPyTorch: 2.{trial}\n\tTorchvision: 0.{trial}\n"
        (job / "out.txt").write_text(text)

    assert titles(tmp_path) == [
        f"version of PyTorch 2.{trial}, version of Torchvision 0.{trial}" for trial in range(2)
    ]
    assert titles(tmp_path, ignored=["versions"]) == [""]

    caption = collect_sweeps.collect(tmp_path, ignored=["versions"]).all_captions
    assert (
        "Not all runs have the same version of PyTorch: "
        "2.0: CARFT on PACS; 2.1: CARFT on PACS." in caption
    )


def test_algorithms_with_a_setting_each_share_a_table_that_says_so(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "a", ["CLIPZeroShot"], steps=1)
    collect_sweeps.write_sweep(tmp_path / "b", ["CARFT"], hparams='{"kl_weight": 3}')
    collect_sweeps.write_sweep(tmp_path / "c", ["CLIPFineTune"])

    assert titles(tmp_path) == [""]

    notes = collect_sweeps.collect(tmp_path).notes
    assert notes == [
        "Not all runs have the same steps: 1: CLIPZeroShot on PACS; "
        "default: CARFT on PACS, CLIPFineTune on PACS.",
    ]

    collect_sweeps.write_sweep(tmp_path / "d", ["FDAlign", "CaRot"])  # of the first, it is CARFT's
    assert collect_sweeps.collect(tmp_path).notes[1:] == [
        "Not all runs have the same hparam kl_weight: 3: CARFT on PACS; default: FDAlign on PACS.",
    ]


def test_a_job_run_twice_counts_once_or_is_refused(tmp_path):
    first = collect_sweeps.write_job(tmp_path, "a", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    collection = collecting.gather([tmp_path])

    assert len(collection.groups[0].runs) == 1
    assert [(warning.kind, warning.text) for warning in collection.warnings] == [
        ("passed over", f"same job as in {first}, which is used")
    ]

    collect_sweeps.write_job(tmp_path, "b", done=False)
    assert len(collecting.gather([tmp_path]).groups[0].runs) == 1

    (tmp_path / "b" / "done").touch()
    with pytest.raises(
        CarftError, match=r"(?s)1 job was run twice .*\n- PACS ERM, test .*: .*/a, .*/b"
    ):
        collecting.gather([tmp_path])


@pytest.mark.parametrize(
    ("algorithm", "environments", "expected"),
    [
        ("CARFT", ["b", "c"], ["environments a, b", "environments b, c"]),
        ("ERM", ["b", "c"], ["environments a, b", "environments b, c"]),
        ("ERM", ["a", "b", "c"], ["environments a, b", "environments a, b, c"]),
        ("ERM", ["a", "b"], [""]),
    ],
)
def test_other_environments_have_tables_of_their_own(tmp_path, algorithm, environments, expected):
    """Also those of another algorithm: a column has one name."""
    facts = {"dataset": "./mine"}
    collect_sweeps.write_job(tmp_path, "a", algorithm="CARFT", environments=["a", "b"], **facts)
    collect_sweeps.write_job(
        tmp_path, "b", algorithm=algorithm, trial_seed=1, environments=environments, **facts
    )

    assert titles(tmp_path) == expected

    for (setting, *_), table in collect_sweeps.tables(tmp_path).items():
        if table["dataset"] and setting:
            assert setting == f"environments {', '.join(table['columns'])}"
