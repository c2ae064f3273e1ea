"""``carft report`` from records to the folder with its page and figures."""

import hashlib
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
import numpy as np
import pandas as pd
import pytest
import report_page
import scipy
from domainbed.scripts import train
from PIL import Image
from report_page import TABLE, contents, page_of, report

from domainbed_carft import cli
from domainbed_carft.report.page import PAIR
from domainbed_carft.results import collect as collecting
from domainbed_carft.results import selection
from domainbed_carft.results.top import top


@pytest.fixture
def undrawn(monkeypatch):
    report_page.leave_undrawn(monkeypatch)


@pytest.fixture(scope="module")
def sweep(incomplete):
    return incomplete / "sweep"


@pytest.fixture(scope="module")
def report_folder(incomplete):
    return incomplete / "new" / "report"


@pytest.fixture(scope="module")
def page(report_folder):
    return report_page.read(report_folder)


# The page


def test_report_tables_equal_collects_and_name_what_is_missing(sweep, page):
    grids = {grid.title: grid for grid in collect_sweeps.collect(sweep).grids}
    assert TABLE in page.tables

    for title in page.tables.keys() & grids.keys():
        header, *rows = page.tables[title]
        assert header == grids[title].header and rows == [list(row) for row in grids[title].rows]
        assert all(html.escape(note, quote=False) in page.text for note in grids[title].notes)

    # The jobs with two environments left out were not run: no table of X.
    assert not [title for title in page.tables if "leave-one-domain-out" in title]
    assert "no job --test_envs 1: trial 1" in page.text and "are incomplete; the notes" in page.text

    for title in ("C", "C left out", "Average over environments", "mean over environments"):
        assert f"<figcaption>{title} (incomplete: CLIPFineTune) <" in page.text
    assert "<figcaption>A <" in page.text and "<figcaption>A left out <" in page.text


def test_figures_are_files_and_stand_on_the_page_with_descriptions(report_folder, page):
    links = {a["href"] for a in page.all("a") if a["href"].startswith("figures/")}
    files = {f"figures/{path.name}" for path in (report_folder / "figures").iterdir()}
    # The legend; means and averages; the dots, the lines, the marks and the drift.
    assert links == files and len(files) == 3 * (1 + 2 + 4 + 5 + 4 + 1)

    for path in (report_folder / "figures").glob("*.png"):
        with Image.open(path) as picture:
            thumbnail = picture.convert("RGB").resize((90, 90))
            assert picture.width > 600 and len(thumbnail.getcolors(90 * 90)) > 20

    pictures = [picture for picture in page.all("img") if picture["alt"]]
    assert len(pictures) == len(files) / 3 - 1  # but for the legend
    assert len(page.all("img")) == len(pictures) + 3  # the keys of the legend, beside their names

    for picture in pictures:
        assert len(picture["alt"]) > 50
        assert picture["src"].startswith("data:image/svg+xml;base64,")


def test_dots_show_the_means_and_the_table_marks_the_best(report_folder, page):
    header, *rows = page.tables[TABLE]
    for number, label in enumerate([*header[1:-1], "average"], 1):
        path = report_folder / "figures" / f"PACS-accuracy-{label}.svg"
        svg = path.read_text(encoding="utf-8")
        data = pd.read_csv(path.with_suffix(".csv"))
        for place, (algorithm, *cells) in enumerate(rows):
            text = re.sub(r" \(\d\)| \[\d\]", "", cells[number - 1])
            text += "*" if "[" in cells[number - 1] else ""
            assert f">{algorithm}</text>" in svg and f">{text}</text>" in svg
            assert (data.algorithm[place], f"{data.accuracy[place]:.1f}") == (
                algorithm,
                text.split()[0].rstrip("*"),
            )

    first_table = page.text.split("</table>")[0]
    marked = {
        kind: re.findall(rf'<td class="{kind}">(?:<a [^>]*>)?([^<]*)<', first_table)
        for kind in ("best", "second")
    }
    for column in range(1, len(header)):
        values = [row[column] for row in rows if "[" not in row[column]]
        means = sorted({float(text.split()[0]) for text in values}, reverse=True)
        for kind, mean in zip(("best", "second"), means if len(values) > 2 else means[:1]):
            expected = [text for text in values if float(text.split()[0]) == mean]
            assert {*expected} <= {*marked[kind]}

    assert len(marked["best"] + marked["second"]) < len(rows) * (len(header) - 1)
    assert not any("[" in text for text in marked["best"] + marked["second"])
    assert any(title.startswith("Published") or "published" in title for title in page.tables)


