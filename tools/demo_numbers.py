"""Make the numbers that `carft demo` shows for comparison, from the records of fresh-emoji.

    tar -xf benchmarks/records/fresh-emoji.tar.xz
    python tools/demo_numbers.py fresh-emoji > domainbed_carft/assets/demo.csv

Each line has the accuracy in percent of one of the demo's methods on the target style in one trial,
at the checkpoint selected by training-domain validation.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from domainbed_carft.results import collection, comparisons
from domainbed_carft.results.rule_names import TRAINING_DOMAIN
from domainbed_carft.sweep import declaration_file


def main() -> None:
    (group,) = collection.gather([Path(sys.argv[1]) / "methods"]).groups
    accuracies = comparisons.accuracies_by_row(group.select(TRAINING_DOMAIN))

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["algorithm", "target", "trial", "accuracy"])
    for algorithm in declaration_file.load("demo").algorithms:
        for (_, target, trial), accuracy in sorted(accuracies[algorithm].items()):
            writer.writerow([algorithm, target, trial, accuracy])


if __name__ == "__main__":
    main()
