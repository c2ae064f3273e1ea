"""``carft report`` of sweeps of other shapes, of odd names and folders, and what it refuses."""

import html
import json
import os
import re
import shutil
import subprocess
from xml.etree import ElementTree

import collect_sweeps
import pytest
import report_page
from report_page import TABLE, record, report, write_incomplete, write_records

from domainbed_carft import files
from domainbed_carft.jobs import manifest
from domainbed_carft.report import repeating


@pytest.fixture
def undrawn(monkeypatch):
    report_page.leave_undrawn(monkeypatch)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """In a folder whose name a shell would take apart."""
    return write_incomplete(tmp_path_factory.mktemp("records") / "it's <a> sweep")


# Sweeps of other shapes


@pytest.mark.usefixtures("undrawn")
def test_settings_that_differ_have_sections_of_their_own(tmp_path):
    for weight in (1, 3):
        hparams = json.dumps({"kl_weight": weight})
        report_page.write_ours(
            tmp_path / "sweep" / f"kl {weight}", ["CARFT"], trials=1, hparams=hparams
        )
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    titles = [text for level, text in page.headings if level == 2]
    assert titles[:2] == ["PACS; hparam kl_weight 1", "PACS; hparam kl_weight 3"]
    files = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"PACS-accuracy.svg", "PACS-accuracy-2.svg"} <= files
    wanted = ["hparam kl_weight", "3", "CARFT on PACS"]
    assert [row for row in page.tables["Settings"] if row[:2] == wanted[:2]]


@pytest.mark.usefixtures("undrawn")
def test_runs_that_left_nothing_out_have_a_report_too(tmp_path):
    collect_sweeps.write_job(tmp_path / "sweep", test_envs=[])
    assert report(tmp_path / "sweep", "-o", tmp_path / "report") == 0
    page = report_page.read(tmp_path / "report")
    (title,) = (title for title in page.tables if "nothing left out" in title)
    assert page.tables[title][0] == ["Algorithm", "A", "C", "P", "S", "Avg"]
    assert "nothing is out-of-domain" in page.text
    assert len(page.all("img")) == 2


@pytest.mark.usefixtures("undrawn")
def test_several_data_sets_have_averages(tmp_path):
    for dataset in ("PACS", "VLCS"):
        report_page.write_ours(tmp_path / "sweep", ["CARFT"], trials=1, dataset=dataset)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    assert page.tables["Averages; training-domain validation set"][0][1:] == ["VLCS", "PACS", "Avg"]
    assert [text for level, text in page.headings if level == 2][:2] == ["VLCS", "PACS"]


@pytest.mark.usefixtures("undrawn")
def test_a_data_set_may_be_called_as_the_table_of_averages(tmp_path):
    for dataset in ("PACS", "Averages"):
        report_page.write_ours(tmp_path / "sweep", ["CARFT"], trials=1, dataset=dataset)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    assert [text for level, text in page.headings if level == 2][:2] == ["PACS", "Averages"]
    found = collect_sweeps.collect(tmp_path / "sweep").document.sections["tables"]
    oracle = {t["dataset"]: t["columns"] for t in found if t["selection"] == "oracle"}
    environments = [f"env{i}" for i in range(4)]
    known = {"PACS": ["A", "C", "P", "S"], "Averages": environments, None: ["PACS", "Averages"]}
    assert oracle == known


