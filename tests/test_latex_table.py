"""``--format latex``: one tabular for a paper, with differences and their marks."""

import itertools
import re
import shutil

import collect_sweeps
import pytest
from latex import compile_document, needs_latex

from domainbed_carft import cli
from domainbed_carft.results import columns as table_columns

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
    command = ["collect", str(folder), "--format", "latex", *SELECT, *map(str, words)]
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
    assert table_columns.ranks([71.04, 70.96, 70.0, None, 69.9]) == [1, 1, 2, 0, 0]
    assert table_columns.ranks([None, 3.0]) == [0, 1]
    assert table_columns.ranks([4.0, 3.0, None]) == [1, 0, 0]  # of two, the second is the worst
    assert table_columns.ranks([]) == []


def test_errors_costs_and_what_is_the_same_for_all_have_no_rank():
    """Every column is listed here: the next one has to be thought about."""
    unranked = {
        *("step-seconds", "training-hours", "evaluation-hours", "memory"),
        *("parameters", "jobs", "draws"),
        *("ece", "ece-scaled", "nll", "nll-scaled", "brier", "brier-scaled", "temperature"),
        *("zero-shot", "flips", "gained", "lost"),
    }
    names = {*table_columns.COLUMNS}
    ranked = {name for name in names if table_columns.COLUMNS[name].is_ranked}
    assert ranked == names - unranked
    assert unranked < names


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
    assert "% Means over 2 to 3 trials" in text
    assert "% *: not complete" in text


def test_several_data_sets_have_a_column_each(sweep, tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["CARFT"], choices=1, dataset="VLCS")
    command = ["collect", str(sweep), str(tmp_path), "--format", "latex", *SELECT]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "% Means over 2 to 3 trials" in text  # not 0, of cells without jobs
    header, *rows = rows_of(text)

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


@needs_latex
def test_it_compiles_with_awkward_names(tmp_path, capsys):
    labels = ["art", "[50%_off]", "猫", "real | world"]
    collect_sweeps.write_sweep(tmp_path, ["An_Algorithm&more", "ERM"], environments=labels)
    words = ("--columns", "all", "--error", "sample", "--against", "An_Algorithm&more")

    (tmp_path / "tables.tex").write_text(latex_table(capsys, tmp_path, *words), encoding="utf-8")
    document = tmp_path / "paper.tex"
    document.write_text(DOCUMENT)
    compile_document(document)


def test_differences_are_a_last_column_with_their_marks(tmp_path, capsys):
    """BETTER is 1 to 4 points above ERM, so that its interval leaves out 0."""
    gains = {"BETTER": (0.01, 0.02, 0.03, 0.04), "CARFT": (0.01, -0.01, 0.01, -0.01)}
    gains["ERM"] = (0.0, 0.0, 0.0, 0.0)
    for algorithm, trial in itertools.product(gains, range(2)):
        for target, gain in enumerate(gains[algorithm]):
            job = collect_sweeps.write_job(
                tmp_path,
                f"{algorithm}-{target}-{trial}",
                algorithm=algorithm,
                test_envs=[target],
                trial_seed=trial,
            )
            accuracy = {f"env{target}_in_acc": 0.5 + gain}
            collect_sweeps.change_records(job, lambda record, new=accuracy: record | new)
    text = latex_table(capsys, tmp_path, "--against", "ERM")
    header, *rows = rows_of(text)
    assert header[-1] == r"$\Delta$ ERM"
    assert {row[0]: row[-1] for row in rows} == {
        "BETTER": r"$+2.5$$^{\dagger}$",
        "CARFT": "$+0.0$",
        "ERM": "--",
    }
    assert r"% \dagger: the 95% interval of the mean over environments" in text


def test_what_one_tabular_does_not_hold_is_refused(sweep, capsys):
    options = ["--format", "latex", "--compare", "published"]
    assert cli.main(["collect", str(sweep), *SELECT, *options]) == 1
    assert "--format latex holds one table of accuracies" in capsys.readouterr().err


def test_the_method_that_is_not_shown_is_named(sweep, capsys):
    assert cli.main(["collect", str(sweep), "--format", "latex"]) == 0
    assert "for another, use --select oracle" in capsys.readouterr().err
