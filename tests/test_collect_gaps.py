"""Jobs that tables expect, with and without a manifest, and reasons for incomplete cells."""

import math
import shutil

import evaluated_sweeps
import numpy as np
import pytest
import report_page
from collect_sweeps import cells, change_records, launch, write_job, write_sweep
from sweep_folders import write_launched_sweep

from domainbed_carft import cli
from domainbed_carft.jobs import manifest, records
from domainbed_carft.results import collection
from domainbed_carft.results.cells import BEST as BEST_RANK
from domainbed_carft.results.collect import collect

BEST = {f"env{env}_{split}_acc": 1.0 for env in range(4) for split in ("in", "out")}
FACTS = {"environments": list("ACPS"), "task": "t"}  # as `launch` records them


def collect_strictly(*words):
    return cli.main(["collect", *map(str, words), "--strict"])


def test_cells_list_missing_jobs(tmp_path):
    write_sweep(tmp_path, trials=3, choices=4, pairs=True)
    names = ["0-1-0", "0-1-1", "0-1-3", "0-2-2", "0-2-2-1", *(f"1-2-{n}" for n in range(4))]
    for name in names:
        shutil.rmtree(tmp_path / f"ERM-{name}")
    for method, row, column, missing in (
        ("oracle", "ERM", "A", "0: trial 1 hparams_seed 0, 1, 3; trial 2 hparams_seed 2"),
        ("training-domain", "ERM", "C", "1: trial 2"),
        ("leave-one-domain-out", "ERM", "P", "0 2: trial 2 hparams_seed 1"),
    ):
        expected = f"no job --test_envs {missing}"
        assert cells(tmp_path, method).loc[("", row, column), "missing"] == expected

    rows = cells(tmp_path, "oracle").loc[""]
    assert (rows.loc[("ERM", "P"), "missing"], rows.loc[("ERM", "C"), "n"]) == ("", 2)
    assert rows.loc[("ERM", "average"), "missing"] == "incomplete in PACS: A, C"
    assert rows.loc[("Mixup", "average"), "missing"] == ""


@pytest.mark.parametrize("is_declared", [True, False])
def test_incomplete_cells_are_marked_and_have_no_rank(is_declared, tmp_path):
    """CARFT is best everywhere, but its job on C is missing, or not declared."""

    def is_run(args):
        return (args["algorithm"], args["test_envs"], args["trial_seed"]) != ("CARFT", [1], 1)

    launch(tmp_path, ["ERM", "Mixup"])
    launch(tmp_path, ["CARFT"], targets=range(4) if is_declared else (0, 2, 3), run=is_run)
    for path in tmp_path.glob("*/results.jsonl"):
        if '"CARFT"' in path.read_text():
            change_records(path.parent, lambda record: record | BEST)

    names = ["environments", "average", "out-of-domain", "worst", "in-domain", "draws"]
    table, averages = collect(tmp_path, select=["training-domain"], columns=names).tables
    is_incomplete = [False, True, False, False, True, True, True, True, is_declared]
    marks = ("[1]", "[2]") if is_declared else ("*", "-")
    first, *others = (row[1:] for row in table.grid().rows)
    assert [text.endswith(marks) for text in first] == is_incomplete
    assert not any("[" in text or "*" in text for row in others for text in row)
    is_best = [table.get_ranks(column)["CARFT"] == BEST_RANK for column in table.printed]
    assert is_best == [*(not incomplete for incomplete in is_incomplete[:-1]), False]
    assert all(averages.get_ranks(column)["CARFT"] == 0 for column in averages.printed)
    incomplete_rows = ["CARFT"] if is_declared else []
    assert table.incomplete_rows() == averages.incomplete_rows() == incomplete_rows
    assert [*incomplete_rows, *table.partial_rows()] == ["CARFT"]


def test_cells_list_incomplete_runs(tmp_path):
    write_job(tmp_path, "a", at=(0, 100), test_envs=[0])
    write_job(tmp_path, "b", at=(0, 200), test_envs=[1])
    write_job(tmp_path, "c", done=False, test_envs=[2])
    write_job(tmp_path, "d", test_envs=[3])
    for column, missing in (
        ("A", "--test_envs 0 stopped at step 100 of 200: in every trial"),
        ("C", "--test_envs 1 has 2 of 3 checkpoints: in every trial"),
        ("P", "--test_envs 2 is not finished (no file 'done'): in every trial"),
        ("S", ""),
    ):
        assert cells(tmp_path, "oracle").loc[("", "ERM", column), "missing"] == missing

    write_job(tmp_path / "other", steps=301)
    missing = cells(tmp_path / "other", "oracle").loc[("", "ERM", "A"), "missing"]
    assert missing == "--test_envs 0 stopped at step 200 of 300: in every trial"


