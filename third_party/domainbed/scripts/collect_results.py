"""Print a sweep's tables: `python -m domainbed.scripts.collect_results --help`.

The tables equal those of upstream file domainbed/scripts/collect_results.py at b93c22a to the byte.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainbed import algorithms, datasets, model_selection
from domainbed.lib import checks, misc, reporting
from domainbed.lib.command_line import exit_status, printed_at_once
from domainbed.lib.query import Q
from domainbed_carft import files
from domainbed_carft.errors import CarftError

SELECTION_METHODS: tuple[type[model_selection.SelectionMethod], ...] = (
    model_selection.IIDAccuracySelectionMethod,
    model_selection.LeaveOneOutSelectionMethod,
    model_selection.OracleSelectionMethod,
)


def format_mean(data: Iterable[float], latex: bool) -> tuple[Any, Any, str]:
    """Format a cell of a table.

    Args:
        data: Accuracies of the trials, as fractions.
        latex: If True, the text is LaTeX.

    Returns:
        Mean and standard error (ddof 0) in percent, and the text; (None, None, "X") without data.
    """
    accuracies = np.fromiter(data, dtype=float)
    if accuracies.size == 0:
        return None, None, "X"

    # Divide before std(), as upstream does: the last bit decides how a half is rounded.
    shares = accuracies / accuracies.size**0.5
    mean = 100 * accuracies.mean()
    error = 100 * shares.std()
    sign = "$\\pm$" if latex else "+/-"
    return mean, error, f"{mean:.1f} {sign} {error:.1f}"


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
        table: Rows of cells.
        header_text: Title; not printed in LaTeX.
        row_labels: Label of each row.
        col_labels: Label of each column, beginning with the column of row labels.
        colwidth: Width of a cell in characters.
        latex: If True, print LaTeX instead of text.
    """
    rows = [[label, *cells] for label, cells in zip(row_labels, table, strict=True)]
    print()
    if not latex:
        print("--------", header_text)
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


def labels_by_dataset(records: Q) -> dict[str, list[str]]:
    """Map each dataset that has tables to its environments' names, in the order of the tables.

    Datasets in DATASETS come first. Users' own datasets follow, whose names are in the records.

    Raises:
        CarftError: Jobs of one dataset have different environments, which need separate tables.
    """
    recorded = records.select("args.dataset").unique()
    result = {
        name: list(datasets.get_dataset_class(name).ENVIRONMENTS)
        for name in datasets.DATASETS
        if name in recorded and not checks.dataset_problems(name)
    }

    for record in records:
        name = record["args"]["dataset"]
        labels = record.get("environments")
        if name in datasets.DATASETS or not labels:
            continue
        if result.setdefault(name, labels) != labels:
            raise CarftError(
                f"the jobs of {name} have different environments: {', '.join(result[name])}; "
                f"{', '.join(labels)}. Use `carft collect`, which prints separate tables"
            )
    return result


def print_results_tables(
    records: Q, selection_method: type[model_selection.SelectionMethod], latex: bool
) -> None:
    """Print a table for each dataset, then one of the averages over environments."""
    tested = reporting.get_grouped_records(records).map(
        lambda group: group | {"sweep_acc": selection_method.sweep_acc(group["records"])}
    )
    groups = tested.filter(lambda group: group["sweep_acc"] is not None)

    # Upstream's algorithms in the order of upstream's list, then all others in order of appearance.
    recorded = records.select("args.algorithm").unique()
    order = dict.fromkeys(["ERM", *algorithms.NOT_INCLUDED, *algorithms.ALGORITHMS, *recorded])
    algorithm_names = [name for name in order if name in recorded]
    columns = labels_by_dataset(records)
    method = f"model selection method: {selection_method.name}"

    def accuracies(algorithm: str, dataset: str, test_env: int) -> Q:
        cell = (dataset, algorithm, test_env)
        return groups.filter_equals("dataset,algorithm,test_env", cell).select("sweep_acc")

    for dataset, labels in columns.items():
        envs = range(len(labels))
        trials = {name: [accuracies(name, dataset, i) for i in envs] for name in algorithm_names}
        if latex:
            print(f"\n\\subsubsection{{{dataset}}}")
        _print_means(trials, f"Dataset: {dataset}, {method}", labels, 20, latex)

    trials = {
        name: [_trial_means(groups, dataset, name) for dataset in columns]
        for name in algorithm_names
    }
    if latex:
        print("\n\\subsubsection{Averages}")
    _print_means(trials, f"Averages, {method}", list(columns), 25, latex)


def _trial_means(groups: Q, dataset: str, algorithm: str) -> Q:
    trials = groups.filter_equals("dataset,algorithm", (dataset, algorithm)).group("trial_seed")
    return trials.map(lambda _, group: group.select("sweep_acc").mean())


def _print_means(
    rows: Mapping[str, Sequence[Q]], header: str, columns: Sequence[str], width: int, latex: bool
) -> None:
    """Print mean and standard error of each cell's accuracies, and the average of each row."""
    table = []
    for row in rows.values():
        cells = [format_mean(cell, latex) for cell in row]
        means = [mean for mean, _, _ in cells]
        is_complete = means and None not in means
        average = f"{sum(means) / len(means):.1f}" if is_complete else "X"
        table.append([*(text for _, _, text in cells), average])

    print_table(table, header, list(rows), ["Algorithm", *columns, "Avg"], width, latex)


def print_report(records: Q, latex: bool) -> None:
    """Print the tables of every selection method, as upstream does."""
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
    labels_by_dataset(records)
    command = f"carft collect {shlex.quote(folder)}"
    print(
        f"To see missing jobs, and jobs without a test environment, run `{command}`",
        file=sys.stderr,
    )

    with printed_at_once() as printed:
        print_report(records, latex)
        path = Path(folder, "results.tex" if latex else "results.txt")
        files.save_text(path, printed.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.collect_results", description="Print the tables of a sweep"
    )
    parser.add_argument("--input_dir", required=True, help="the sweep's --output_dir")
    parser.add_argument("--latex", action="store_true", help="print LaTeX instead of text")
    args = parser.parse_args(argv)
    return exit_status("collect_results", lambda: run(args.input_dir, args.latex))


if __name__ == "__main__":
    sys.exit(main())
