"""``--format latex-table``: one tabular for a paper, with names from a file."""

import re
import shutil

import collect_sweeps
import pytest
from latex import compile_document, needs_latex

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.results import display_names, measures, ranking

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
SELECT = ("--select", "training-domain")


def latex_table(capsys, folder, *words):
    """What the command prints for a sweep, by training-domain validation."""
    command = ["collect", str(folder), "--format", "latex-table", *SELECT, *map(str, words)]
    assert cli.main(command) == 0
    return capsys.readouterr().out


def rows_of(text):
    """The rows of the tabular, the header first, as lists of cells."""
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r"\\")]
    return [line.split(" & ") for line in lines]


def percent(cell):
    """The mean of a cell, without marks."""
    return float(re.sub(r"\\textbf|\\underline|[{}]", "", cell).split()[0])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Four methods on PACS, three trials."""
    folder = tmp_path_factory.mktemp("sweep")
    collect_sweeps.write_sweep(folder, ["CARFT", "ERM", "Mixup", "A_B"], trials=3, choices=1)
    return folder


def test_the_cells_are_those_of_the_table_and_the_best_two_are_marked(sweep, capsys):
    header, *rows = rows_of(latex_table(capsys, sweep))
    table = collect_sweeps.tables(sweep, methods=["training-domain"])["", SELECT[1], "PACS"]
    assert header == ["Method", "A", "C", "P", "S", "Avg"]
    assert [row[0] for row in rows] == ["CARFT", r"A\_B", "ERM", "Mixup"]

    for row, expected in zip(rows, table["rows"], strict=True):
        for text, cell in zip(row[1:5], expected["cells"], strict=True):
            error = f"{cell['standard_error']:.1f}"
            assert (f"{percent(text):.1f}", text.split()[-1]) == (f"{cell['mean']:.1f}", error)
        assert f"{percent(row[5]):.1f}" == f"{expected['average']:.1f}"

    for column in range(1, 6):
        means = [percent(row[column]) for row in rows]
        first, second = sorted({*means}, reverse=True)[:2]
        assert [r"\textbf" in row[column] for row in rows] == [mean == first for mean in means]
        assert [r"\underline" in row[column] for row in rows] == [mean == second for mean in means]


def test_means_that_read_the_same_share_their_rank():
    assert ranking.ranks([71.04, 70.96, 70.0, None, 69.9]) == [1, 1, 2, 0, 0]
    assert ranking.ranks([None, 3.0]) == [0, 1]
    assert ranking.ranks([]) == []


def test_errors_costs_and_what_is_the_same_for_all_have_no_rank():
    """Every column is listed here: the next one has to be thought about."""
    unranked = {
        *("step-seconds", "training-hours", "evaluation-hours", "memory"),
        *("parameters", "jobs", "draws"),
        *("ece", "ece-scaled", "nll", "nll-scaled", "brier", "brier-scaled", "temperature"),
        *("zero-shot", "flips", "gained", "lost"),
    }
    columns = measures.choose(measures.NAMES, ["art"], runs=[])
    ranked = {column.name for column in columns if ranking.is_ranked(column)}
    assert ranked == {*measures.NAMES} - unranked
    assert unranked < {*measures.NAMES}


def test_an_incomplete_cell_has_a_star_and_no_rank(sweep, tmp_path, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep, folder)
    shutil.rmtree(folder / "ERM-1-2-0")
    for algorithm in ("CARFT", "Mixup", "A_B"):  # the incomplete one would be the best
        for trial in range(3):
            collect_sweeps.change_records(
                folder / f"{algorithm}-1-{trial}-0", lambda record: record | {"env1_in_acc": 0.01}
            )
    text = latex_table(capsys, folder)
    (row,) = (row for row in rows_of(text) if row[0] == "ERM")

    assert row[2].endswith("$^{*}$") and "textbf" not in row[2]
    assert row[5].endswith("$^{*}$") and "*" not in row[1]
    assert "% *: not complete" in text


def test_several_data_sets_have_a_column_each(sweep, tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["CARFT"], choices=1, dataset="VLCS")
    command = ["collect", str(sweep), str(tmp_path), "--format", "latex-table", *SELECT]
    assert cli.main(command) == 0
    header, *rows = rows_of(capsys.readouterr().out)

    assert header == ["Method", "VLCS", "PACS", "Avg"]
    assert rows[1][:2] == [r"A\_B", "--"]


def test_rows_of_several_settings_stand_in_one_table(tmp_path, capsys):
    for trial in range(2):
        for rate in (0.1, 0.2):
            collect_sweeps.write_job(
                tmp_path, f"{trial}-{rate}", trial_seed=trial, hparams=f'{{"lr": {rate}}}'
            )
    _, *rows = rows_of(latex_table(capsys, tmp_path))
    assert [row[0] for row in rows] == ["ERM; hparam lr 0.1", "ERM; hparam lr 0.2"]

    names = tmp_path / "names.yaml"
    names.write_text("methods: {'ERM; hparam lr 0.1': 'ERM, slow', ERM: ERM$^2$}\n")
    _, *rows = rows_of(latex_table(capsys, tmp_path, "--names", names))
    assert [row[0] for row in rows] == ["ERM, slow", "ERM$^2$; hparam lr 0.2"]


@needs_latex
def test_it_compiles_with_names_from_a_file(sweep, tmp_path, capsys):
    names = tmp_path / "names.yaml"
    names.write_text(
        "methods:\n  CARFT: CAR-FT \\emph{(ours)}\nenvironments: {A: Art, S: 'R\\&D'}\n"
    )
    words = ("--names", names, "--full", "--error", "sample")
    text = latex_table(capsys, sweep, *words)
    assert r"CAR-FT \emph{(ours)} & " in text and r"Art & C & P & R\&D & Avg" in text

    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    document = tmp_path / "paper.tex"
    document.write_text(DOCUMENT)
    compile_document(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: {CARFT: x}", "names.yaml:1.*did you mean methods"),
        ("methods: [CARFT]", "names.yaml:1: methods.*expected a mapping"),
        ("methods:\n  CARFT: 3", "names.yaml:2: methods.CARFT.*got 3, expected text"),
        ("- a", "expected a mapping with methods, datasets, environments"),
        ("a: [", "names.yaml:1.*not YAML"),
    ],
)
def test_a_wrong_file_of_names_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "names.yaml"
    path.write_text(text)
    with pytest.raises(CarftError, match=message):
        display_names.read(path)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--format", "latex-table", "--compare", "published"], "--format latex for --compare"),
        (["--format", "latex", "--names", "x"], "--names goes with --format latex-table"),
        (["--format", "latex-table", "--names", "missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(sweep, capsys, options, remedy):
    assert cli.main(["collect", str(sweep), *SELECT, *options]) == 1
    assert remedy in capsys.readouterr().err


def test_the_method_that_is_not_shown_is_named(sweep, capsys):
    assert cli.main(["collect", str(sweep), "--format", "latex-table"]) == 0
    assert "for another, use --select oracle" in capsys.readouterr().err