@pytest.mark.parametrize("method", ["oracle", "training-domain", "in-domain"])
def test_nan_accuracy_is_never_selected(tmp_path, method):
    targets = [] if method == "in-domain" else [0]
    for choice in range(2):
        write_job(tmp_path, f"{choice}", test_envs=targets, hparams_seed=choice)
    nan = {"env0_out_acc": float("nan"), "env1_out_acc": float("nan"), "env0_in_acc": 0.01}
    change_records(tmp_path / "1", lambda record: {**record, **nan})
    cell = cells(tmp_path, method).loc[("", "ERM", "A")]
    assert cell["mean"] > 20 and cell["n"] == 1
    reason = " has accuracies that are not numbers in [0, 1]: trial 0 hparams_seed 1"
    assert cell["missing"].endswith(reason)


@pytest.mark.parametrize("mark", [{"diverged_at": 42}, {"loss": float("nan")}, {"loss": -1e999}])
def test_records_of_diverged_training_do_not_count(tmp_path, capsys, mark):
    """Another checkout's train records no mark, but a loss that is not finite."""
    write_sweep(tmp_path, ["ERM"], trials=1, choices=1)
    job = tmp_path / "ERM-0-0-0"
    change_records(job, lambda record: record | (BEST | mark if record["step"] else {"loss": 1.5}))
    means = {}
    for method in ("training-domain", "oracle"):
        cell = cells(tmp_path, method).loc[("", "ERM", "A")]
        means[method] = cell["mean"]
        assert cell["missing"].startswith("--test_envs 0 diverged, so it has no accuracies from ")

    shutil.copytree(job, tmp_path / "copy")  # counts once, although nan is not equal to nan
    assert collect_strictly(tmp_path) == 3
    warning = f"diverged: {job}: the training diverged; 2 records from step 100 on without"
    assert warning in capsys.readouterr().err
    shutil.rmtree(tmp_path / "copy")

    # The record of step 0 counts for training-domain validation, but not for the oracle.
    path = job / "results.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    for method in means:
        cell = cells(tmp_path, method).loc[("", "ERM", "A")]
        assert cell["mean"] == pytest.approx(means[method], abs=0, nan_ok=True)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("step", "first"), [(0, 0), (1, 0), (2, 100), (100, 100), (101, 100), (102, 200)]
)
def test_records_from_the_diverging_update_on_do_not_count(tmp_path, step, first):
    """The first loss that is not finite belongs to the step after this update."""
    job = write_job(tmp_path)
    change_records(job, lambda r: {**r, **({"diverged_at": step} if r["step"] >= step else {})})
    (run,) = records.read([tmp_path]).runs
    is_nan = np.isnan(np.array(run.accuracies)).reshape(3, 8)
    assert [row.tolist() for row in is_nan] == [[at >= first] * 8 for at in (0, 100, 200)]
    assert run.diverged_at == first


