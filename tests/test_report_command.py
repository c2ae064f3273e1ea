"""``carft report``: the page and the figures that it writes for records."""

import hashlib
import html
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import collect_sweeps
import pandas as pd
import pytest
import report_page
import scipy
from domainbed.scripts import train
from fake_checkout import run_python
from PIL import Image
from report_page import TABLE, contents, report, report_and_read

from domainbed_carft.jobs import records
from domainbed_carft.report import provenance
from domainbed_carft.results.top import top


@pytest.fixture
def no_drawing(monkeypatch):
    report_page.skip_drawing(monkeypatch)


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


def test_page_has_the_tables_of_collect_and_marks_incomplete_rows(sweep, page):
    grids = {grid.title: grid for grid in collect_sweeps.collect(sweep).grids}
    titles = page.tables.keys() & grids.keys()
    assert TABLE in titles
    for title in titles:
        assert page.tables[title] == [grids[title].header, *map(list, grids[title].rows)]

    for title in ("C", "target C", "Average over environments", "mean over environments"):
        assert f"<figcaption>{title} (incomplete: CLIPFineTune) <" in page.text
    assert "<figcaption>A <" in page.text and "<figcaption>target A <" in page.text


def test_figures_are_drawn_linked_and_described(report_folder, page):
    links = {link["href"] for link in page.all("a") if link["href"].startswith("figures/")}
    files = {f"figures/{path.name}" for path in (report_folder / "figures").iterdir()}
    # The legend; means and averages; dots, lines and marks of each environment; the drift.
    assert links == files and len(files) == 3 * (1 + 2 + 4 + 5 + 4 + 1)

    for path in (report_folder / "figures").glob("*.png"):
        with Image.open(path) as image:
            thumbnail = image.convert("RGB").resize((90, 90))
        assert len(thumbnail.getcolors(90 * 90)) > 20, path

    descriptions = [image["alt"] for image in page.all("img") if image["alt"]]
    assert len(descriptions) == len(files) / 3 - 1  # all except the legend


def test_figures_have_the_numbers_of_the_table_and_the_best_are_bold(report_folder, page):
    header, *rows = page.tables[TABLE]
    for column, label in enumerate([*header[1:-1], "Average_over_environments"], start=1):
        path = report_folder / "figures" / f"PACS-accuracy-{label}.csv"
        figure = pd.read_csv(path).set_index("algorithm")
        svg = path.with_suffix(".svg").read_text(encoding="utf-8")
        for row in rows:
            mean = row[column].split()[0]
            assert f"{figure.accuracy[row[0]]:.1f}" == mean
            assert f">{row[0]}</text>" in svg and f">{mean}" in svg

    # An incomplete average is not ranked, and of the other two only the better one is bold.
    averages = [row[-1] for row in rows if "[" not in row[-1]]
    bold = re.findall(r'<td class="best">(?:<a [^>]*>)?([^<]*)<', page.text.split("</table>")[0])
    assert len(averages) == 2
    assert max(averages, key=float) in bold and min(averages, key=float) not in bold


def test_page_loads_no_other_files_and_its_links_have_targets(page):
    names = ("src", "srcset", "href", "data")
    addresses = [attributes.get(name, "#") for _, attributes in page.elements for name in names]
    assert all(address.startswith(("#", "data:", "figures/")) for address in addresses)

    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
    assert inner <= {*ids}


