"""The jobs of a sweep: identities equal to upstream's, folders, and jobs whose data has moved."""

import functools
import json
import operator
from pathlib import Path

import pytest
from fake_checkout import REPO
from sweep_folders import record

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import manifest
from domainbed_carft.jobs.job import Job, get_folder_name
from domainbed_carft.sweep import declaration_file

GOLDEN = json.loads((REPO / "tests" / "golden" / "upstream" / "jobs.json").read_text())


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN.keys())
def test_commands_of_jobs_equal_upstreams(case):
    upstream = case["keywords"]
    first = upstream["n_hparams_from"]
    keys = {name: upstream[name] for name in ("algorithms", "holdout_fraction", "steps")}
    keys |= {"name": "x", "datasets": upstream["dataset_names"], "trials": upstream["n_trials"]}
    keys |= {"hparams_seeds": {"from": first, "n": upstream["n_hparams"] - first}}
    keys |= {"selection": ["oracle" if upstream["single_test_envs"] else "leave-one-domain-out"]}
    text = json.dumps({name: value for name, value in keys.items() if value is not None})
    jobs = declaration_file.parse(text, "x.yaml").jobs(upstream["data_dir"], Path("out dir"))
    if upstream["hparams"]:  # the identity depends on the text of the JSON
        args = [{**job.args, "hparams": upstream["hparams"]} for job in jobs]
        jobs = [Job(arguments, Path("out dir") / get_folder_name(arguments)) for arguments in args]
    assert sorted(job.line for job in jobs) == sorted(case["commands"])


def parse(extra, datasets="[PACS]"):
    text = f"name: x\ndatasets: {datasets}\nalgorithms: [CARFT]\ntrials: 1\n{extra}"
    return declaration_file.parse(text, "x.yaml")


PAIRS = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("selection: [training-domain, oracle]", [[0], [1], [2], [3]]),
        ("selection: [leave-one-domain-out]", sorted([[0], [1], [2], [3], *PAIRS])),
        # A target's validation accuracy is measured in the pairs that contain it.
        (
            "test_environments: [A]\nselection: [leave-one-domain-out]",
            [[0], [0, 1], [0, 2], [0, 3]],
        ),
    ],
)
def test_jobs_hold_out_the_environments_that_selection_needs(extra, expected):
    assert [job.args["test_envs"] for job in parse(extra).jobs("D", Path("o"))] == expected


def test_folder_with_one_environment_trains_on_all_of_it(tmp_path):
    (tmp_path / "pets" / "photos" / "cat").mkdir(parents=True)
    declaration = parse("selection: [training-domain, leave-one-domain-out]", f"[{tmp_path}/pets/]")
    (job,) = declaration.jobs("D", Path("o"))
    assert job.args["test_envs"] == []
    assert job.args["dataset"] == f"{tmp_path}/pets"


def test_variants_have_a_folder_for_each_point_of_the_grid():
    text = "grid: {amp: [off, bf16]}\nvariants: {a: {}, b: {datasets: [PACS], hparams: {lr: 1}}}"
    jobs = parse(text, "[PACS, VLCS]").jobs("D", Path("o"))
    folders = {(str(job.folder.parent), job.args["dataset"]) for job in jobs}
    folders_of_a = {
        (f"o/a,amp={amp}", name) for amp in ("off", "bf16") for name in ("PACS", "VLCS")
    }
    assert folders == folders_of_a | {("o/b,amp=off", "PACS"), ("o/b,amp=bf16", "PACS")}
    assert len({job.folder.name for job in jobs[:8]}) == 8
    assert json.loads(jobs[-1].args["hparams"]) == {"amp": "bf16", "lr": 1}
    assert "b,amp=bf16 PACS CARFT, test environments 3, trial 0" in str(jobs[-1])


