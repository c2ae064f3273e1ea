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

from domainbed_carft import results, sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of a sweep's jobs")
    demo = sweep.load("demo")
    (environments,) = demo.environments.values()
    selected = results.select(results.load(parser.parse_args().sweep))
    counts = selected.groupby("algorithm")["trial_seed"].nunique()
    print(f"trials: {', '.join(f'{name} {n}' for name, n in counts.items())}")
    print(f"{'':16}" + "".join(f"{e:>10}" for e in (*environments, "average", "in-domain")))
    for algorithm in demo.algorithms:
        rows = selected[selected["algorithm"] == algorithm]
        cells = [*rows.groupby("test_env")["target"].mean(), rows["target"].mean()]
        cells.append(rows["validation"].mean())
        print(f"{algorithm:16}" + "".join(f"{100 * cell:10.1f}" for cell in cells))
    for a, b, column, name in (
        ("CARFT", "CLIPFineTune", "target", "out-of-domain"),
        ("CARFT", "CLIPZeroShot", "target", "out-of-domain"),
        ("CARFT", "CLIPFineTune", "validation", "in-domain"),
    ):
        d = results.paired(selected, a, b, column)
        print(
            f"{a} - {b}, {name}: {100 * d.mean:+.2f} points, standard error "
            f"{100 * d.standard_error:.2f}, {d.mean / d.standard_error:+.1f} of them, "
            f"{d.pairs} pairs of (trial, target)"
        )


if __name__ == "__main__":
    main()
