"""List the hyperparameters that each selection method ranks highest.

Flags and printed layout of upstream file domainbed/scripts/list_top_hparams.py at b93c22a.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from domainbed import model_selection
from domainbed.lib import reporting
from domainbed.lib.query import Q
from domainbed.scripts.collect_results import SELECTION_METHODS


def print_ranking(group: Q, method: type[model_selection.SelectionMethod]) -> None:
    """Print, best first, outcome, hyperparameters and folders of each choice in one trial."""
    for outcome, records in method.hparams_accs(group):
        print(f"\t{outcome}\n\t\thparams:")
        for name, value in sorted(records[0]["hparams"].items()):
            print(f"\t\t\t{name}: {value}")
        print("\t\toutput_dirs:")
        for folder in records.select("args.output_dir").unique():
            print(f"\t\t\t{folder}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="domainbed.scripts.list_top_hparams", description="List the best hyperparameters"
    )
    parser.add_argument("--input_dir", required=True, help="the sweep's --output_dir")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--algorithm", required=True)
    parser.add_argument("--test_env", type=int, required=True)
    args = parser.parse_args(argv)

    records = reporting.load_records(args.input_dir)
    print("Total records:", len(records))
    wanted = (args.dataset, args.algorithm, args.test_env)
    groups = reporting.get_grouped_records(records).filter_equals(
        "dataset,algorithm,test_env", wanted
    )
    groups = groups.sorted(key=lambda group: group["trial_seed"])
    for method in SELECTION_METHODS:
        print(f"Model selection: {method.name}")
        for group in groups:
            print(f"trial_seed: {group['trial_seed']}")
            print_ranking(group["records"], method)
    return 0


if __name__ == "__main__":
    sys.exit(main())
