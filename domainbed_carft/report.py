"""What people look at: plots of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")  # no screen is needed, nor looked for
from matplotlib import pyplot as plt

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ("#999999", "#56B4E9", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7")


def plot_targets(
    selected: pd.DataFrame, environments: Sequence[str], algorithms: Sequence[str], path: Path
) -> None:
    """Bars of out-of-domain accuracy: a group a target environment, and their average.

    ``selected``: rows of ``results.select`` of one data set; bars are means over trials, with the
    standard error where there are several. Written to ``path``, whose ending names the format.
    """
    groups = [*environments, "average"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(algorithms)
    for index, algorithm in enumerate(algorithms):
        rows = selected[selected["algorithm"] == algorithm]
        by_target = 100 * rows.pivot_table(index="trial_seed", columns="test_env", values="target")
        by_target = by_target.reindex(columns=range(len(environments)))
        by_target["average"] = by_target.mean(axis=1, skipna=False)
        means, errors = by_target.mean(), by_target.sem(ddof=0).fillna(0.0)
        places = [
            group + (index - (len(algorithms) - 1) / 2) * width for group in range(len(groups))
        ]
        bars = axes.bar(
            places, means, width, yerr=errors if len(by_target) > 1 else None,
            label=algorithm, color=COLOURS[index % len(COLOURS)], capsize=2,
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel("environment left out of training")
    axes.set_ylabel("accuracy on it (%)")
    axes.set_title(f"{selected['dataset'].iloc[0]}: trained on the other environments")
    axes.legend(ncols=len(algorithms), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
