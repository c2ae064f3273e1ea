"""What does not belong together is never averaged."""

import shutil

import collect_sweeps
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results import collection


def settings(folder, **options):
    """The settings of the tables."""
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
    assert settings(tmp_path) == expected

    together = collect_sweeps.tables(tmp_path)
    for folder in ("one", "other"):
        alone = collect_sweeps.tables(tmp_path / folder)["", "oracle", "PACS"]["rows"]
        assert alone in [together[setting, "oracle", "PACS"]["rows"] for setting in expected]


def test_versions_that_differ_split_and_can_be_ignored(tmp_path):
    for trial in range(2):
        job = collect_sweeps.write_job(tmp_path, f"{trial}", trial_seed=trial)
        text = f"Environment:\n\tPyTorch: 2.{trial}\n\tTorchvision: 0.{trial}\n"
        (job / "out.txt").write_text(text)
    assert settings(tmp_path) == [
        f"version of PyTorch 2.{trial}, version of Torchvision 0.{trial}" for trial in range(2)
    ]
    assert settings(tmp_path, ignored=["versions"]) == [""]
    (note, _) = collect_sweeps.collect(tmp_path, ignored=["versions"]).notes
    values = "2.0: ERM on PACS; 2.1: ERM on PACS"
    assert note == f"Not all runs have the same version of PyTorch: {values}."


def test_algorithms_with_a_setting_each_share_a_table_with_a_note(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "a", ["CLIPZeroShot"], steps=1)
    collect_sweeps.write_sweep(tmp_path / "b", ["CARFT"], hparams='{"kl_weight": 3}')
    # kl_weight is an hparam of FDAlign, but not of CaRot.
    collect_sweeps.write_sweep(tmp_path / "c", ["FDAlign", "CaRot"])
    assert settings(tmp_path) == [""]
    steps, kl_weight = collect_sweeps.collect(tmp_path).notes
    assert steps.startswith("Not all runs have the same steps: 1: CLIPZeroShot on PACS; default: ")
    values = "3: CARFT on PACS; default: FDAlign on PACS"
    assert kl_weight == f"Not all runs have the same hparam kl_weight: {values}."


def test_a_job_run_twice_counts_once_or_is_refused(tmp_path):
    first = collect_sweeps.write_job(tmp_path, "a", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    gathered = collection.gather([tmp_path])
    assert len(gathered.runs) == 1
    assert [(warning.kind, warning.text) for warning in gathered.warnings] == [
        ("passed over", f"same job as in {first}, which is used")
    ]

    collect_sweeps.write_job(tmp_path, "b", done=False)
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
def test_other_environments_have_tables_of_their_own(tmp_path, algorithm, environments, expected):
    """Also those of another algorithm: a column has one name."""
    first = {"algorithm": "CARFT", "environments": ["a", "b"]}
    second = {"algorithm": algorithm, "environments": environments, "trial_seed": 1}
    for name, facts in (("a", first), ("b", second)):
        collect_sweeps.write_job(tmp_path, name, dataset="./mine", **facts)
    assert settings(tmp_path) == expected
    for (setting, *_), table in collect_sweeps.tables(tmp_path).items():
        if table["dataset"] and setting:
            assert setting == f"environments {', '.join(table['columns'])}"
