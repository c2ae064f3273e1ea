"""The same tables as text, Markdown, CSV and LaTeX, and records as a frame."""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.results import columns as table_columns
from domainbed_carft.results import formats
from domainbed_carft.results.collect import collect
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.latex import escape_latex

HOSTILE = "two\nlines \x1b[31mred \u2028\udcff"
ESCAPED = "two\\nlines \\x1b[31mred \\u2028\\udcff"


@pytest.fixture
def document(tmp_path):
    labels = ["art", "[50%_off]", "猫", "real | world"]
    collect_sweeps.write_sweep(
        tmp_path, ["An_Algorithm&more", "ERM"], dataset="./my_data", environments=labels
    )
    shutil.rmtree(tmp_path / "ERM-0-0-0")
    return collect(tmp_path)


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
    document = collect(tmp_path, methods=methods)
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
    rows = collect(tmp_path).records.set_index(["folder", "step"])
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
        collect(tmp_path, compare_published=True).write("csv")


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


DOCUMENT = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{
  \let\toprule\hline \let\midrule\hline \let\bottomrule\hline}
\begin{document}
\begin{table}
\caption{Ours.}
\input{tables}
\end{table}
\end{document}
"""
COMPILER = shutil.which("pdflatex") or shutil.which("tectonic")


def latex(folders, **options):
    return collect(folders, methods=["training-domain"], **options).write("latex")


def rows_of(text):
    """The rows of the tabular, the header first, as lists of cells."""
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    return [line.split(" & ") for line in lines]


def percent(cell):
    return float(re.sub(r"\\textbf|\\underline|[{}]", "", cell).split()[0])


def test_cells_equal_the_tables_and_the_best_two_are_marked(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM", "Mixup", "A_B"], trials=3, choices=1)
    header, *rows = rows_of(latex(tmp_path))
    table = collect(tmp_path, methods=["training-domain"]).tables[0]
    assert header == ["Method", "A", "C", "P", "S", "Avg"]
    assert [row[0] for row in rows] == ["CARFT", r"A\_B", "ERM", "Mixup"]

    for row, expected in zip(rows, table.rows, strict=True):
        for text, cell in zip(row[1:5], expected.cells, strict=True):
            accuracy = f"{cell.mean:.1f} {cell.standard_error:.1f}"
            assert f"{percent(text):.1f} {text.split()[-1]}" == accuracy
        assert f"{percent(row[5]):.1f}" == f"{expected.average:.1f}"
    for column in range(1, 6):
        means = [percent(row[column]) for row in rows]
        first, second = sorted({*means}, reverse=True)[:2]
        assert [r"\textbf" in row[column] for row in rows] == [mean == first for mean in means]
        assert [r"\underline" in row[column] for row in rows] == [mean == second for mean in means]


@pytest.mark.parametrize(
    ("means", "ranks"),
    [
        ([71.04, 70.96, 70.0, None, 69.9], [1, 1, 2, 0, 0]),  # the first two read the same
        ([None, 3.0], [0, 1]),
        ([4.0, 3.0, None], [1, 0, 0]),  # of two, the second is the worst
        ([], []),
    ],
)
def test_means_that_read_the_same_share_their_rank(means, ranks):
    assert table_columns.ranks(means) == ranks


def test_datasets_are_columns_and_settings_are_rows(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "a", ["CARFT"], choices=1, dataset="VLCS")
    collect_sweeps.write_sweep(tmp_path / "b", ["CARFT", "A_B"], trials=3, choices=1)
    text = latex(tmp_path)
    header, *rows = rows_of(text)
    assert header == ["Method", "VLCS", "PACS", "Avg"]
    assert rows[1][:2] == [r"A\_B", "--"]
    assert "% Means over 2 to 3 trials" in text  # not 0, of cells without jobs

    collect_sweeps.write_sweep(tmp_path / "c", ["A_B"], choices=1, steps=1)
    _, *rows = rows_of(latex([tmp_path / "b", tmp_path / "c"]))
    labels = [row[0] for row in rows]
    assert labels == [r"A\_B; steps 1", "CARFT; steps default", r"A\_B; steps default"]


def test_differences_are_a_last_column_with_their_marks(tmp_path):
    """BETTER is 1 to 4 points above ERM, so that its interval leaves out 0."""
    gains = {"BETTER": (0.01, 0.02, 0.03, 0.04), "CARFT": (0.01, -0.01, 0.01, -0.01)}
    gains["ERM"] = (0.0, 0.0, 0.0, 0.0)
    for algorithm, trial, target in itertools.product(gains, range(2), range(4)):
        job = collect_sweeps.write_job(
            tmp_path,
            f"{algorithm}-{target}-{trial}",
            algorithm=algorithm,
            test_envs=[target],
            trial_seed=trial,
        )
        accuracy = {f"env{target}_in_acc": 0.5 + gains[algorithm][target]}
        collect_sweeps.change_records(job, lambda record, new=accuracy: record | new)
    text = latex(tmp_path, against="ERM")
    header, *rows = rows_of(text)
    assert header[-1] == r"$\Delta$ ERM"
    differences = {row[0]: row[-1] for row in rows}
    assert differences == {"BETTER": r"$+2.5$$^{\dagger}$", "CARFT": "$+0.0$", "ERM": "--"}
    assert r"% \dagger: the 95% interval of the mean over environments" in text

    shutil.rmtree(tmp_path / "BETTER-1-0")
    text = latex(tmp_path, against="ERM")
    assert r"$^{\dagger}$$^{*}$" in text and "% *: incomplete" in text


def test_special_characters_are_escaped():
    escaped = escape_latex('a_b & 50% of $x^2 #1 {y} ~ \\z <i> | `*"[k]" -- --flag é 猫')
    assert escaped.startswith(r"a\_b \& 50\% of \$x\textasciicircum{}2 \#1 \{y\} ")
    assert "{-}{-}flag é (U+732B)" in escaped


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs pdflatex (Debian: texlive-latex-base)")
def test_a_table_with_awkward_names_compiles(tmp_path):
    labels = ["art", "[50%_off]", "猫", "real | world"]
    algorithms = ["An_Algorithm&more", "ERM"]
    collect_sweeps.write_sweep(tmp_path / "sweep", algorithms, environments=labels)
    text = latex(tmp_path / "sweep", columns=["all"], error="sample", against=algorithms[0])
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    (tmp_path / "paper.tex").write_text(DOCUMENT)

    flags = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in COMPILER else []
    subprocess.run([COMPILER, *flags, "paper.tex"], cwd=tmp_path, check=True)
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
