"""Jobs have upstream's identities, and are found again when their data has moved."""

import json
import shlex
from pathlib import Path

import pytest
from domainbed.scripts import sweep as harness
from fake_checkout import REPO

from domainbed_carft.sweep import declaration, flags, jobs, output

GOLDEN = json.loads((REPO / "tests" / "golden" / "upstream" / "jobs.json").read_text())


def from_flags(keywords, data_dir, folder):
    names = ("n_trials", "algorithms", "n_hparams_from", "n_hparams", "steps", "task")
    given = {name: keywords[name] for name in names}
    given |= {name: keywords[name] for name in ("holdout_fraction", "hparams", "single_test_envs")}
    given["datasets"] = keywords["dataset_names"]
    made = flags.declared({name: value for name, value in given.items() if value is not None})
    return jobs.make(made, data_dir, Path(folder))


def split(command):
    return shlex.split(command)


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_commands_are_upstreams(case, monkeypatch):
    monkeypatch.setattr("domainbed_carft.sweep.checks._hparams", lambda data: [])  # upstream's own
    found = from_flags(case["keywords"], case["keywords"]["data_dir"], "out dir")
    assert sorted(job.command for job in found) == sorted(case["commands"])


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_jobs_and_their_order_are_the_harnesss(case, monkeypatch):
    monkeypatch.setattr("domainbed_carft.sweep.checks._hparams", lambda data: [])
    theirs = [harness.Job(args, "o") for args in harness.make_args_list(**case["keywords"])]
    ours = from_flags(case["keywords"], case["keywords"]["data_dir"], "o")
    assert [job.command for job in ours] == [job.command_str for job in theirs]


def parse(extra, datasets="[PACS]"):
    text = f"name: x\ndatasets: {datasets}\nalgorithms: [CARFT]\ntrials: 1\n{extra}"
    return declaration.parse(text, "x.yaml")


def choices(extra):
    return [job.train_args["test_envs"] for job in jobs.make(parse(extra), "D", Path("o"))]


def test_each_selection_method_gets_the_jobs_it_needs():
    singles = [[0], [1], [2], [3]]
    assert choices("selection: [training-domain]") == singles
    assert choices("selection: [oracle]") == singles
    pairs = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert choices("selection: [leave-one-domain-out]") == sorted(singles + pairs)
    # A target's validation accuracy is measured in the pairs that it is one of.
    some = "test_environments: [A]\nselection: [leave-one-domain-out]"
    assert choices(some) == [[0], [0, 1], [0, 2], [0, 3]]


def test_a_full_sweep_has_as_many_jobs_as_domainbeds():
    text = (
        "name: x\ndatasets: [VLCS, PACS, OfficeHome, TerraIncognita, DomainNet]\n"
        "algorithms: [CARFT]\nhparams_seeds: 20\n"
    )
    made = declaration.parse(text, "x")
    assert len(jobs.make(made, "D", Path("o"))) == 1320
    made = declaration.parse(text + "selection: [leave-one-domain-out, oracle]", "x")
    assert len(jobs.make(made, "D", Path("o"))) == 3660


def test_an_own_folder_with_one_domain_trains_on_all_of_it(tmp_path):
    (tmp_path / "pets" / "photos" / "cat").mkdir(parents=True)
    made = parse("selection: [training-domain, leave-one-domain-out]", f"[{tmp_path}/pets/]")
    (job,) = jobs.make(made, "D", Path("o"))
    assert job.train_args["test_envs"] == []
    assert job.train_args["dataset"] == f"{tmp_path}/pets"


def test_variants_have_folders_of_their_own():
    found = jobs.make(parse("grid: {kl_weight: [0, 1]}"), "D", Path("o"))
    assert {job.folder.parent for job in found} == {Path("o/kl_weight=0"), Path("o/kl_weight=1")}
    assert len({job.folder.name for job in found}) == 8
    assert json.loads(found[0].train_args["hparams"]) == {"kl_weight": 0}
    assert "kl_weight=0 PACS CARFT, test environments 0, trial 0" in str(found[0])


def test_given_hparams_are_canonical_and_none_are_no_argument():
    (first, *_) = jobs.make(parse("hparams: {lr: 1e-4, batch_size: 8}"), "D", Path("o"))
    assert first.train_args["hparams"] == '{"batch_size": 8, "lr": 0.0001}'
    (first, *_) = jobs.make(parse(""), "D", Path("o"))
    assert "hparams" not in first.train_args and "steps" not in first.train_args


def write_record(folder, job, **changes):
    """A record as train writes it: every flag is among the arguments."""
    args = {"steps": None, "hparams": None, "checkpoint_freq": None, "output_dir": "gone"}
    folder.mkdir(parents=True)
    record = {"step": 0, "hparams": {}, "args": {**args, **job.train_args, **changes}}
    (folder / "results.jsonl").write_text('{"cut\n' + json.dumps(record) + "\n")


@pytest.mark.parametrize("spelling", ["/data/", "data", "/moved/elsewhere"])
@pytest.mark.parametrize("told_by", ["job.json", "results.jsonl"])
def test_moved_data_does_not_orphan_a_job(tmp_path, spelling, told_by):
    made = parse("steps: 5\nhparams: {lr: 1e-4}")
    before = jobs.make(made, "/data", tmp_path)
    for job in before[:2]:
        if told_by == "job.json":
            output.describe(job, None)
        else:
            # Spelled as somebody at a shell would.
            write_record(job.folder, job, hparams='{"lr":1e-4}')
    after = output.settle(jobs.make(made, spelling, tmp_path), tmp_path)
    assert [job.folder for job in after[:2]] == [job.folder for job in before[:2]]
    assert all(job.train_args["data_dir"] == spelling for job in after)
    assert after[2].folder != before[2].folder and not after[2].folder.exists()
    assert f"--data_dir {spelling} " in after[0].command
    assert f"--output_dir {before[0].folder} " in after[0].command


@pytest.mark.parametrize(
    "change", [{"steps": 6}, {"hparams": '{"lr": 2e-4}'}, {"holdout_fraction": 0.1}, {"seed": 1}]
)
def test_what_changes_a_result_makes_another_job(tmp_path, change):
    made = parse("steps: 5\nhparams: {lr: 1e-4}")
    (job, *_) = jobs.make(made, "/data", tmp_path)
    write_record(job.folder, job, **change)
    (after, *_) = output.settle(jobs.make(made, "/elsewhere", tmp_path), tmp_path)
    assert after.folder != job.folder


def test_of_two_folders_of_one_job_the_finished_one_goes_on(tmp_path):
    made = parse("")
    first, second = (jobs.make(made, data_dir, tmp_path)[0] for data_dir in ("/a", "/b"))
    for job in (first, second):
        output.describe(job, None)
    for done in (first, second):
        (done.folder / "done").touch()
        (settled, *_) = output.settle(jobs.make(made, "/c", tmp_path), tmp_path)
        assert settled.folder == done.folder
        (done.folder / "done").unlink()


def test_jobs_are_looked_for_within_their_variant(tmp_path):
    made = parse("variants: {a: {}, b: {}}")
    before = jobs.make(made, "/a", tmp_path)
    output.describe(before[0], None)
    after = output.settle(jobs.make(made, "/b", tmp_path), tmp_path)
    assert after[0].folder == before[0].folder
    assert after[4].variant == "b" and after[4].folder.parent == tmp_path / "b"