@pytest.mark.slow
def test_report_of_another_process_is_identical(sweep, report_folder, tmp_path):
    words = ["-m", "domainbed_carft", "report", str(sweep), "-o", "again"]
    process = run_python(*words, cwd=tmp_path, PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert process.returncode == 0, process.stderr
    assert contents(tmp_path / "again") == contents(report_folder)


def test_commands_on_the_page_have_the_recorded_arguments(sweep, page):
    block = page.text.split('aria-label="Commands of the jobs"><code>')[1].split("</code>")[0]
    parsed = {}
    for line in html.unescape(re.sub("</?span[^>]*>", "", block)).splitlines():
        python, m, module, *words = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "domainbed.scripts.train")
        arguments = train.parse([*words, "--data_dir", "D"])[0]
        parsed[Path(arguments.output_dir).name] = vars(arguments)

    jobs = sorted(sweep.glob("*/results.jsonl"))
    assert len(parsed) == len(jobs)
    for path in jobs:
        recorded = json.loads(path.read_text().splitlines()[0])["args"]
        recorded["output_dir"] = parsed[path.parent.name]["output_dir"]
        assert recorded.items() <= parsed[path.parent.name].items()

    content = b"".join(path.read_bytes() for path in jobs)
    assert hashlib.sha256(content).hexdigest() in page.text


def test_jobs_are_listed_in_the_order_of_the_table(page):
    block = page.text.split('aria-label="Commands of the jobs"><code>')[1].split("</code>")[0]
    listed = [
        tuple(re.search(rf"--{flag} (\S+)", line)[1] for flag in ("algorithm", "test_envs"))
        for line in block.splitlines()
    ]
    rows = [row[0] for row in page.tables[TABLE][1:]]
    expected = itertools.product(rows, "0123")
    assert list(dict.fromkeys(listed)) == list(expected)
    trials = re.findall(r"--trial_seed (\d)", block)
    assert trials[:4] == ["0", "1", "0", "1"]


def test_contents_list_only_sections_with_figures(page):
    contents = page.text.split('<nav aria-label="Contents">')[1].split("</nav>")[0]
    assert "Accuracy over steps" in contents
    assert ">Calibration and flips</h3>" in page.text and "Calibration and flips" not in contents


def test_last_paragraph_on_the_page_is_a_sentence(page):
    assert "Equal records, predictions and images give an identical page.</p>" in page.text


def test_cell_links_to_its_jobs_with_settings_folders_and_commands(sweep, page):
    entries = top([sweep], methods=["training-domain"], only="CARFT, test environments 2").entries
    links = [link["href"] for link in page.all("a")]
    place = next(link for link in links if link.startswith("#cell-PACS-CARFT-P"))
    body = page.text.split(f'<tbody id="{place[1:]}">')[1].split("</tbody>")[0]
    rows = body.split("</tr>")[:-1]
    assert len(entries) == 2

    for row, entry in zip(rows, entries, strict=True):
        accuracies = [f"{100 * value:.1f}" for value in (entry.validation_accuracy, entry.accuracy)]
        folder = f"OUT/{Path(entry.folders[0]).name}"
        expected = ["CARFT", "P", str(entry.trial_seed), "defaults", str(entry.step), *accuracies]
        assert re.sub("<[^>]+>", " ", row).split() == [*expected, folder]

        job = re.search('href="#(job-[0-9]+)"', row)[1]
        command = html.unescape(page.text.split(f'<span id="{job}">')[1].split("</span>")[0])
        assert f"--output_dir {folder}" in command


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("is_complete", [True, False])
def test_headline_averages_datasets_and_has_the_t_interval_over_environments(tmp_path, is_complete):
    """CARFT is one point better on the 4 environments of PACS, and equal on 6 of DomainNet.

    If one of its jobs is missing, the difference is over the trials that both have.
    """
    folder = tmp_path / "sweep"
    gains = {("CARFT", "PACS"): 0.01}
    for dataset, labels in (("PACS", "ACPS"), ("DomainNet", "CIPQRS")):
        jobs = itertools.product(("CARFT", "CLIPFineTune"), range(len(labels)), range(2))
        for algorithm, target, trial in jobs:
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

    source = "70.5% against 70.0%"
    if not is_complete:
        shutil.rmtree(folder / "DomainNet-CARFT-5-1")
        source = "over the trials that both have"

    header = html.unescape(report_and_read(folder).text).split("<section")[0]
    assert f"CARFT minus CLIPFineTune on held-out environments: +0.5 points, {source}." in header
    assert ("Highest average accuracy: CARFT with 70.5%." in header) == is_complete
    low, high = scipy.stats.ttest_1samp([1] * 4 + [0] * 6, 0).confidence_interval()
    interval = f"it is +0.4 points, with a 95% interval of {low:+.1f} to {high:+.1f}"
    weights = "with the same weight for all 10 environments"
    assert f"Over the trials that both have, {weights}, {interval}" in header


