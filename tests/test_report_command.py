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

import collect_sweeps
import pytest
import report_page
from domainbed.scripts import train
from PIL import Image
from report_page import TABLE, contents, report, write_incomplete

from domainbed_carft.report import frames, writing
from domainbed_carft.results import document, published


@pytest.fixture
def undrawn(monkeypatch):
    report_page.leave_undrawn(monkeypatch)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """In a folder whose name a shell would take apart."""
    return write_incomplete(tmp_path_factory.mktemp("records") / "it's <a> sweep")


@pytest.fixture(scope="module")
def made(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    assert report(sweep, "-o", folder, "--no-examples") == 0
    return folder


@pytest.fixture(scope="module")
def page(made):
    return report_page.read(made)


# The page


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
    from domainbed_carft.results import collection

    (group,) = collection.gather([sweep]).groups
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


def test_the_best_of_each_column_is_marked(page):
    marked = re.findall(r'<td class="best">([^<]*)</td>', page.text.split("</table>")[0])
    header, *rows = page.tables[TABLE]
    for place in range(1, len(header)):
        values = [row[place] for row in rows if row[place] != document.NOTHING]
        highest = max(values, key=lambda text: float(text.split()[0]))
        assert highest in marked


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


# The folder


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