def test_sweep_over_one_target_is_complete(tmp_path, capsys):
    launch(tmp_path, ["CARFT", "ERM"], targets=[3], compare_with=("CLIPood", "MIRO"))
    assert collect_strictly(tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == "12 records of 4 jobs.\n"
    with pytest.MonkeyPatch.context() as patch:
        report_page.skip_drawing(patch)
        assert report_page.report(tmp_path, tmp_path.parent / "report") == 0
    assert "incomplete" not in capsys.readouterr().err
    page = report_page.read(tmp_path.parent / "report").text
    assert "All cells of the tables are complete" in page and "(incomplete" not in page
    assert "Average over environments (not over all environments: CARFT, ERM)" in page
    assert "*: no job was declared for A, C, P on PACS: CARFT, ERM." in out

    results = collect(tmp_path, select=["oracle"], compare_published=True)
    table = results.tables[0]
    assert (
        table.get_column("average")["CARFT"].mean == table.rows["CARFT"][table.accuracies[3]].mean
    )
    published = results.as_dict()["published"]
    (comparison,) = published["comparisons"]
    assert not comparison["complete"] and "our average is incomplete" in comparison["reason"]
    assert {row["method"] for row in published["figures"]} == {"CLIPood", "MIRO"}


@pytest.mark.parametrize(
    ("columns", "n_cells"),
    [
        ("environments,average", 8),
        ("environments,average,worst,out-of-domain,in-domain,draws", 8),
        ("ece", 10),  # the accuracies and two cells of ECE
    ],
)
def test_missing_job_is_counted_once(tmp_path, capsys, columns, n_cells):
    """The averages and metrics of the row are marked as well, but lack no other result."""

    def is_run(args):
        return (args["algorithm"], args["test_envs"], args["trial_seed"]) != ("ERM", [2], 1)

    launch(tmp_path, ["CARFT", "ERM"], run=is_run)
    evaluated_sweeps.write_figures(tmp_path)
    assert collect_strictly(tmp_path, "--select", "oracle", "--columns", columns) == 3
    *_, summary, failure = capsys.readouterr().err.splitlines()
    assert summary == f"45 records of 15 jobs; incomplete: 1 of {n_cells} cells (see notes)."
    assert failure == "carft: --strict: incomplete cells (1)"


@pytest.mark.parametrize("n_missing", [0, 1])
def test_missing_evaluation_counts_if_a_printed_column_needs_it(
    tmp_path, capsys, monkeypatch, n_missing
):
    """A run of ERM was not evaluated; the report and --strict call the same cells incomplete."""
    report_page.skip_drawing(monkeypatch)
    sweep = tmp_path / "sweep"
    launch(sweep, ["CARFT", "ERM"])
    evaluated_sweeps.write_figures(sweep)
    paths = [path for path in sweep.glob("*/results.jsonl") if '"ERM"' in path.read_text()]
    for path in paths[:n_missing]:
        for evaluation in path.parent.glob("evaluation_*"):
            evaluation.unlink()

    words = ("--select", "oracle", "--columns", "environments,ece,brier")
    assert collect_strictly(sweep, "--select", "oracle") == 0
    assert collect_strictly(sweep, *words) == 3 * n_missing
    error = capsys.readouterr().err
    assert ("incomplete: 2 of 12 cells (see notes)" in error) == bool(n_missing)
    text = report_page.report_and_read(sweep, *words).text
    assert ("Some cells are incomplete" in text) == bool(n_missing)
    assert ("All cells of the tables are complete" in text) != bool(n_missing)


def test_gpu_memory_is_not_missing_on_a_cpu(tmp_path, capsys):
    launch(tmp_path, ["ERM"])
    for path in tmp_path.glob("*/results.jsonl"):
        change_records(path.parent, lambda record: record | {"mem_gb": 0.0, "device": "a CPU"})
    words = ("--columns", "environments,memory", "--select", "oracle")
    assert collect_strictly(tmp_path, *words) == 0
    assert "GiB" not in capsys.readouterr().out

    # Without the key, records do not say that the device has no such memory.
    change_records(path.parent, lambda record: {k: record[k] for k in record if k != "mem_gb"})
    assert collect_strictly(tmp_path, *words) == 0
    assert "the records have no memory of a GPU (mem_gb)." in capsys.readouterr().out


def test_jobs_outside_the_manifest_have_cells(tmp_path):
    launch(tmp_path, targets=[3])
    write_job(tmp_path, "more", test_envs=[0], trial_seed=5, **FACTS)
    write_job(tmp_path, "cut", test_envs=[1], at=(0, 100), **FACTS)
    rows = cells(tmp_path, "oracle").loc[[("", "ERM", name) for name in "ACPS"]]
    assert rows["n"].tolist() == [1, 1, 0, 2]
    assert (rows["missing"] != "").tolist() == [False, True, False, False]


@pytest.mark.parametrize("by", [[], ["kl_weight"]])
@pytest.mark.parametrize(("n_run", "trials"), [(0, "in every trial"), (1, "trial 1")])
def test_missing_jobs_are_listed_in_the_table_or_row_of_their_setting(tmp_path, n_run, trials, by):
    launch(
        tmp_path,
        ["CARFT"],
        hparams=('{"kl_weight": 1}', '{"kl_weight": 3}'),
        run=lambda args: "1" in args["hparams"] or args["trial_seed"] < n_run,
    )
    missing = cells(tmp_path, "oracle", by=by)["missing"]
    places = [(f"hparam kl_weight {value}", "CARFT", "A") for value in (1, 3)]
    if by:
        places = [("", f"CARFT (kl_weight {value})", "A") for value in (1, 3)]
    assert missing[places].tolist() == ["", f"--test_envs 0 has no record: {trials}"]


def test_missing_jobs_do_not_include_jobs_of_other_sweeps_and_pilots(tmp_path):
    launch(tmp_path / "a", ["ERM"])
    launch(tmp_path / "b", ["Mixup"], datasets=["VLCS"])
    for target in range(4):
        write_job(tmp_path / "a", f"{target}", test_envs=[target], steps=201, **FACTS)
    assert collect_strictly(tmp_path / "a", tmp_path / "b") == 0

    for name in "ab":
        (tmp_path / name / "sweep.json").unlink()
    assert collect_strictly(tmp_path / "a", tmp_path / "b") == 3


@pytest.mark.parametrize(("unrun", "status"), [(None, 0), ([0, 3], 3)])
def test_leave_one_domain_out_needs_pairs_of_declared_targets(tmp_path, capsys, unrun, status):
    launch(
        tmp_path,
        targets=[3, [0, 3], [1, 3], [2, 3]],
        selection=("leave-one-domain-out",),
        run=lambda args: args["test_envs"] != unrun,
    )
    assert collect_strictly(tmp_path) == status
    reason = "--test_envs 0 3 has no record: in every trial"
    assert (reason in capsys.readouterr().out) == bool(status)


def test_selection_rules_come_from_the_manifest(tmp_path):
    for name, methods in (("one", ("oracle",)), ("none", ())):
        launch(tmp_path / name, [name], selection=methods)
    assert collection.gather([tmp_path / "one"]).rules == ["oracle"]
    assert collection.gather(tmp_path).rules == ["training-domain", "oracle"]


MANIFEST = '{"version": 1, "datasets": {}, "selection": [], "compare_with": [], "jobs": [%s]}'
JOB = '{"folder": %s, "variant": "", "args": {"dataset": "PACS", "algorithm": "ERM", %s}}'
NUMBERS = '"test_envs": [0], "trial_seed": 0, "hparams_seed": '


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '{"version": 9}',
        MANIFEST % (JOB % ("7", NUMBERS + "0")),
        MANIFEST % (JOB % (f'"{"a" * 32}"', NUMBERS + '"x"')),
        MANIFEST.replace("{}", '{"PACS": {"labels": [], "images": null, "steps": Infinity}}') % "",
    ],
)
def test_unreadable_manifest_is_reported_once(tmp_path, capsys, text):
    launch(tmp_path, run=lambda args: args["trial_seed"] == 0)
    (tmp_path / manifest.SWEEP_FILE).write_text(text)
    assert collect_strictly(tmp_path) == 3
    error = capsys.readouterr().err
    assert error.count("unreadable: ") == 1
    assert error.splitlines()[-1] == "carft: --strict: unreadable (1)"