def test_headline_names_the_weighting_if_an_average_is_incomplete(sweep, page):
    methods = ["training-domain"]
    results = collect_sweeps.collect(sweep, methods=methods, against="CLIPFineTune")
    (difference,) = {
        entry.average_difference
        for entry in results.comparisons_against
        if entry.algorithm == "CARFT"
    }
    text = html.unescape(page.text).split("<section")[0]
    sentence = text.split("CARFT minus CLIPFineTune on held-out environments: ")[1].split(".</p>")[
        0
    ]
    assert sentence.startswith(f"{difference:+.1f} points")
    assert sentence.endswith(", over the trials that both have")
    assert "CLIPFineTune" not in text.split("Highest average accuracy: ")[1].split("</p>")[0]


@pytest.mark.usefixtures("no_drawing")
def test_headline_corrects_the_p_value_for_all_rows_that_the_page_compares(tmp_path):
    """Three rows are compared with CLIPFineTune, on 4 environments in 2 trials."""
    gains = {  # over CLIPFineTune by environment, in % of images; trials differ by 1
        "CARFT": [5, 4, 3, 2],
        "CLIPZeroShot": [9, -8, 7, -6],
        "LipsumFT": [3, 2, 3, -2],
    }
    for algorithm, target, trial in itertools.product(["CLIPFineTune", *gains], range(4), range(2)):
        job = collect_sweeps.write_job(
            tmp_path / "sweep",
            f"{algorithm}-{target}-{trial}",
            algorithm=algorithm,
            trial_seed=trial,
            test_envs=[target],
        )
        gain = gains[algorithm][target] + trial if algorithm in gains else 0
        accuracy = {f"env{target}_in_acc": 0.5 + gain / 100}
        collect_sweeps.change_records(job, lambda record, new=accuracy: record | new)

    for trial in range(2):  # too few pairs for a p-value
        name = f"FLYP-0-{trial}"
        collect_sweeps.write_job(tmp_path / "sweep", name, algorithm="FLYP", trial_seed=trial)

    by_pair = {
        row: [value + trial for value in by_target for trial in range(2)]
        for row, by_target in gains.items()
    }
    corrected = [
        min(3 * flip_signs(by_pair["CARFT"]), 1),
        min(3 * flip_signs([5.5, 4.5, 3.5, 2.5]), 1),
    ]
    page = report_and_read(tmp_path / "sweep")
    header = html.unescape(page.text).split("<section")[0]
    assert "CARFT minus CLIPFineTune on held-out environments: +4.0 points" in header
    assert (
        "Corrected for the 3 comparisons with CLIPFineTune (Holm), p is "
        f"{corrected[1]:.3f} over 4 environments and {corrected[0]:.3f} over 8 pairs." in header
    )
    (title,) = (title for title in page.tables if "unit: environment" in title)
    assert {row[0] for row in page.tables[title][1:]} == {*gains, "FLYP"}


def flip_signs(values):
    """Return the share of all sign patterns whose sum is at least as far from 0."""
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(total >= abs(sum(values)) - 1e-9 for total in sums) / len(sums)


@pytest.mark.usefixtures("no_drawing")
def test_page_has_declaration_and_launch_command_of_the_sweep(tmp_path):
    folder = tmp_path / "sweep"
    collect_sweeps.launch(folder, ["CARFT"])
    path = folder / "sweep.json"
    path.write_text(path.read_text().replace('"task": "t"', '"task": "t", "data_dir": "/mine"'))
    (folder / "sweep.yaml").write_text("name: <mine>\nsteps: 3\n")
    text = html.unescape(report_and_read(folder).text)
    blocks = dict(re.findall('aria-label="([^"]*)"><code>(.*?)</code>', text, re.DOTALL))
    assert blocks["Declaration of the sweep"] == "name: <mine>\nsteps: 3\n"
    command = "carft sweep launch sweep.yaml --output_dir OUT --data_dir DATA"
    assert blocks["Command of the sweep"] == f"{command}\n" and "/mine" not in text


