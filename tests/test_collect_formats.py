"""Tables as text, Markdown, CSV and LaTeX, and records as a data frame."""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess

import collect_sweeps
import numpy as np
import pytest

from domainbed_carft import cli
from domainbed_carft.results import formats
from domainbed_carft.results.cells import Cell, rank_cells
from domainbed_carft.results.collect import collect
from domainbed_carft.results.formats import Grid
from domainbed_carft.results.latex import escape_latex

HOSTILE = "two\nlines \x1b[31mred \u2028\udcff"
ESCAPED = "two\\nlines \\x1b[31mred \\u2028\\udcff"


def test_text_has_numbered_notes_and_markdown_escapes_names(tmp_path):
    labels = ["art", "[50%_off]", "猫", "real | world"]
    algorithms = ["An_Algorithm&more", "ERM"]
    collect_sweeps.write_sweep(tmp_path, algorithms, dataset="./my_data", environments=labels)
    shutil.rmtree(tmp_path / "ERM-0-0-0")
    results = collect(tmp_path)
    lines = results.write("text").splitlines()
    title = lines.index("my_data; training-domain validation set")
    assert re.match(r"ERM +\d+\.\d \+/- \d+\.\d \(2\) \[1\]  ", lines[title + 3])
    assert lines[title + 4] == "[1] no job --test_envs 0: trial 0 hparams_seed 0."

    rows = [line for line in results.write("markdown").splitlines() if line.startswith("|")]
    assert r"\[50%\_off\]" in rows[0] and r"An\_Algorithm\&more" in rows[2]
    assert {row.replace(r"\|", "").count("|") for row in rows[:4]} == {7}


def test_wide_tables_are_divided_into_parts_with_the_first_column():
    header = ["Algorithm", *(f"column {number}" for number in range(20))]
    rows = [[name, *(f"{name}{number:09}" for number in range(20))] for name in ("A", "B")]
    text = formats.as_text([Grid("Title", header, rows, ["A note"])], [])

    title, *lines, note = text.splitlines()
    assert (title, note) == ("Title", "A note") and max(map(len, lines)) <= 120
    parts = [part.splitlines() for part in "\n".join(lines).split("\n\n")]
    words = [[re.split("  +", line) for line in part] for part in parts]
    assert len(parts) == 3 and all(first[0] == "Algorithm" for first, *_ in words)
    for number, expected in enumerate([header, *rows]):
        assert [expected[0], *(cell for part in words for cell in part[number][1:])] == expected