def test_later_declaration_adds_its_algorithms_in_its_order(tmp_path):
    variants = "\nvariants: {a: {algorithms: [CARFT]}, b: {algorithms: [CLIPood]}}"
    for algorithms in (f"[CLIPood, CARFT]{variants}", "[CLIPood, ERM, CARFT]", "[CLIPMIRO]"):
        keys = "name: x\ndatasets: [PACS]\ntrials: 1\nsteps: 11\n"
        write_launched_sweep(tmp_path, f"{keys}algorithms: {algorithms}\n")
    assert manifest.read(tmp_path).algorithms == ("CLIPMIRO", "CLIPood", "ERM", "CARFT")


def test_nan_on_an_in_split_is_a_gap_for_the_target_only(tmp_path):
    """Selection and tables read no other in-splits."""
    for target, broken_env in ((0, 0), (1, 0)):
        job = write_job(tmp_path, f"{target}", test_envs=[target])
        nan = {f"env{broken_env}_in_acc": math.nan}
        change_records(job, lambda record, new=nan: record | new if record["step"] == 0 else record)
    missing = cells(tmp_path, "oracle").loc[("", "ERM")]["missing"]
    reason = "--test_envs 0 has accuracies that are not numbers in [0, 1]: in every trial"
    assert (missing["A"], missing["C"]) == (reason, "")
