"""The same tables as text, Markdown, CSV and LaTeX."""

import csv
import io
import re
import shutil

import collect_sweeps
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.results.latex import escape_latex

AWKWARD = 'a_b & 50% of $x^2 #1 {y} ~ \\z <i> | `*"[k]" -- --flag é 猫'


@pytest.fixture
def document(tmp_path):
    """Of a sweep with gaps, with awkward names."""
    labels = ["art", "[50%_off]", "猫", "real | world"]
    collect_sweeps.write_sweep(
        tmp_path, ["An_Algorithm&more", "ERM"], dataset="./my_data", environments=labels
    )
    shutil.rmtree(tmp_path / "ERM-0-0-0")
    result = collect_sweeps.collect(tmp_path, against="An_Algorithm&more", compare=True)
    return result


def test_text_tables_are_aligned_and_explained(document):
    text = document.write("text")
    lines = text.splitlines()
    start = lines.index("my_data; training-domain validation set")
    header, first, second, note = lines[start + 1 : start + 5]

    assert header.split()[:2] == ["Algorithm", "art"]
    assert header.index("art") == first.index(first.split("  ")[1].strip())
    assert re.match(r"ERM +\d+\.\d \+/- \d+\.\d \(2\) \[1\]  ", second)
    assert note == "[1] no job --test_envs 0: trial 0 hparams_seed 0."
    assert "Cells: mean +/- standard error (n trials). More: docs/collect.md" in text


def test_own_data_is_named_by_its_folder_and_json_keeps_the_path(tmp_path):
    for dataset in ("../own3", "/a/pets", "/b/pets", "./PACS", "PACS"):
        name = f"job {dataset}".replace("/", "_")
        collect_sweeps.write_job(tmp_path, name, dataset=dataset)

    document = collect_sweeps.collect(tmp_path)
    titles = {grid.title.partition(";")[0] for grid in document.grids}
    assert titles == {"own3", "/a/pets", "/b/pets", "./PACS", "PACS", "Averages"}

    averages = next(grid for grid in document.grids if grid.title.startswith("Averages"))
    assert "own3" in averages.header and "../own3" not in averages.header

    assert "../own3" in {entry["dataset"] for entry in document.as_dict()["tables"]}

    rows = csv.DictReader(io.StringIO(document.write("csv")))
    assert {row["dataset"] for row in rows} == {"../own3", "/a/pets", "/b/pets", "./PACS", "PACS"}

    for style in ("text", "markdown", "latex"):
        assert "../own3" not in document.write(style)


def test_markdown_has_tables_of_equal_rows(document):
    text = document.write("markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert r"An\_Algorithm\&more" in text and r"\[50%\_off\]" in text
    assert r"real \| world" in text

    assert "Standard error = s / sqrt(n)" in " ".join(text.split())
    bare = [row.replace(r"\|", "") for row in rows]
    table = bare[: next(i for i, row in enumerate(bare) if i > 1 and "---" in row) - 1]
    assert {row.count("|") for row in table} == {7}


def test_csv_holds_the_tables_only(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    methods = ["training-domain", "oracle", "leave-one-domain-out"]
    document = collect_sweeps.collect(tmp_path, methods=methods)
    entries = list(csv.DictReader(io.StringIO(document.write("csv"))))

    assert len(entries) == 3 * (4 + 1)
    assert [entry["environment"] for entry in entries[:5]] == ["A", "C", "P", "S", "average"]

    table = document.as_dict()["tables"][0]
    assert float(entries[1]["mean"]) == collect_sweeps.cell(table, "ERM", "C")["mean"]

    incomplete = [entry for entry in entries if entry["selection"] == "leave-one-domain-out"]
    assert all(
        entry["mean"] == "" and entry["n"] == "0" and entry["missing"] for entry in incomplete
    )


def test_a_format_without_content_is_refused(document, tmp_path):
    with pytest.raises(CarftError, match="no format is called 'html'"):
        document.write("html")

    without_counterpart = collect_sweeps.collect(tmp_path, compare=True)  # of the document
    with pytest.raises(CarftError, match="no row has a published figure"):
        without_counterpart.write("csv")


def test_latex_special_characters_are_escaped():
    escaped = escape_latex(AWKWARD)
    assert escaped.startswith(r"a\_b \& 50\% of \$x\textasciicircum{}2 \#1 \{y\} ")
    assert "{-}{-}flag é (U+732B)" in escaped