def test_the_page_is_well_made_and_asks_nothing_from_elsewhere(report_folder, page):
    """Elements close in order (``Page``), and what screen readers go by is there."""
    values = [a.get(n, "#") for _, a in page.elements for n in ("src", "srcset", "href", "data")]
    assert all(value.startswith(("#", "data:", "figures/")) for value in values)

    svgs = "".join(p.read_text(encoding="utf-8") for p in (report_folder / "figures").glob("*.svg"))
    assert "url(" not in page.text and "@import" not in page.text and "<script" not in svgs
    assert not re.search(r'(?:href|src)="(?!#)', svgs)
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


def test_the_same_records_give_the_same_bytes(sweep, report_folder, tmp_path):
    """Also in another process, elsewhere, with hashes salted otherwise."""
    words = ["-m", "domainbed_carft", "report", str(sweep), "-o", "again", "--n_examples", "0"]
    process = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )

    assert process.returncode == 0, process.stderr
    assert process.stdout == f"Report: {Path('again') / 'index.html'}\n"
    assert contents(tmp_path / "again") == contents(report_folder)


def test_commands_and_digest_are_of_the_jobs(sweep, page):
    """``train`` reads the commands back to the arguments that were recorded."""
    block = page.text.split('aria-label="Commands of the jobs"><code>')[1].split("</code>")[0]
    parsed = {}
    for line in html.unescape(re.sub("</?span[^>]*>", "", block)).splitlines():
        python, m, module, *words = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "domainbed.scripts.train")
        arguments = train.build_parser().parse_args([*words, "--data_dir", "D"])
        parsed[Path(arguments.output_dir).name] = vars(arguments)

    jobs = sorted(sweep.glob("*/results.jsonl"))
    assert len(parsed) == len(jobs)

    for path in jobs:
        recorded = json.loads(path.read_text().splitlines()[0])["args"]
        for name in set(recorded) - {"output_dir"}:
            assert parsed[path.parent.name][name] == recorded[name], name

    content = b"".join(path.read_bytes() for path in jobs)
    assert hashlib.sha256(content).hexdigest() in page.text
    assert ["clip_backbone on PACS", "ViT-B/16", str(len(jobs))] in page.tables[
        "Settings and versions"
    ]


def test_the_page_begins_with_the_difference_the_best_averages_and_the_jobs(sweep, page):
    first_lines = html.unescape(page.text.split("</header>")[0])
    _, *rows = page.tables[TABLE]
    averages = {row[0]: row[-1] for row in rows}
    assert averages.pop("CLIPFineTune").endswith("[2]")
    results = collecting.collect([sweep], methods=["training-domain"], against="CLIPFineTune")
    by_environment, by_pair = (
        entry for entry in results.comparisons_against if entry.algorithm == "CARFT"
    )
    points = by_environment.mean_difference
    side = "more" if points >= 0 else "less"
    headline = first_lines.split('<p class="headline">')[1].split("</p>")[0]
    assert headline.startswith(f"CARFT is {abs(points):.1f} points {side} accurate than CLIPFine")
    assert headline.endswith("left out of training, over the trials that both have.")

    # Student's t over the four environments, each the mean of the trials that both have
    percent = {"CARFT": {}, "CLIPFineTune": {}, "CLIPZeroShot": {}}
    for selected in selection.select(results.collection.runs, "training-domain"):
        accuracies = percent[selected.algorithm].setdefault(selected.target, {})
        accuracies[selected.trial] = 100 * selected.outcome.accuracy
    differences = [
        np.mean([ours[trial] - theirs[trial] for trial in ours.keys() & theirs.keys()])
        for ours, theirs in zip(percent["CARFT"].values(), percent["CLIPFineTune"].values())
    ]
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    includes_0 = ", which includes 0" if low <= 0 <= high else ""
    assert f"Its 95% interval over 4 environments is {low:+.1f} to {high:+.1f}{includes_0}. " in (
        first_lines
    )
    pairs = f"Over 7 pairs of runs it is {by_pair.low:+.1f} to {by_pair.high:+.1f}, which is optim"
    assert pairs in first_lines

    best = max(averages, key=lambda name: float(averages[name]))
    assert f"Highest average accuracy: {best} with {averages[best]}%.</p>" in first_lines

    facts = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", first_lines)
    n_jobs = len(list(sweep.glob("*/results.jsonl")))
    assert facts[:3] == [("Jobs", str(n_jobs)), ("Methods", "3"), ("Trials", "2")]


