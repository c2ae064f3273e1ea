"""List the hyperparameters that each selection rule ranks highest.

Flags and printed layout equal those of upstream file domainbed/scripts/list_top_hparams.py at
b93c22a.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from domainbed.lib import reporting
from domainbed.lib.command_line import exit_status, printed_at_once
from domainbed.lib.query import Q
from domainbed.model_selection import SELECTION_METHODS, SelectionMethod
from domainbed_carft import escaping
from domainbed_carft.data.benchmarks import shortest_path
from domainbed_carft.errors import CarftError
from domainbed_carft.flags import FlagParser


def print_ranking(group: Q, method: type[SelectionMethod]) -> None:
    """Print the outcomes of a trial, best first, with their hyperparameters and folders."""
    for outcome, records in method.hparams_accs(group):
        print(f"\t{outcome}")
        for hparams in records.select("hparams").unique():
            print("\t\thparams:")
            for name, value in sorted(hparams.items()):
                print("\t\t\t" + escaping.printable(f"{name}: {value}"))
            print("\t\toutput_dirs:")
            folders = records.filter_equals("hparams", hparams).select("args.output_dir")
            for folder in folders.unique():
                print("\t\t\t" + escaping.printable(folder))


def run(args: argparse.Namespace) -> None:
    """Print the ranking of the trials of one dataset, algorithm and test environment."""
    names = "dataset,algorithm,test_env"
    cell = (args.dataset, args.algorithm, args.test_env)
    records = reporting.load_records(args.input_dir)
    reporting.get_environment_labels(records.filter_equals("args.dataset", args.dataset))

    groups = reporting.get_grouped_records(records)
    chosen = groups.filter_equals(names, cell).sorted(key=lambda group: group["trial_seed"])
    if not len(chosen):
        available = sorted(" ".join(map(str, group)) for group in groups.select(names).unique())
        raise CarftError(
            f"{args.input_dir} has no records of {' '.join(map(str, cell))} (dataset, "
            f"algorithm, test environment); available: {', '.join(available) or 'none'}"
        )

    print("Total records:", len(records))
    for method in SELECTION_METHODS:
        print(f"Model selection: {method.name}")
        for group in chosen:
            print(f"trial_seed: {group['trial_seed']}")
            print_ranking(group["records"], method)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = FlagParser(
        prog="domainbed.scripts.list_top_hparams", description="List the best hyperparameters"
    )
    parser.add_argument("--input_dir", required=True, help="the sweep's --output_dir")
    parser.add_argument(
        "--dataset", required=True, type=shortest_path, help="the dataset, as in the sweep"
    )
    parser.add_argument("--algorithm", required=True, help="name of the algorithm")
    parser.add_argument(
        "--test_env", type=int, required=True, help="number of the test environment"
    )
    args = parser.parse_args(argv)
    with printed_at_once():
        return exit_status("list_top_hparams", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
