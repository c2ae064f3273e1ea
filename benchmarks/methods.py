"""Methods side by side, from the records of a sweep: accuracies, and paired differences.

    carft sweep launch peers-emoji --output_dir OUT
    python benchmarks/methods.py OUT [--against CARFT] [--markdown]

A row for each algorithm of each variant. The checkpoint is chosen by training-domain validation, so
the target is never looked at. ``out-of-domain`` is the accuracy on the environment left out (its
in-split, as DomainBed reports), ``in-domain`` the mean accuracy on the out-splits of the
environments trained on, by which it was chosen, both in % at that checkpoint; means over (target,
trial). Differences are from ``--against``, over the (target, trial) that both have, in points, with
the standard error of their mean in parentheses, in which the environments of a family are one unit
(EmojiUnseen's three of EmojiOne). ``*`` marks the learning rate with the highest
in-domain accuracy among variants that differ in nothing else.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from domainbed_carft.data import benchmarks
from domainbed_carft.jobs import records
from domainbed_carft.report import frames
from domainbed_carft.results.paired import clustered_error

OUT, IN = "out_of_domain", "in_domain"


def selected(folder: Path) -> pd.DataFrame:
    """The chosen checkpoint of each run below ``folder``, with its ``method``."""
    runs, faults = records.read([folder])
    for line in records.describe_warnings(faults):
        print(line)
    by_variant: dict[str, list[records.Run]] = {}
    for run in runs:
        variant = Path(run.folder).parent.relative_to(folder).as_posix()
        by_variant.setdefault("" if variant == "." else variant, []).append(run)
    found = []
    for variant, mine in by_variant.items():
        frame = frames.checkpoints([run for run in mine if run.done], "training-domain")
        frame["method"] = (variant + " " + frame["algorithm"]).str.strip()
        found.append(frame[frame["selected"]])
    return pd.concat(found, ignore_index=True)


def paired(chosen: pd.DataFrame, a: str, b: str, column: str) -> pd.Series:
    """``column`` of the method ``a`` minus that of ``b``, over (target, trial) that both have."""
    index = ["dataset", "target", "trial"]
    table = chosen.pivot_table(index=index, columns="method", values=column)
    return (table[a] - table[b]).dropna()


def standard_error(gap: pd.Series) -> float:
    """Of the mean of what `paired` returns; NaN for a single unit."""
    units = []
    for dataset, target, trial in gap.index:
        unit = benchmarks.independent_unit(dataset, target)
        units.append(f"{unit} {trial}" if unit == str(target) else unit)
    error = clustered_error(gap.to_list(), units)
    return float("nan") if error is None else error


def rows(chosen: pd.DataFrame, against: str) -> list[dict[str, object]]:
    """A row a method, the best in domain first."""
    found = []
    order = chosen.groupby("method")[IN].mean().sort_values(ascending=False)
    of_rates: dict[str, str] = {}
    for method in order.index:
        of_rates.setdefault(re.sub(r"\blr=[^, ]*", "lr", method), method)
    for method in order.index:
        mine = chosen[chosen["method"] == method]
        best = "lr=" in method and method in of_rates.values()
        row = {"method": method + " *" * best, "runs": len(mine)}
        row |= {f"target {t}": 100 * v for t, v in mine.groupby("target")[OUT].mean().items()}
        for name, column in (("out-of-domain", OUT), ("in-domain", IN)):
            row[name] = 100 * mine[column].mean()
            if against in order.index and method != against:
                gap = 100 * paired(chosen, method, against, column)
                row[f"{name} - {against}"] = f"{gap.mean():+.2f} ({standard_error(gap):.2f})"
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="output folder of a sweep")
    parser.add_argument("--against", default="CARFT", help="the method to compare with, as printed")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    arguments = parser.parse_args()
    chosen = selected(arguments.sweep)
    if arguments.against not in set(chosen["method"]):
        print(f"no {arguments.against}: no differences; there are {sorted(set(chosen['method']))}")
    style = "github" if arguments.markdown else "simple"
    table = rows(chosen, arguments.against)
    print(tabulate(table, headers="keys", tablefmt=style, floatfmt=".1f", missingval="-"))


if __name__ == "__main__":
    main()