def test_a_cell_leads_to_its_jobs_with_settings_folders_and_commands(sweep, page):
    entries = top([sweep], methods=["training-domain"], only="CARFT, test environments 2").entries
    href = next(
        attributes["href"]
        for attributes in page.all("a")
        if attributes["href"].startswith("#cell-PACS-CARFT-P")
    )
    rows = page.text.split(f'<tbody id="{href[1:]}">')[1].split("</tbody>")[0].split("</tr>")[:-1]
    assert len(rows) == len(entries) == 2

    for row, entry in zip(rows, entries, strict=True):
        texts = re.sub("<[^>]+>", " ", row).split()
        assert texts[:4] == ["CARFT", "P", str(entry.trial_seed), "defaults"]
        accuracies = [f"{100 * value:.1f}" for value in (entry.validation_accuracy, entry.accuracy)]
        folder = f"OUT/{Path(entry.folders[0]).name}"
        assert texts[4:] == [str(entry.step), *accuracies, folder]

        job = re.search('href="#(job-[0-9]+)"', row)[1]
        line = html.unescape(page.text.split(f'<span id="{job}">')[1].split("</span>")[0])
        assert shlex.split(line)[-1] != "" and f"--output_dir {folder}" in line


@pytest.mark.usefixtures("undrawn")
def test_of_several_data_sets_the_page_begins_with_their_averages(tmp_path):
    for dataset in ("PACS", "VLCS"):
        folder = tmp_path / "sweep" / dataset
        report_page.write_ours(folder, ["CARFT", "CLIPFineTune"], trials=1, dataset=dataset)
    page = page_of(tmp_path / "sweep")
    header, *sections = html.unescape(page.text).split("<section")

    averages = {row[0]: row[-1] for row in page.tables["Averages; training-domain validation set"]}
    text = f"{averages['CARFT']}% against {averages['CLIPFineTune']}%."
    assert text in header and "one trial, too few for an interval" in header
    assert "95% interval" not in header and "pairs of runs" not in header
    assert header.count("Highest average accuracy") == 1
    for section, dataset in zip(sections, ("VLCS", "PACS")):
        _, *rows = page.tables[f"{dataset}; training-domain validation set"]
        best = max(rows, key=lambda row: float(row[-1]))
        assert f"<p>Highest average accuracy: {best[0]} with {best[-1]}%." in section


@pytest.mark.usefixtures("undrawn")
def test_differences_weigh_data_sets_as_the_averages_beside_them(tmp_path):
    """CARFT is a point better in the 4 environments of PACS, and not in the 6 of DomainNet."""
    folder = tmp_path / "sweep"
    gains = {("CARFT", "PACS"): 0.01, ("CARFT", "DomainNet"): 0.0}
    for dataset, labels in (("PACS", "ACPS"), ("DomainNet", "CIPQRS")):
        for algorithm, target, trial in itertools.product(PAIR, range(len(labels)), range(2)):
            job = collect_sweeps.write_job(
                folder,
                f"{dataset}-{algorithm}-{target}-{trial}",
                algorithm=algorithm,
                dataset=dataset,
                trial_seed=trial,
                test_envs=[target],
                environments=list(labels),
            )
            accuracy = {f"env{target}_in_acc": 0.7 + gains.get((algorithm, dataset), 0)}
            collect_sweeps.change_records(job, lambda record, new=accuracy: record | new)

    header = html.unescape(page_of(folder).text).split("<section")[0]
    assert "CARFT is 0.5 points more accurate than CLIPFineTune" in header
    assert ": 70.5% against 70.0%." in header
    gains_of_environments = [1] * 4 + [0] * 6
    low, high = scipy.stats.ttest_1samp(gains_of_environments, 0).confidence_interval()
    assert (
        "If all 10 environments count alike instead of all data sets, it is +0.4 points, with a "
        f"95% interval of {low:+.1f} to {high:+.1f}"
    ) in header

    methods = ["training-domain"]
    latex = collecting.collect(folder, methods=methods, against=PAIR[1]).write("latex")
    assert r"& \textbf{70.5} & $+0.5$$^{\dagger}$ \\" in latex
    assert "data sets count alike, as in Avg" in latex


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("algorithms", [("CARFT", "ERM"), ("CARFT", "CLIPZeroShot")])
def test_captions_name_zero_shot_clip_if_it_is_drawn(algorithms, tmp_path):
    report_page.write_ours(tmp_path / "sweep", algorithms, trials=1)
    text = page_of(tmp_path / "sweep").text
    sentences = (
        "Dashed: zero-shot CLIP.",
        "Dashed: the height of zero-shot CLIP.",
        "Zero-shot CLIP, which does not train, is a horizontal line.",
    )
    assert [sentence in text for sentence in sentences] == ["CLIPZeroShot" in algorithms] * 3


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_the_declaration_and_the_command_of_the_sweep(tmp_path):
    folder = tmp_path / "sweep"
    collect_sweeps.launch(folder, ["CARFT"])
    path = folder / "sweep.json"
    path.write_text(path.read_text().replace('"task": "t"', '"task": "t", "data_dir": "/mine"'))
    (folder / "sweep.yaml").write_text("name: <mine>\nsteps: 3\n")
    text = html.unescape(page_of(folder).text)
    blocks = dict(re.findall('aria-label="([^"]*)"><code>(.*?)</code>', text, re.DOTALL))
    assert blocks["Declaration of the sweep"] == "name: <mine>\nsteps: 3\n"

    command = "carft sweep launch sweep.yaml --output_dir OUT --data_dir DATA"
    assert blocks["Command of the sweep"] == f"{command}\n" and "/mine" not in text