# The folder


@pytest.mark.usefixtures("no_drawing")
def test_report_overwrites_an_earlier_report_and_keeps_other_files(tmp_path):
    report_page.write_sweep(tmp_path / "VLCS", ["CARFT"], trials=1, dataset="VLCS")
    report_page.write_sweep(tmp_path / "PACS", ["CARFT"], trials=1)
    assert report(tmp_path / "PACS", tmp_path / "new") == 0
    assert report(tmp_path / "VLCS", tmp_path / "old") == 0
    (tmp_path / "old" / "figures" / "mine.png").touch()
    assert report(tmp_path / "PACS", tmp_path / "old") == 0

    files = contents(tmp_path / "old")
    assert files.pop("figures/mine.png") == b""
    assert files == contents(tmp_path / "new")


def test_unusable_output_folder_is_an_error_and_remains_unchanged(sweep, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    for place in (tmp_path, tmp_path / "index.html" / "report", Path("/proc/report")):
        assert report(sweep, place) == 1
        assert str(place) in capsys.readouterr().err
    assert contents(tmp_path) == {"index.html": b"mine"}


# Other sweeps, and unexpected names


@pytest.mark.usefixtures("no_drawing")
def test_each_setting_and_dataset_has_a_section(tmp_path):
    for weight, dataset in ((1, "PACS"), (3, "PACS"), (3, "data/own3")):
        hparams = json.dumps({"kl_weight": weight})
        folder = tmp_path / "sweep" / f"kl {weight} {dataset.replace('/', ' ')}"
        collect_sweeps.write_job(
            folder, algorithm="CARFT", dataset=dataset, hparams=hparams, environments="ACPS"
        )

    page = report_and_read(tmp_path / "sweep")
    for title in (
        "PACS; hparam kl_weight 1",
        "PACS; hparam kl_weight 3",
        "own3; hparam kl_weight 3",
    ):
        assert f">{title}</h2>" in page.text
    assert "data/own3" not in page.text.replace("--dataset data/own3", "")

    assert ["hparam kl_weight", "3", "2"] in page.tables["Settings and versions"]


@pytest.mark.usefixtures("no_drawing")
def test_runs_without_a_target_have_a_report(tmp_path):
    collect_sweeps.write_job(tmp_path / "sweep", test_envs=[])
    page = report_and_read(tmp_path / "sweep")
    assert ["Algorithm", "A", "C", "P", "S", "Avg"] in [rows[0] for rows in page.tables.values()]
    assert "<h1>PACS, no domain held out: ERM</h1>" in page.text


@pytest.mark.usefixtures("no_drawing")
def test_names_in_records_are_escaped_on_page_and_terminal(tmp_path, capsys):
    names = ['<img src="x" onerror="boom">', "a\x1b[31mb\u202ec\ud800", "x" * 300, ""]
    for number, name in enumerate(names):
        facts = {"dataset": name, "algorithm": name, "environments": names}
        collect_sweeps.write_job(tmp_path / "sweep", f"job{number}", **facts)

    page = report_and_read(tmp_path / "sweep")
    cells = {cell for rows in page.tables.values() for row in rows for cell in row}
    assert {names[0], r"a\x1b[31mb\u202ec\ud800"} <= cells
    assert not any("onerror" in attributes for _, attributes in page.elements)

    printed = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page.text + printed.out + printed.err)


def test_digest_of_records_does_not_depend_on_the_order_of_the_runs(sweep):
    runs = records.read([sweep]).runs
    folders = sorted({run.folder for run in runs})
    contents = b"".join(Path(folder, "results.jsonl").read_bytes() for folder in folders)
    expected = hashlib.sha256(contents).hexdigest()
    assert provenance.hash_records(runs) == provenance.hash_records(runs[::-1]) == expected
