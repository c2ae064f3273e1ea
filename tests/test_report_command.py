"""``carft report`` from records to the folder with its page and figures."""

import html
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import collect_sweeps
import pytest
import report_page
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.collect import document, published
from domainbed_carft.report import frames, repeating, writing

TABLE = "PACS; training-domain validation set"


@pytest.fixture
def undrawn(monkeypatch):
    report_page.leave_undrawn(monkeypatch)


def report(*words):
    return cli.main(["report", *map(str, words)])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Complete but for one job, in a folder whose name a shell would take apart."""
    folder = tmp_path_factory.mktemp("records") / "it's <a> sweep"
    report_page.write_ours(folder)
    shutil.rmtree(folder / "PACS-CLIPFineTune-1-1")
    return folder


@pytest.fixture(scope="module")
def made(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    assert report(sweep, "-o", folder, "--no-examples") == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return report_page.read(made)


def test_tables_are_the_collectors(sweep, page):
    built = collect_sweeps.collect(sweep)
    grids = {grid.title: grid for grid in built.document.grids}
    assert TABLE in page.tables and "PACS; test-domain validation set (oracle)" in page.tables
    for title in page.tables.keys() & grids.keys():
        header, *rows = page.tables[title]
        assert header == grids[title].header and rows == [list(row) for row in grids[title].rows]
    # It has no value, since the jobs with two environments left out were not run: no table of X.
    assert not [title for title in page.tables if "leave-one-domain-out" in title]
    assert any("needs the jobs with two test environments" in row[1] for row in missing(page))


def missing(page):
    return page.tables["Jobs that cells lack"][1:]


def test_what_is_missing_is_named_once(page):
    rows = [row for row in missing(page) if "no job --test_envs 1: trial 1" in row[1]]
    (row,) = rows
    assert row[0] == "PACS" and row[2] == "CLIPFineTune on C"
    assert "training-domain" in row[3] and "oracle" in row[3]


def test_figures_are_files_and_on_the_page_with_their_words(made, page):
    links = {a["href"] for a in page.all("a") if a["href"].startswith("figures/")}
    files = {f"figures/{path.name}" for path in (made / "figures").iterdir()}
    assert links == files and len(files) == 2 * (1 + 5 + 5 + 1)
    for path in (made / "figures").iterdir():
        if path.suffix == ".png":
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((90, 90))
                assert picture.width > 600 and len(small.getcolors(90 * 90)) > 20
        else:
            assert path.read_text(encoding="utf-8").startswith("<svg")
    pictures = page.all("img")
    assert len(pictures) == len(page.all("picture")) == len(files) / 2
    for picture, source in zip(pictures, page.all("source"), strict=True):
        assert len(picture["alt"]) > 50 and int(picture["width"]) > 0 < int(picture["height"])
        assert picture["src"].startswith("data:image/svg+xml;base64,")
        assert "dark" in source["media"] and source["srcset"] != picture["src"]


def test_bars_tell_the_means_of_the_table_and_the_published(made, page):
    (alt,) = (img["alt"] for img in page.all("img") if img["alt"].startswith("Bars"))
    _, *rows = page.tables[TABLE]
    drawn = (made / "figures" / "PACS-accuracy.svg").read_text(encoding="utf-8")
    for algorithm, *cells in rows:
        for label, cell in zip("ACPS", cells):
            mean = cell.split()[0]
            assert f"{algorithm} {mean}" in alt.split(f" {label}: ")[1].split(";")[0]
            assert f">{mean}</text>" in drawn
        assert drawn.count(f">{algorithm}</text>") == 5  # four environments and the average
    known = {(f.method, f.dataset): f.accuracy for f in published.figures()}
    assert f"published, CAR-FT: {known['CAR-FT', 'PACS']}" in alt
    assert ">published</text>" in drawn


def test_curves_and_marks_tell_the_means_of_the_frames(sweep, page):
    from domainbed_carft.collect import collecting

    (group,) = collecting.gather([sweep]).groups
    rows = frames.checkpoints(group.runs, "training-domain")
    rows = rows[(rows["target"] == 3) & (rows["algorithm"] == "CARFT")]
    first, last = (100 * rows[rows["step"] == s]["out_of_domain"].mean() for s in (0, 200))
    (alt,) = (i["alt"] for i in page.all("img") if "200, PACS, S left out" in i["alt"])
    assert f"CARFT from {first:.1f} to {last:.1f}" in alt.split("in-domain")[0]
    outcomes = frames.outcomes(group.runs, "training-domain")
    mine = outcomes[(outcomes["target"] == 3) & (outcomes["algorithm"] == "CARFT")]
    inside, outside = (100 * mine[name].mean() for name in ("in_domain", "out_of_domain"))
    (alt,) = (i["alt"] for i in page.all("img") if "upwards), PACS, S left out" in i["alt"])
    assert f"CARFT: {inside:.1f} in, {outside:.1f} out, 2 marks" in alt
    (alt,) = (img["alt"] for img in page.all("img") if "KL to the original" in img["alt"])
    assert "CLIPFineTune from" in alt and "CLIPZeroShot" not in alt


def test_the_page_is_well_made(page):
    """Elements close in order (``Page``), and what screen readers go by is there."""
    assert page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
    for link in page.all("a"):
        assert not link["href"].startswith("#") or link["href"][1:] in ids
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in cell for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(img.get("alt") for img in page.all("img"))


def test_nothing_is_asked_from_elsewhere(made, page):
    for _, attributes in page.elements:
        for name in ("src", "srcset", "href", "poster", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:", "figures/")), value
    assert "url(" not in page.text and "@import" not in page.text
    for path in (made / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r'(?:href|src)="(?!#)', text), path


@pytest.mark.usefixtures("undrawn")
def test_names_from_records_are_text(tmp_path):
    """A data set and a class may be called anything."""
    name = '<img src="x" onerror="boom">'
    collect_sweeps.write_sweep(tmp_path / "sweep", [name], trials=1, choices=1)
    assert report(tmp_path / "sweep", "-o", tmp_path / "report", "--no-examples") == 0
    page = report_page.read(tmp_path / "report")
    assert page.tables[TABLE][1][0] == name
    assert not any("onerror" in attributes for _, attributes in page.elements)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_records_give_the_same_bytes(sweep, made, tmp_path):
    """Also in another process, elsewhere, with hashes salted otherwise."""
    words = ["-m", "domainbed_carft", "report", str(sweep), "-o", "again", "--no-examples"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Report: {Path('again') / 'index.html'}\n"
    assert contents(tmp_path / "again") == contents(made)


def test_the_digest_is_what_its_command_prints(sweep, page):
    (command,) = re.findall(r"<code>(cd .*?)</code>", page.text)
    done = subprocess.run(
        ["bash", "-c", html.unescape(command)], capture_output=True, text=True, check=True
    )
    digest = done.stdout.split()[0]
    assert f">{digest}</code>" in page.text
    assert f"of the {len(list(sweep.glob('*/results.jsonl')))} files" in page.text


def test_commands_are_those_of_the_jobs(sweep, page):
    """``train`` reads them back to the arguments that were recorded."""
    block = page.text.split('aria-label="Commands of the jobs"><code>')[1].split("</code>")[0]
    lines = html.unescape(block).splitlines()
    jobs = sorted(sweep.glob("*/results.jsonl"))
    assert len(lines) == len(jobs)
    parsed = {}
    for line in lines:
        python, m, module, *words = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "domainbed.scripts.train")
        arguments = train.build_parser().parse_args([*words, "--data_dir", "D"])
        parsed[Path(arguments.output_dir).name] = arguments
    for path in jobs:
        wanted = json.loads(path.read_text().splitlines()[0])["args"]
        given = vars(parsed[path.parent.name])
        for name in set(wanted) - {"output_dir"}:
            assert given[name] == wanted[name], name


def test_the_digest_is_of_what_find_finds(tmp_path):
    """Not of what a link leads to, and of what somebody has left in the folder of a job."""
    for name in ("a", "a/old", "a/b/c/too deep", ".hidden", "b c"):
        write_records(tmp_path / "sweep" / name, record(seed=len(name)))
    write_records(tmp_path / "elsewhere", record())
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "sweep" / "results.jsonl")
    found = repeating.digest(tmp_path / "sweep")
    done = subprocess.run(["bash", "-c", found.command], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == found.sha256
    assert found.files == 3


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


@pytest.mark.usefixtures("undrawn")
def test_an_earlier_report_is_overwritten_and_what_it_had_more_removed(sweep, made, tmp_path):
    folder = tmp_path / "report"
    report_page.write_ours(tmp_path / "other", ["CARFT"], trials=1, dataset="VLCS")
    assert report(tmp_path / "other", "-o", folder, "--no-examples") == 0
    (folder / "figures" / "mine.png").touch()
    assert report(sweep, "-o", folder, "--no-examples") == 0
    found = contents(folder)
    assert found.pop("figures/mine.png") == b""  # not the report's to remove
    assert found.keys() == contents(made).keys()
    assert b"PACS" in found["index.html"] and b"VLCS; " not in found["index.html"]


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


def test_no_record_is_told_and_leaves_no_page(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / "empty", "-o", tmp_path / "report") == 1
    assert "no record below" in capsys.readouterr().err
    assert report(tmp_path / "nowhere", "-o", tmp_path / "report") == 1
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_folder_with_other_files_is_left_alone(sweep, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert report(sweep, "-o", tmp_path, "--no-examples") == 1
    assert "(index.html), and no report is there" in capsys.readouterr().err
    assert contents(tmp_path) == {"index.html": b"mine"}


def test_a_place_that_cannot_be_written_is_told_first(sweep, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "report"):
        assert report(sweep, "-o", place, "--no-examples") == 1
        assert "cannot be written" in capsys.readouterr().err


def test_a_page_that_cannot_be_put_in_place_leaves_the_earlier_one(made, tmp_path, monkeypatch):
    """Each file is written beside its place first."""
    folder = tmp_path / "report"
    shutil.copytree(made, folder)
    before = contents(folder)

    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        writing._put(folder / "index.html", b"new")
    assert contents(folder) == before


def test_the_best_of_each_column_is_marked(page):
    marked = re.findall(r'<td class="best">([^<]*)</td>', page.text.split("</table>")[0])
    header, *rows = page.tables[TABLE]
    for place in range(1, len(header)):
        values = [row[place] for row in rows if row[place] != document.NOTHING]
        highest = max(values, key=lambda text: float(text.split()[0]))
        assert highest in marked


@pytest.mark.usefixtures("undrawn")
def test_a_report_that_was_broken_off_is_made_anew(sweep, made, tmp_path, monkeypatch, capsys):
    """As by a full disk, which no file's name comes with."""
    put, written = writing._put, []

    def until_full(path, content):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        put(path, content)

    monkeypatch.setattr(writing, "_put", until_full)
    assert report(sweep, "-o", tmp_path, "--no-examples") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "None" not in error
    assert len(list((tmp_path / "figures").iterdir())) == 2
    monkeypatch.setattr(writing, "_put", put)
    assert report(sweep, "-o", tmp_path, "--no-examples") == 0
    assert contents(tmp_path).keys() == contents(made).keys()


def write_records(folder, *lines):
    (folder / "job").mkdir(parents=True)
    (folder / "job" / "results.jsonl").write_bytes(b"\n".join(lines))


def record(step=0, seed=0, **more):
    """One line, of an algorithm, a data set and an environment that are called oddly."""
    odd = "".join(map(chr, (0xD800, 0, 27))) + "a\nb"
    args = {
        "dataset": "x" * 300, "algorithm": more.pop("algorithm", odd), "test_envs": [0],
        "trial_seed": 0, "hparams_seed": 0, "seed": seed,
    }  # fmt: skip
    accuracies = {f"env{i}_{split}_acc": 0.5 for i in range(2) for split in ("in", "out")}
    told = {"environments": ["average", odd], "hparams": {}, "args": args, "step": step}
    return json.dumps({**accuracies, **told, **more}).encode()


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
    assert "no environment was left out. Cells" in page.text
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