# The folder


@pytest.mark.usefixtures("undrawn")
def test_an_earlier_report_is_overwritten_and_its_other_figures_are_removed(
    sweep, report_folder, tmp_path
):
    folder = tmp_path / "report"
    report_page.write_ours(tmp_path / "other", ["CARFT"], trials=1, dataset="VLCS")
    assert report(tmp_path / "other", folder) == 0

    (folder / "figures" / "mine.png").touch()
    assert report(sweep, folder) == 0

    files = contents(folder)
    assert files.pop("figures/mine.png") == b""  # not the report's to remove
    assert files.keys() == contents(report_folder).keys()
    assert b"PACS" in files["index.html"] and b"VLCS; " not in files["index.html"]


def test_an_unusable_output_folder_is_refused_first(sweep, tmp_path, monkeypatch, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert report(sweep, tmp_path) == 1
    assert "has other files (index.html); expected a new or empty folder" in capsys.readouterr().err
    assert contents(tmp_path) == {"index.html": b"mine"}

    monkeypatch.setattr("domainbed_carft.report.page.SectionMaker", None)  # which may take minutes
    for place in (tmp_path / "index.html" / "report", Path("/proc/report")):
        assert report(sweep, place) == 1
        assert f"{place} could not be written" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_full_disk_keeps_the_earlier_report(sweep, report_folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(report_folder, tmp_path / "earlier")

    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for name in ("earlier", "new"):
            assert report(sweep, tmp_path / name) == 1
            assert "could not be written: No space left on device" in capsys.readouterr().err

    assert contents(tmp_path / "earlier") == contents(report_folder)
    assert not any((tmp_path / "new").iterdir())
    assert report(sweep, tmp_path / "new") == 0


# Sweeps of other shapes, and odd names


@pytest.mark.usefixtures("undrawn")
def test_settings_and_data_sets_that_differ_have_sections_of_their_own(tmp_path):
    for weight, dataset in ((1, "PACS"), (3, "PACS"), (3, "VLCS")):
        hparams = json.dumps({"kl_weight": weight})
        folder = tmp_path / "sweep" / f"kl {weight} {dataset}"
        report_page.write_ours(folder, ["CARFT"], trials=1, dataset=dataset, hparams=hparams)

    page = page_of(tmp_path / "sweep")
    titles = [text for level, text in page.headings if level == 2]
    kl_3 = ["VLCS; hparam kl_weight 3", "PACS; hparam kl_weight 3"]

    assert sorted(titles[:3]) == sorted(["PACS; hparam kl_weight 1", *kl_3])

    files = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert {"PACS-accuracy-A.svg", "PACS-accuracy-A-2.svg", "VLCS-accuracy-V.csv"} <= files
    assert ["hparam kl_weight", "3", "8"] in page.tables["Settings and versions"]

    (averages,) = (
        rows for title, rows in page.tables.items() if title.startswith("Averages; trai")
    )

    assert averages[0][1:] == ["VLCS", "PACS", "Avg"]


@pytest.mark.usefixtures("undrawn")
def test_an_own_data_set_has_its_folders_name_on_the_page(tmp_path):
    folder = tmp_path / "sweep"
    report_page.write_ours(folder, ["CARFT", "CLIPFineTune"], trials=1, dataset="data/own3")
    page = page_of(folder)

    assert page.headings[0] == (1, "own3, one domain left out: CARFT and CLIPFineTune")
    assert (2, "Results") in page.headings and "own3" in next(iter(page.tables))
    assert "contexts on own3" not in page.text and "clip_backbone on own3" in page.text

    without_commands = page.text.replace("--dataset data/own3", "")
    assert "data/own3" not in without_commands


@pytest.mark.usefixtures("undrawn")
def test_runs_that_left_nothing_out_have_a_report_too(tmp_path):
    collect_sweeps.write_job(tmp_path / "sweep", test_envs=[])
    page = page_of(tmp_path / "sweep")
    (title,) = (title for title in page.tables if "nothing left out" in title)

    assert page.tables[title][0] == ["Algorithm", "A", "C", "P", "S", "Avg"]
    assert page.headings[0] == (1, "PACS, nothing left out: ERM")
    pictures = [picture for picture in page.all("img") if picture["alt"]]
    assert "nothing is out-of-domain" in page.text and len(pictures) == 4 + 1


@pytest.mark.usefixtures("undrawn")
def test_the_report_follows_the_chosen_selection_method(sweep, tmp_path):
    assert report(sweep, tmp_path, "--select", "oracle") == 0

    page = report_page.read(tmp_path)
    assert next(iter(page.tables)) == "PACS; test-domain validation set (oracle)"
    assert report(sweep, tmp_path, "--select", "leave-one-domain-out") == 0
    assert report_page.read(tmp_path).text.count("No run was selected.") == 1


@pytest.mark.usefixtures("undrawn")
def test_names_from_records_are_text_and_move_no_terminal(tmp_path, capsys):
    names = ['<img src="x" onerror="boom">', "a\x1b[31mb\u202ec\ud800", "x" * 300, ""]
    for number, name in enumerate(names):
        collect_sweeps.write_job(
            tmp_path / "sweep",
            f"job{number}",
            dataset=name,
            algorithm=name,
            environments=names,
        )

    page = page_of(tmp_path / "sweep")
    cells = {cell for rows in page.tables.values() for row in rows for cell in row}
    assert {names[0], r"a\x1b[31mb\u202ec\ud800"} <= cells
    assert not any("onerror" in attributes for _, attributes in page.elements)

    printed = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page.text + printed.out + printed.err)


@pytest.mark.parametrize("second", ["ERM", "CARFT"])
def test_a_pair_that_cannot_be_compared_is_refused_and_leaves_no_page(
    sweep, tmp_path, capsys, second
):
    assert report(sweep, tmp_path / "report", "--examples", "CARFT", second) == 1
    assert "expected two different algorithms of CARFT, CLIP" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("algorithms", "reason"),
    [
        (
            ["CLIPood", "CARFT", "CLIPMIRO"],
            "they compare two algorithms on the environments left out, by default CARFT and "
            "CLIPFineTune. For others, add --examples A B; these jobs are of CARFT, CLIPood, "
            "CLIPMIRO.",
        ),
        (
            ["CLIPMIRO"],
            "they compare two algorithms on the environments left out, by default CARFT and "
            "CLIPFineTune. For others, add --examples A B; these jobs are of CLIPMIRO.",
        ),
    ],
)
def test_a_report_without_examples_says_why_and_how_to_get_them(
    undrawn, tmp_path, capsys, algorithms, reason
):
    report_page.write_ours(tmp_path / "sweep", algorithms, trials=1)
    assert cli.main(["report", str(tmp_path / "sweep"), "-o", str(tmp_path / "report")]) == 0
    assert f"No example pictures: {reason}\n" in capsys.readouterr().err

    page = report_page.read(tmp_path / "report")
    assert f"<p>There are none: {reason}</p>" in page.text
    assert (2, "Example pictures") in page.headings


def test_a_report_says_when_its_examples_were_switched_off(undrawn, tmp_path):
    report_page.write_ours(tmp_path / "sweep", trials=1)
    assert "switched off by --n_examples 0" in page_of(tmp_path / "sweep").text