@pytest.mark.usefixtures("undrawn")
def test_another_method_is_followed_when_asked_for(sweep, tmp_path):
    assert report(sweep, "-o", tmp_path, "--no-examples", "--select", "oracle") == 0
    page = report_page.read(tmp_path)
    assert next(iter(page.tables)) == "PACS; test-domain validation set (oracle)"
    assert "--select oracle" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_whole_sweep_is_not_told_to_lack_jobs(tmp_path, capsys):
    report_page.write_ours(tmp_path / "sweep", trials=1)
    words = [tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples"]
    assert report(*words) == 0
    assert "missing" not in capsys.readouterr().err
    assert report(*words, "--select", "leave-one-domain-out") == 0
    assert "4 kinds of jobs are missing, see the page." in capsys.readouterr().err
    launched = manifest.Sweep("it", "data", (), selection=("training-domain",))
    manifest.add(tmp_path / "sweep", launched)
    assert report(*words, "--select", "oracle") == 0
    page = report_page.read(tmp_path / "report")
    assert {"PACS; test-domain validation set (oracle)", TABLE} <= page.tables.keys()
    assert "leave-one-domain-out" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_method_that_selects_nothing_is_not_told_that_nothing_was_recorded(tmp_path):
    """All jobs leave exactly one out, and have recorded checkpoints and drift."""
    report_page.write_ours(tmp_path / "sweep", trials=1)
    words = ["--no-examples", "--select", "leave-one-domain-out"]
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", *words) == 0
    page = report_page.read(tmp_path / "report")
    said = "No run could be selected by leave-one-domain-out cross-validation: what that lacks is"
    assert page.text.count(said) == 3  # over steps, in-domain against out-of-domain, drift
    for untrue in ("No checkpoint was", "No run has left", "No run has recorded"):
        assert untrue not in page.text
    assert len(page.tables["Jobs that cells lack"]) > 1


@pytest.mark.usefixtures("undrawn")
def test_the_finding_says_which_of_its_pairs_lack_something(tmp_path, capsys):
    report_page.write_ours(tmp_path / "sweep", trials=1)
    shutil.rmtree(tmp_path / "sweep" / "PACS-CARFT-0-0")
    path = tmp_path / "sweep" / "PACS-CARFT-1-0" / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    assert "2 kinds of jobs are missing, see the page." in capsys.readouterr().err
    page = report_page.read(tmp_path / "report")
    assert "the mean over 3 pairs of (environment, trial)" in page.text
    assert "1 pair lacks something, which stands at the paired comparison." in page.text
    assert "PACS C trial 0 (CARFT: --test_envs 1 stopped at step 0 of 200)" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_that_left_nothing_out_is_not_told_to_have(tmp_path):
    report_page.write_ours(tmp_path / "sweep", ["CARFT"], trials=1)
    for path in (tmp_path / "sweep").glob("*/results.jsonl"):
        path.write_text(re.sub(r'"test_envs": \[\d\]', '"test_envs": []', path.read_text()))
        if "CARFT-0" not in str(path):
            shutil.rmtree(path.parent)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    assert page.headings[0] == (1, "PACS: nothing left out")
    assert "where nothing was left out, on each out-split" in page.text
    drift = [img["alt"] for img in page.all("img") if "KL to" in img["alt"]]
    assert len(drift) == 1 and "PACS, nothing left out" in drift[0]


@pytest.mark.usefixtures("undrawn")
def test_jobs_have_the_environments_of_their_own_records(tmp_path):
    """Two editions of a folder of one's own, whose environments are called otherwise."""
    for name, names in (("one", ["a", "b"]), ("two", ["c", "d"])):
        collect_sweeps.write_job(tmp_path / "sweep", name, dataset="/data", environments=names)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    _, *rows = report_page.read(tmp_path / "report").tables["Jobs"]
    assert {row[0]: row[3] for row in rows} == {"one": "a", "two": "c"}


# Odd names and folders


@pytest.mark.usefixtures("undrawn")
def test_names_from_records_are_text(tmp_path):
    """A data set and a class may be called anything."""
    name = '<img src="x" onerror="boom">'
    collect_sweeps.write_sweep(tmp_path / "sweep", [name], trials=1, choices=1)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    assert page.tables[TABLE][1][0] == name
    assert not any("onerror" in attributes for _, attributes in page.elements)


def test_the_digest_is_of_what_find_finds(tmp_path):
    """Not of what a link leads to, and of what somebody has left in the folder of a job."""
    for name in ("a", "a/old", "a/b/c/too deep", ".hidden", "b c", "two\nlines", "c\\d"):
        write_records(tmp_path / "sweep" / name, record(seed=len(name)))
    write_records(tmp_path / "elsewhere", record())
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "sweep" / "results.jsonl")
    found = repeating.digest(tmp_path / "sweep")
    done = subprocess.run(["bash", "-c", found.command], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == found.sha256
    assert found.files == 5


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("trial", [0, 1])
def test_a_described_job_has_the_command_that_it_was_launched_with(tmp_path, trial):
    """Unless the records beside are another job's: then it has theirs."""
    job = collect_sweeps.write_job(tmp_path / "sweep", "one", test_envs=[0, 1])
    described = {
        "algorithm": "ERM", "dataset": "PACS", "hparams": '{"a": "b c"}', "hparams_seed": 0,
        "test_envs": [0, 1], "trial_seed": trial,
    }  # fmt: skip
    (job / "job.json").write_text(json.dumps({"train_args": described}))
    report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples")
    text = html.unescape((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    expected = (
        '--algorithm ERM --dataset PACS --hparams \'{"a": "b c"}\' --hparams_seed 0 '
        "--output_dir OUT/one --test_envs 0 1 --trial_seed 0\n"
    )
    assert (f"python -m domainbed.scripts.train {expected}" in text) == (trial == 0)
    assert "--trial_seed 1" not in text


def test_odd_names_and_values_are_on_page_and_figures(tmp_path):
    odd = {"loss_kl": 10**400, "context_agreement": 0.5}
    write_records(
        tmp_path / "sweep",
        record(**odd),
        record(5),
        b'{"cut \xff',
        record(algorithm="", env0_in_acc=1e300),
    )
    os.mkfifo(tmp_path / "sweep" / "job" / "job.json")
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    (bars,) = (img["alt"] for img in page.all("img") if img["alt"].startswith("Bars"))
    assert bars.count("50.0") == 1  # on the environment that is called as the averages are
    figures = list((tmp_path / "report" / "figures").glob("*.svg"))
    assert len(figures) == 4
    for path in figures:
        text = "".join(ElementTree.parse(path).getroot().itertext())
        assert r"\ud800\x00\x1ba\nb" in text


@pytest.mark.usefixtures("undrawn")
def test_each_run_of_a_folder_has_its_own_command(tmp_path):
    write_records(tmp_path / "sweep", record(seed=1), record(seed=2, algorithm="CARFT"))
    job = tmp_path / "sweep" / "job"
    (job / "job.json").write_text("[" * 100_000)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "--algorithm CARFT " in text and "--seed 1 " in text and "--seed 2 " in text


def test_names_that_the_font_lacks_or_has_no_room_for_are_remarks(tmp_path, capsys, recwarn):
    collect_sweeps.write_job(tmp_path / "sweep", "one", algorithm="漢字" * 3)
    collect_sweeps.write_job(tmp_path / "sweep", "two", algorithm="x" * 300)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    told = capsys.readouterr().err
    assert told.count("The figures' font lacks 字, 漢: boxes in their PNGs") == 1
    assert told.count("Names leave too little room in ") == 1
    assert "Glyph" not in told and "Warning" not in told and "constrained" not in told
    assert not [one for one in recwarn if "lyph" in str(one.message)]
    svg = (tmp_path / "report" / "figures" / "PACS-accuracy.svg").read_text(encoding="utf-8")
    assert "漢字" in svg


# What is refused


@pytest.mark.parametrize(
    "words, message",
    [
        (["--examples", "CARFT", "ERM"], "no job is of ERM; expected two of CLIPZeroShot, CLIPFi"),
        (["--examples", "CARFT", "CARFT"], "they are the same; expected two of"),
        (["--n_examples", "0"], "--n_examples is 0, expected at least 1"),
        (["--select", "in-domain"], "no jobs for it; expected one of training-domain"),
    ],
)
def test_what_cannot_be_done_is_told(sweep, tmp_path, capsys, words, message):
    assert report(sweep, "-o", tmp_path / "report", *words) == 1
    assert message in capsys.readouterr().err


def test_pictures_of_what_was_left_out_need_something_left_out(tmp_path, capsys):
    for name in ("CARFT", "ERM"):
        collect_sweeps.write_job(tmp_path / "sweep", name, algorithm=name, test_envs=[])
    words = ["--examples", "CARFT", "ERM"]
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", *words) == 1
    assert "the jobs of --select in-domain left none out" in capsys.readouterr().err


def test_a_report_that_found_no_room_at_all_can_be_made_anew(sweep, tmp_path, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(files, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(sweep, "-o", tmp_path / "report")
    assert report(sweep, "-o", tmp_path / "report") == 0


def test_no_record_is_told_and_leaves_no_page(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / "empty", "-o", tmp_path / "report") == 1
    assert "no record below" in capsys.readouterr().err
    assert report(tmp_path / "nowhere", "-o", tmp_path / "report") == 1
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
