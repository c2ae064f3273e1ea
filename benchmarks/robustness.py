"""Does CAR-FT's effect show on EmojiStyles? The accuracies and paired differences of a sweep.

    carft demo --trials 3 --output_dir OUT
    python benchmarks/robustness.py OUT/sweep

All algorithms have their default hparams and the same steps and augmentation; CARFT and
CLIPFineTune also the same rate (the linear probe's is ten times as high). The checkpoint is chosen
by training-domain validation, so the target is never looked at. ``out-of-domain`` is the
accuracy on the environment left out (its in-split, as DomainBed reports), ``in-domain`` the mean
accuracy on the out-splits of the environments trained on, both at that checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from domainbed_carft.report import frames
from domainbed_carft.results import collection as collecting
from domainbed_carft.sweep import sources


class Difference(NamedTuple):
    """Mean of a - b over (target, trial), its standard error, and the pairs counted."""

    mean: float
    standard_error: float
    pairs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of a sweep's jobs")
    demo = sources.load("demo")
    (facts,) = demo.facts.values()
    collection = collecting.gather([parser.parse_args().sweep])
    if len(collection.groups) > 1:
        titles = "; ".join(group.title for group in collection.groups)
        parser.error(f"the jobs were run under several settings ({titles}); expected one")
    checkpoints = frames.checkpoints(collection.groups[0].runs, "training-domain")
    selected = checkpoints[checkpoints["selected"]]
    counts = selected.groupby("algorithm")["trial"].nunique()
    print(f"trials: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    print(f"{'':16}" + "".join(f"{e:>10}" for e in (*facts.labels, "average", "in-domain")))
    for algorithm in demo.algorithms:
        rows = selected[selected["algorithm"] == algorithm]
        cells = [*rows.groupby("target")["out_of_domain"].mean(), rows["out_of_domain"].mean()]
        cells.append(rows["in_domain"].mean())
        print(f"{algorithm:16}" + "".join(f"{100 * cell:10.1f}" for cell in cells))
    for a, b, column in (
        ("CARFT", "CLIPFineTune", "out_of_domain"),
        ("CARFT", "CLIPZeroShot", "out_of_domain"),
        ("CARFT", "CLIPFineTune", "in_domain"),
    ):
        d = paired(selected, a, b, column)
        print(
            f"{a} - {b}, {column.replace('_', '-')}: {100 * d.mean:+.2f} points, standard error "
            f"{100 * d.standard_error:.2f}, {d.mean / d.standard_error:+.1f} of them, "
            f"{d.pairs} pairs of (trial, target)"
        )


def paired(selected: pd.DataFrame, a: str, b: str, column: str) -> Difference:
    """``column`` of algorithm ``a`` minus that of ``b``, over the pairs that both have.

    The standard error is that of the mean of the differences: their sample standard deviation
    (ddof 1) over the root of the number of pairs.
    """
    table = selected.pivot_table(
        index=["dataset", "target", "trial"], columns="algorithm", values=column
    )
    difference = (table[a] - table[b]).dropna()
    return Difference(float(difference.mean()), float(difference.sem(ddof=1)), len(difference))


if __name__ == "__main__":
    main()