def test_csv_contains_cells_without_a_value(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    results = collect(tmp_path, methods=["training-domain", "leave-one-domain-out"])
    rows = list(csv.DictReader(io.StringIO(results.write("csv"))))
    places = [*"ACPS", "average", "PACS", "average"]
    assert [row["of"] or row["column"] for row in rows] == 2 * places
    assert float(rows[1]["mean"]) == results.tables[0].accuracy_cells[1].mean
    assert {(row["mean"], row["n"], bool(row["missing"])) for row in rows[7:]} == {("", "0", True)}
    assert results.cells["mean"].isna().tolist() == [False] * 7 + [True] * 7


def test_records_equal_the_files_and_are_nan_for_other_environments(tmp_path):
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


@pytest.mark.parametrize("name", ["text", "markdown", "csv"])
def test_control_characters_are_escaped(name):
    def write(word):
        grid = Grid(word, ["a", word], [[word, word]], [word])
        if name == "csv":
            return formats.as_csv([{"a": word}])
        return getattr(formats, f"as_{name}")([grid], [word])

    text = write(HOSTILE)
    assert text.count("\n") == write("word").count("\n")
    assert not {"\x1b", "\u2028", "\udcff"} & {*text}
    if name != "markdown":  # escapes the brackets as well
        assert text.count(ESCAPED) == write("word").count("word")


def test_csv_names_are_never_spreadsheet_formulas(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job", algorithm='=HYPERLINK("http://x")', dataset="-1+@")
    assert cli.main(["collect", str(tmp_path), "--format", "csv", "--select", "oracle"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith(""",oracle,'-1+@,"'=HYPERLINK(""http://x"")",environments,env0,""")


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


def write_latex(folders, **options):
    return collect(folders, methods=["training-domain"], **options).write("latex")


def parse_rows(text):
    """Return the rows of the tabular as lists of cells, the header first."""
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    return [line.split(" & ") for line in lines]


def test_latex_equals_the_tables_and_marks_the_best_two(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "ERM", "Mixup", "A_B"], trials=3, choices=1)
    header, *rows = parse_rows(write_latex(tmp_path))
    table = collect(tmp_path, methods=["training-domain"]).tables[0]
    assert header == ["Method", "A", "C", "P", "S", "Avg"]
    assert [row[0] for row in rows] == ["CARFT", r"A\_B", "ERM", "Mixup"]

    plain_rows = [[re.sub(r"\\textbf|\\underline|[{}]", "", text) for text in row] for row in rows]
    for texts, row in zip(plain_rows, table.rows.values(), strict=True):
        *cells, average = (row[column] for column in table.printed)
        expected = [f"{cell.mean:.1f} $\\pm$ {cell.standard_error:.1f}" for cell in cells]
        assert texts[1:] == [*expected, f"{average.mean:.1f}"]
    for column in range(1, 6):
        means = [float(texts[column].split()[0]) for texts in plain_rows]
        first, second = sorted({*means}, reverse=True)[:2]
        assert [r"\textbf" in row[column] for row in rows] == [mean == first for mean in means]
        assert [r"\underline" in row[column] for row in rows] == [mean == second for mean in means]


@pytest.mark.parametrize(
    ("means", "ranks"),
    [
        ([71.04, 70.96, 70.0, None, 69.9], [1, 1, 2, 0, 0]),  # the first two print alike
        ([None, 3.0], [0, 1]),
        ([4.0, 3.0, None], [1, 0, 0]),  # the second of two is the worst
        ([], []),
    ],
)
def test_means_that_print_alike_share_a_rank(means, ranks):
    assert rank_cells(map(Cell, means)) == ranks


def test_latex_has_datasets_as_columns_and_settings_as_rows(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "a", ["CARFT"], choices=1, dataset="VLCS")
    collect_sweeps.write_sweep(tmp_path / "b", ["CARFT", "A_B"], trials=3, choices=1)
    text = write_latex(tmp_path)
    header, *rows = parse_rows(text)
    assert header == ["Method", "VLCS", "PACS", "Avg"]
    assert rows[1][:2] == [r"A\_B", "--"]
    assert "% Means over 2 to 3 trials" in text  # cells without jobs do not count

    collect_sweeps.write_sweep(tmp_path / "c", ["A_B"], choices=1, steps=1)
    _, *rows = parse_rows(write_latex([tmp_path / "b", tmp_path / "c"]))
    labels = [row[0] for row in rows]
    assert labels == [r"A\_B; steps 1", "CARFT; steps default", r"A\_B; steps default"]


def test_latex_has_a_column_for_each_dataset_if_nothing_is_held_out(tmp_path):
    """CARFT is best on PACS, and ERM on VLCS; only OTHER has no job on VLCS."""
    accuracies = {
        "PACS": {"CARFT": (0.9, 0.8), "ERM": (0.7, 0.6), "OTHER": (0.5, 0.3)},
        "VLCS": {"CARFT": (0.1, 0.2), "ERM": (0.3, 0.5)},
    }
    for dataset, by_algorithm in accuracies.items():
        for algorithm, trials in by_algorithm.items():
            for trial, accuracy in enumerate(trials):
                name = f"{dataset}-{algorithm}-{trial}"
                facts = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial}
                job = collect_sweeps.write_job(tmp_path, name, test_envs=[], **facts)
                out = {f"env{env}_out_acc": accuracy for env in range(4)}
                collect_sweeps.change_records(job, lambda record, new=out: record | new)

    text = collect(tmp_path, methods=["in-domain"], against="ERM").write("latex")
    header, *rows = parse_rows(text)
    assert header == ["Method", "VLCS", "PACS", "Avg", r"$\Delta$ ERM"]
    assert rows == [
        ["CARFT", r"15.0 $\pm$ 3.5", r"\textbf{85.0} $\pm$ 3.5", "50.0", "$-2.5$"],
        ["ERM", r"\textbf{40.0} $\pm$ 7.1", r"\underline{65.0} $\pm$ 3.5", r"\textbf{52.5}", "--"],
        ["OTHER", "--", r"40.0 $\pm$ 7.1", "--", "$-25.0$$^{*}$"],
    ]


def test_latex_marks_differences_in_the_last_column(tmp_path):
    """BETTER is 1 to 4 points above ERM, so that its interval does not contain 0."""
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
    text = write_latex(tmp_path, against="ERM")
    header, *rows = parse_rows(text)
    assert header[-1] == r"$\Delta$ ERM"
    differences = {row[0]: row[-1] for row in rows}
    assert differences == {"BETTER": r"$+2.5$$^{\dagger}$", "CARFT": "$+0.0$", "ERM": "--"}

    shutil.rmtree(tmp_path / "BETTER-1-0")
    text = write_latex(tmp_path, against="ERM")
    assert r"$^{\dagger}$$^{*}$" in text and "% *: incomplete" in text


def test_latex_escapes_special_characters():
    escaped = escape_latex('a_b & 50% of $x^2 #1 {y} ~ \\z <i> | `*"[k]" -- --flag é 猫')
    assert escaped.startswith(r"a\_b \& 50\% of \$x\textasciicircum{}2 \#1 \{y\} ")
    assert "{-}{-}flag é (U+732B)" in escaped


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs pdflatex (Debian: texlive-latex-base)")
def test_latex_with_special_names_compiles(tmp_path):
    labels = ["art", "[50%_off]", "猫", "real | world"]
    algorithms = ["An_Algorithm&more", "ERM"]
    collect_sweeps.write_sweep(tmp_path / "sweep", algorithms, environments=labels)
    text = write_latex(tmp_path / "sweep", columns=["all"], error="sample", against=algorithms[0])
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    (tmp_path / "paper.tex").write_text(DOCUMENT)

    flags = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in COMPILER else []
    subprocess.run([COMPILER, *flags, "paper.tex"], cwd=tmp_path, check=True)
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_latex_marks_corrected_p_values_of_differences_with_equal_weights(tmp_path):
    """Against ERM on VLCS and PACS; of the six rows that are compared, one is better.

    BETTER is 1 to 4 points better on PACS, and 5.1 to 7.1 on three environments of VLCS.
    """
    gains = {"BETTER": {"PACS": 0, "VLCS": 4.1}, "ERM": {}}
    gains |= {name: {} for name in ("A", "B", "C", "D", "E")}
    for algorithm, dataset, target in itertools.product(gains, ("PACS", "VLCS"), range(4)):
        if dataset == "VLCS" and target == 3:
            continue
        job = collect_sweeps.write_job(
            tmp_path,
            f"{algorithm}-{dataset}-{target}",
            algorithm=algorithm,
            dataset=dataset,
            test_envs=[target],
        )
        gain = 0.0
        if algorithm == "BETTER":
            gain = (1 + target + gains[algorithm][dataset]) / 100
        elif algorithm != "ERM":
            gain = (-1) ** target / 100
        accuracy = {f"env{target}_in_acc": 0.5 + gain}
        collect_sweeps.change_records(job, lambda record, new=accuracy: record | new)

    results = collect(tmp_path, methods=["training-domain"], against="ERM")
    (entry,) = (
        entry
        for entry in results.comparisons_against
        if (entry.algorithm, entry.unit) == ("BETTER", "environment")
    )
    # 7 equal signs: p = 2 / 2^7, times 6 rows
    assert (entry.p, entry.p_holm) == pytest.approx((2 / 128, 12 / 128))
    rows = {row[0]: row[-1] for row in parse_rows(results.write("latex"))}
    equal_weights = (np.mean([1, 2, 3, 4]) + np.mean([5.1, 6.1, 7.1])) / 2
    assert rows["BETTER"] == f"${equal_weights:+.1f}$$^{{\\dagger}}$$^{{*}}$"
