"""Print the tables of README and docs/peers.md, from the packed records of fresh-emoji.

    tar -xf benchmarks/records/fresh-emoji.tar.xz
    python tools/fresh_table.py fresh-emoji

A row for each method, the most accurate first: its accuracies at the checkpoint that
training-domain validation chooses, and the difference from CAR-FT with its intervals over targets,
trials and pairs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from domainbed_carft.results import collection, comparisons
from domainbed_carft.results.columns import IN_DOMAIN
from domainbed_carft.results.comparisons import ACCURACY, ENVIRONMENT, PAIR, TRIAL
from domainbed_carft.results.method_names import TRAINING_DOMAIN

REFERENCE = "CARFT (methods)"
UNITS = (ENVIRONMENT, TRIAL, PAIR)


def main() -> None:
    (group,) = collection.gather([Path(sys.argv[1])], by=["variant"]).groups
    selections = group.selected(TRAINING_DOMAIN)
    accuracies = comparisons.accuracies_of(selections, ACCURACY)
    in_domain = comparisons.accuracies_of(selections, IN_DOMAIN)
    by_unit = {
        unit: {entry.algorithm: entry for entry in comparisons.compare(accuracies, REFERENCE, unit)}
        for unit in UNITS
    }

    print("| method | out of domain | minus CAR-FT | targets | trials | pairs | in-domain |")
    for row in sorted(accuracies, key=lambda row: -np.mean([*accuracies[row].values()])):
        cells = [row, f"{np.mean([*accuracies[row].values()]):.1f}%"]
        if row == REFERENCE:
            cells += [""] * (1 + len(UNITS))
        else:
            entries = [by_unit[unit][row] for unit in UNITS]
            cells.append(f"{entries[0].mean_difference:+.1f}")
            cells += [f"{entry.low:.1f} to {entry.high:.1f}" for entry in entries]
        print(f"| {' | '.join([*cells, f'{np.mean([*in_domain[row].values()]):.1f}%'])} |")


if __name__ == "__main__":
    main()