@pytest.mark.parametrize("spelling", ["/data/", "data", "/moved/elsewhere"])
@pytest.mark.parametrize("recorded_in", ["sweep.json", "results.jsonl"])
def test_jobs_keep_their_folders_after_the_data_has_moved(tmp_path, spelling, recorded_in):
    declaration = parse("steps: 5\nhparams: {lr: 1e-4}")
    before = declaration.jobs("/data", tmp_path)
    if recorded_in == "sweep.json":  # before the jobs have begun
        manifest.add(tmp_path, manifest.Sweep(tuple(before[:2])))
    else:  # hparams spelled as in a shell
        for job in before[:2]:
            record(job, 0, args={**job.args, "hparams": '{"lr":1e-4}'})
    _, known_jobs = manifest.read_jobs(tmp_path)
    after = manifest.reuse_folders(declaration.jobs(spelling, tmp_path), known_jobs)
    assert [job.folder for job in after[:2]] == [job.folder for job in before[:2]]
    assert all(job.args["data_dir"] == spelling for job in after)
    assert after[2].folder != before[2].folder and not after[2].folder.exists()
    assert f"--data_dir {spelling} " in after[0].line
    assert f"--output_dir {before[0].folder} " in after[0].line


@pytest.mark.parametrize(
    "change", [{"steps": 6}, {"hparams": '{"lr": 2e-4}'}, {"holdout_fraction": 0.1}, {"seed": 1}]
)
def test_job_gets_another_folder_if_an_argument_changes_its_results(tmp_path, change):
    declaration = parse("steps: 5\nhparams: {lr: 1e-4}")
    (job, *_) = declaration.jobs("/data", tmp_path)
    record(job, 0, args={**job.args, **change})
    _, known_jobs = manifest.read_jobs(tmp_path)
    (after, *_) = manifest.reuse_folders(declaration.jobs("/elsewhere", tmp_path), known_jobs)
    assert after.folder != job.folder


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        (["version"], 9, "version is 9, expected 1"),
        (["jobs"], {}, "jobs is {}, expected a list"),
        (["jobs", 1, "variant"], 7, "jobs.1.variant is 7, expected text"),
        (["jobs", 1, "folder"], "../x", "jobs.1.folder is '../x', expected the folder of a job"),
        (["jobs", 1, "args"], {}, "jobs.1.args: dataset is missing"),
        (["jobs", 1, "role"], [], "jobs.1.role is [], expected a mapping"),
        (["datasets", "PACS"], {}, "datasets.PACS.labels is missing"),
        (["search", "repeats"], 0.5, "search.repeats is 0.5, expected a whole number"),
        (
            ["search", "chosen", 0, "validation"],
            "x",
            "search.chosen.0.validation is 'x', expected a number",
        ),
    ],
)
def test_damaged_manifest_is_an_error_that_names_its_keys(tmp_path, keys, value, problem):
    chosen = manifest.ChosenValues("a", "PACS", "CARFT", None, {"lr": 0.1}, 2, 0.5)
    search = manifest.Search("oracle", "dataset", (5,), (0, 1), 2, False, (chosen,))
    facts = {"PACS": manifest.Dataset(("a", "b"), None, 11, 5)}
    sweep = manifest.Sweep(tuple(parse("").jobs("D", tmp_path)), facts, search=search)
    manifest.add(tmp_path, sweep)
    assert manifest.read(tmp_path) == sweep

    path = tmp_path / manifest.SWEEP_FILE
    content = json.loads(path.read_text())
    *parents, last = keys
    functools.reduce(operator.getitem, parents, content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CarftError) as raised:
        manifest.read(tmp_path)
    assert f"{path} is not a readable manifest ({problem}). Move the file away" in str(raised.value)


def test_manifest_sets_nothing_of_a_job_but_arguments_and_role(tmp_path):
    job = parse("").jobs("D", tmp_path)[0]
    manifest.add(tmp_path, manifest.Sweep((job,)))
    path = tmp_path / manifest.SWEEP_FILE
    content = json.loads(path.read_text())
    content["jobs"][0] |= {"row_name": "another", "variables": {"PYTHONPATH": "/tmp"}}
    path.write_text(json.dumps(content))
    assert manifest.read(tmp_path).jobs == (job,)
