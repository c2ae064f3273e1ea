"""The same tables as text, Markdown and CSV, and records as a frame."""

import csv
import io
import json
import re
import shutil

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.results import formats
from domainbed_carft.results.formats import Grid

HOSTILE = "two\nlines \x1b[31mred \u2028\udcff"
ESCAPED = "two\\nlines \\x1b[31mred \\u2028\\udcff"


@pytest.fixture
def document(tmp_path):
    """Tables of a sweep with gaps and awkward names."""
    labels = ["art", "[50%_off]", "猫", "real | world"]
    collect_sweeps.write_sweep(
        tmp_path, ["An_Algorithm&more", "ERM"], dataset="./my_data", environments=labels
    )
    shutil.rmtree(tmp_path / "ERM-0-0-0")
    return collect_sweeps.collect(tmp_path)


def test_text_tables_are_aligned_and_have_notes(document):
    lines = document.write("text").splitlines()
    start = lines.index("my_data; training-domain validation set")
    header, first, second, note = lines[start + 1 : start + 5]
    assert header.split()[:2] == ["Algorithm", "art"]
    assert header.index("art") == first.index(first.split("  ")[1].strip())
    assert re.match(r"ERM +\d+\.\d \+/- \d+\.\d \(2\) \[1\]  ", second)
    assert note == "[1] no job --test_envs 0: trial 0 hparams_seed 0."


def test_markdown_has_tables_of_equal_rows(document):
    rows = [line for line in document.write("markdown").splitlines() if line.startswith("|")]
    header, separator, first, second = (row.replace(r"\|", "") for row in rows[:4])
    assert r"An\_Algorithm\&more" in first and r"\[50%\_off\]" in header
    assert r"real \| world" in rows[0] and "---" in separator
    assert {row.count("|") for row in (header, separator, first, second)} == {7}


def test_csv_has_the_cells_of_the_tables_also_without_a_value(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    methods = ["training-domain", "oracle", "leave-one-domain-out"]
    document = collect_sweeps.collect(tmp_path, methods=methods)
    rows = list(csv.DictReader(io.StringIO(document.write("csv"))))
    assert len(rows) == 3 * (4 + 1)
    assert [row["environment"] for row in rows[:5]] == ["A", "C", "P", "S", "average"]
    assert float(rows[1]["mean"]) == document.tables[0].rows[0].cells[1].mean

    for row in rows[10:]:
        assert (row["selection"], row["mean"], row["n"]) == ("leave-one-domain-out", "", "0")
        assert row["missing"]
    assert document.cells["mean"].isna().tolist() == [False] * 10 + [True] * 5


def test_records_have_the_accuracies_of_the_files_and_nan_for_other_environments(tmp_path):
    collect_sweeps.write_job(tmp_path, "small", environments=["a", "b"], dataset="Own")
    folder = collect_sweeps.write_job(tmp_path, "large", test_envs=[1])
    rows = collect_sweeps.collect(tmp_path).records.set_index(["folder", "step"])
    for line in (folder / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        row = rows.loc[(str(folder), record["step"])]
        assert row["test_envs"] == (1,)
        names = [name for name in record if name.endswith("_acc")]
        assert row[names].tolist() == [record[name] for name in names] and len(names) == 8
    assert rows.loc[str(tmp_path / "small"), "env3_in_acc"].isna().tolist() == [True] * 3


def test_a_format_without_content_is_refused(document, tmp_path):
    with pytest.raises(CarftError, match="no format is called 'html'"):
        document.write("html")
    with pytest.raises(CarftError, match="no row has a published figure"):
        collect_sweeps.collect(tmp_path, compare=True).write("csv")


@pytest.mark.parametrize("name", ["text", "markdown", "csv"])
def test_control_characters_are_shown_and_break_nothing(name):
    def write(word):
        grid = Grid(word, ["a", word], [[word, word]], [word])
        if name == "csv":
            return formats.as_csv([{"a": word}])
        return getattr(formats, f"as_{name}")([grid], [word])

    text = write(HOSTILE)
    assert text.count("\n") == write("word").count("\n")
    assert not {"\x1b", "\u2028", "\udcff"} & {*text}
    if name != "markdown":  # which escapes the brackets, too
        assert text.count(ESCAPED) == write("word").count("word")


def test_csv_names_are_never_spreadsheet_formulas(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job", algorithm='=HYPERLINK("http://x")', dataset="-1+@")
    assert cli.main(["collect", str(tmp_path), "--format", "csv", "--select", "oracle"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith(""",oracle,'-1+@,env0,"'=HYPERLINK(""http://x"")",""")
