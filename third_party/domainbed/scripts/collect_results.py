"""Print a sweep's tables: `python -m domainbed.scripts.collect_results --help`.

The tables equal those of upstream file domainbed/scripts/collect_results.py at b93c22a to the byte.
"""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed import algorithms
from domainbed.lib import misc, reporting
from domainbed.lib.command_line import exit_status, printed_at_once
from domainbed.lib.query import Q
from domainbed.model_selection import SELECTION_METHODS, SelectionMethod
from domainbed_carft import escaping, files
from domainbed_carft.flags import FlagParser
from domainbed_carft.results.cells import Cell, mean_over_trials


def format_mean(data: Iterable[float], latex: bool) -> tuple[Any, Any, str]:
    """Format a cell of a table.

    Args:
        data: accuracies of the trials, as fractions.
        latex: if True, the text is LaTeX.

    Returns:
        Mean and standard error (ddof 0) in percent, and the text; (None, None, "X") without data.
    """
    return _format_cell(mean_over_trials(enumerate(data)), latex)


def _format_cell(cell: Cell, latex: bool) -> tuple[Any, Any, str]:
    """Format a cell as `format_mean` does."""
    if cell.mean is None:
        return None, None, "X"

    error = cell.standard_error or 0.0  # upstream prints an error of a single trial
    sign = "$\\pm$" if latex else "+/-"
    return cell.mean, error, f"{cell.mean:.1f} {sign} {error:.1f}"


def print_table(
    table: Sequence[Sequence[Any]],
    header_text: str,
    row_labels: Sequence[str],
    col_labels: Sequence[str],
    colwidth: int = 10,
    latex: bool = True,
) -> None:
    """Print a table.

    Args:
        table: rows of cells.
        header_text: title; not printed in LaTeX.
        row_labels: label of each row.
        col_labels: label of each column, beginning with the column of row labels.
        colwidth: width of a cell in characters.
        latex: if True, print LaTeX instead of text.
    """
    rows = [[label, *cells] for label, cells in zip(row_labels, table, strict=True)]
    print()
    if not latex:
        print("--------", escaping.printable(header_text))
        for row in [col_labels, *rows]:
            misc.print_row(row, colwidth=colwidth)
        return

    print("\\begin{center}\n\\adjustbox{max width=\\textwidth}{%")
    columns = len(table[0]) if table else len(col_labels) - 1
    print(f"\\begin{{tabular}}{{l{'c' * columns}}}\n\\toprule")
    misc.print_row((f"\\textbf{{{label}}}" for label in col_labels), colwidth, latex=True)
    print("\\midrule")
    for row in rows:
        misc.print_row(row, colwidth=colwidth, latex=True)
    print("\\bottomrule\n\\end{tabular}}\n\\end{center}")


def print_results_tables(records: Q, selection_method: type[SelectionMethod], latex: bool) -> None:
    """Print a table for each dataset, then one of the averages over environments."""
    selected = _select_accuracies(records, selection_method)
    # Upstream's algorithms in the order of upstream's list, then all others in order of appearance.
    recorded = records.select("args.algorithm").unique()
    order = dict.fromkeys(["ERM", *algorithms.NOT_INCLUDED, *algorithms.ALGORITHMS, *recorded])
    names = [name for name in order if name in recorded]
    labels_by_dataset = reporting.get_environment_labels(records)
    method = f"model selection method: {selection_method.name}"

    for dataset, labels in labels_by_dataset.items():
        rows = {
            name: [
                mean_over_trials(
                    (trial, accuracy)
                    for env, trial, accuracy in selected[name, dataset]
                    if env == test_env
                )
                for test_env in range(len(labels))
            ]
            for name in names
        }
        if latex:
            print(f"\n\\subsubsection{{{escaping.printable(dataset)}}}")
        _print_means(rows, f"Dataset: {dataset}, {method}", labels, 20, latex)

    averages = {
        name: [
            # Upstream sorts the trials, and the last bit of a mean depends on their order.
            mean_over_trials(
                sorted((item[1:] for item in selected[name, dataset]), key=lambda item: item[0])
            )
            for dataset in labels_by_dataset
        ]
        for name in names
    }
    if latex:
        print("\n\\subsubsection{Averages}")
    _print_means(averages, f"Averages, {method}", list(labels_by_dataset), 25, latex)


def _select_accuracies(
    records: Q, selection_method: type[SelectionMethod]
) -> defaultdict[tuple[str, str], list[tuple[int, int, float]]]:
    """Return (algorithm, dataset) -> (test environment, trial, accuracy of the selected run)."""
    selected: defaultdict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for group in reporting.get_grouped_records(records):
        accuracy = selection_method.sweep_acc(group["records"])
        if accuracy is not None:
            row = selected[group["algorithm"], group["dataset"]]
            row.append((group["test_env"], group["trial_seed"], accuracy))
    return selected


def _print_means(
    rows: Mapping[str, Sequence[Cell]],
    header: str,
    labels: Sequence[str],
    width: int,
    latex: bool,
) -> None:
    """Print mean and standard error of each cell's accuracies, and the average of each row."""
    table = []
    for row in rows.values():
        cells = [_format_cell(cell, latex) for cell in row]
        means = [mean for mean, _, _ in cells]
        is_complete = means and None not in means
        average = f"{sum(means) / len(means):.1f}" if is_complete else "X"
        table.append([*(text for _, _, text in cells), average])

    print_table(table, header, list(rows), ["Algorithm", *labels, "Avg"], width, latex)


def print_report(records: Q, latex: bool) -> None:
    """Print the tables of every selection rule, as upstream does."""
    if latex:
        print("\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{adjustbox}")
        print("\\begin{document}\n\\section{Full DomainBed results}")
        print("% Total records:", len(records))
    else:
        print("Total records:", len(records))
    for method in SELECTION_METHODS:
        if latex:
            print(f"\n\\subsection{{Model selection: {method.name}}}")
        print_results_tables(records, method, latex)
    if latex:
        print("\\end{document}")


def run(folder: str, latex: bool) -> None:
    """Read the records, print the report, and write it to a file in the folder."""
    records = reporting.load_records(folder)
    command = f"carft collect {shlex.quote(folder)}"

    with printed_at_once() as printed:
        print_report(records, latex)
        print(
            f"To see missing jobs, and jobs without a test environment, run `{command}`",
            file=sys.stderr,
        )
        path = Path(folder, "results.tex" if latex else "results.txt")
        files.save_text(path, printed.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = FlagParser(
        prog="domainbed.scripts.collect_results", description="Print the tables of a sweep"
    )
    parser.add_argument("--input_dir", required=True, help="the sweep's --output_dir")
    parser.add_argument("--latex", action="store_true", help="print LaTeX instead of text")
    args = parser.parse_args(argv)
    return exit_status("collect_results", lambda: run(args.input_dir, args.latex))


if __name__ == "__main__":
    sys.exit(main())
