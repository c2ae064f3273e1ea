"""Write the tables of README and docs/ that come from packed records or from arithmetic.

    python tools/page_tables.py           # write them
    python tools/page_tables.py --check   # only compare, exit with 1 if a table is outdated

A table is found on its page by its header. Three sweeps of benchmarks/records are used:
fresh-emoji, on whose trials no hyperparameter was chosen; peers-emoji, on whose trials the methods
were developed; and algorithms-emoji, which was trained in a checkout.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from domainbed_carft.results import collection, comparisons
from domainbed_carft.results.cells import Cell
from domainbed_carft.results.collect import collect
from domainbed_carft.results.collection import Collection
from domainbed_carft.results.comparisons import Comparison
from domainbed_carft.results.method_names import CLIPOOD, ORACLE, TRAINING_DOMAIN

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
sys.path.append(str(ROOT / "benchmarks"))

import contamination  # noqa: E402

SWEEPS = ("fresh-emoji", "peers-emoji")
SWEEP_IN_CHECKOUT = "algorithms-emoji"
REFERENCE = "CARFT (methods)"
REFERENCE_IN_CHECKOUT = "CARFT"
COLUMNS = ["out-of-domain", "in-domain", "worst", "ece", "gained", "lost"]
FRESH_NAMES = {
    "LipsumFT": "Lipsum-FT",
    "CLIPWiSEFT": "WiSE-FT",
    "CARFT (CARFT+beta)": "CAR-FT with Beta average",
    REFERENCE: "CAR-FT",
    "CLIPLinearProbe": "linear probe",
    "CLIPZeroShot": "zero-shot CLIP",
    "CLIPFineTune": "ERM (plain fine-tuning)",
}
# Variant in the name of a row -> name of the row in docs/peers.md
NAMES_OF_VARIANTS = {
    "methods": "{}",
    "CARFT+WiSE-FT": "{}, `wise_alpha` 0.5",
    "CARFT+beta": "{}, `average` beta",
    "CARFT+ema": "{}, `average` ema",
    "CARFT+sma": "{}, `average` sma",
    "SWAD": "{}, `average` swad",
}
# Algorithm with SWAD -> name of the row in docs/peers.md
SWAD_NAMES = {
    "CARFT": "CARFT with `swad`",
    "CLIPFineTune": "plain fine-tuning with `swad`",
    "CLIPMIRO": "MIRO with `swad`, at a higher learning rate",
}

# EmojiStyles has this many images in each style, and DomainBed's out-splits this share of them.
IMAGES_OF_STYLE = 429
HOLDOUT_FRACTION = 0.2

# Forward pass of ViT-B/16; training takes three, and CAR-FT's original model one more.
IMAGE_GFLOP = 35.1
SHARE_OF_DATA_SHEET = 0.45
TFLOPS = {"H100 SXM": 989, "A100": 312, "RTX 4090": 165, "RTX 3090": 71}
# CLIP model -> parameters of its image encoder, tokens per image, width, blocks
SHAPES = {
    "ViT-B/32": (87.8e6, 50, 768, 12),
    "ViT-B/16": (86.2e6, 197, 768, 12),
    "ViT-L/14": (304e6, 257, 1024, 24),
    "ViT-L/14@336px": (304.3e6, 577, 1024, 24),
}

Rows = list[list[str]]


def summary_rows(sweep: Collection) -> Rows:
    """Return the methods on fresh trials, with corrected p-values of the difference from CAR-FT."""
    values, _ = _collect_columns(sweep, REFERENCE)
    differences = _compare_with_reference(sweep)
    rows = []
    for row, value in values.iterrows():
        cells = [FRESH_NAMES[str(row)], f"{value['out-of-domain']:.1f}%"]
        if row == REFERENCE:
            cells = [f"**{cell}**" for cell in cells] + [""] * 5
        else:
            entries = differences[str(row)]
            interval = f"{entries[0].low:.1f} to {entries[0].high:.1f}"
            cells += [f"{entries[0].mean_difference:+.1f}", interval]
            cells += [comparisons.p_text(entry.p_holm) for entry in entries]
        rows.append([*cells, f"{value['in-domain']:.1f}%"])
    return rows


def interval_rows(sweep: Collection) -> Rows:
    """Return three intervals of each method's difference from CAR-FT on fresh trials."""
    values, _ = _collect_columns(sweep, REFERENCE)
    differences = _compare_with_reference(sweep)
    rows = []
    for row in values.index.drop(REFERENCE):
        entries = differences[row]
        intervals = [f"{entry.low:.1f} to {entry.high:.1f}" for entry in entries]
        rows.append([FRESH_NAMES[row], f"{entries[0].mean_difference:+.1f}", *intervals])
    return rows


def checkout_rows(sweep: Collection) -> Rows:
    """Return the algorithms of a checkout on one CLIP model, with differences from CAR-FT."""
    values, _ = _collect_columns(sweep, REFERENCE_IN_CHECKOUT)
    differences = _compare_with_reference(sweep, REFERENCE_IN_CHECKOUT)
    rates = _find_chosen_rates(sweep)
    rows = []
    for row, value in values.sort_values("out-of-domain", ascending=False).iterrows():
        name, _, variant = str(row).removesuffix(")").partition(" (")
        cells = [f"{name}, random head" if variant == "random" else name, rates[str(row)]]
        cells.append(f"{value['out-of-domain']:.1f}%")
        if row == REFERENCE_IN_CHECKOUT:
            cells = [f"**{cells[0]}**", *cells[1:], *[""] * 5]
        else:
            over_targets, _, over_pairs = differences[str(row)]
            cells.append(f"{over_targets.mean_difference:+.1f}")
            for entry in (over_targets, over_pairs):
                cells.append(f"{entry.low:.1f} to {entry.high:.1f}")
                cells.append(comparisons.p_text(entry.p_holm))
        rows.append([*cells, f"{value['in-domain']:.1f}%"])
    return rows


def _find_chosen_rates(sweep: Collection) -> dict[str, str]:
    """Return row -> the learning rate of its runs."""
    (group,) = sweep.groups
    return {
        selected.row: f"{selected.run.recorded['lr']:g}"
        for selected in group.select(TRAINING_DOMAIN)
    }


def _compare_with_reference(
    sweep: Collection, reference: str = REFERENCE
) -> dict[str, list[Comparison]]:
    """Return row -> its difference from a row over targets, over trials and over pairs."""
    (group,) = sweep.groups
    accuracies = comparisons.accuracies_by_row(group.select(TRAINING_DOMAIN))
    by_row: dict[str, list[Comparison]] = {}
    for unit in (comparisons.ENVIRONMENT, comparisons.TRIAL, comparisons.PAIR):
        for entry in comparisons.compare(accuracies, reference, unit):
            by_row.setdefault(entry.algorithm, []).append(entry)
    return by_row


def accuracy_rows(sweep: Collection) -> Rows:
    """Return all methods on the search's trials: accuracies and their differences from CARFT."""
    values, against = _collect_columns(sweep, REFERENCE)
    rows = []
    for row, value in values.iterrows():
        out, in_domain = f"{value['out-of-domain']:.1f}", f"{value['in-domain']:.1f}"
        if row == REFERENCE:
            rows.append(["**CARFT**", out, "", in_domain, "", ""])
            continue
        by_measure = against.loc[:, row, "pair"]
        differences = [
            _format_difference(by_measure.loc[name]) for name in ("accuracy", "in-domain")
        ]
        p = by_measure.loc["accuracy", "p_holm"]
        p_text = f"{p:.3f}" if p >= 0.001 else _format_small(p)
        rows.append([_page_name(row), out, differences[0], in_domain, differences[1], p_text])
    return rows


def evaluation_rows(sweep: Collection) -> Rows:
    """Return the worst style, calibration, flips, and gain in never-seen styles of all methods."""
    values, _ = _collect_columns(sweep, REFERENCE)
    scores = contamination.table([*contamination.read_scores(*sweep.folders)])
    gains = {_page_name(row["gain over zero-shot"]): row["never seen"] for row in scores}
    rows = []
    for row, value in values.iterrows():
        name = _page_name(row)
        metrics = [f"{value[column]:.1f}" for column in ("ece", "gained", "lost")]
        worst = f"{value['worst']:.1f} {value['style']}"
        bold = "**CARFT**" if row == REFERENCE else name
        rows.append([bold, worst, *metrics, gains.get(name, "")])
    return rows


def swad_rows(sweep: Collection) -> Rows:
    """Return methods with SWAD, and their differences from the same method without it."""
    rows = []
    for algorithm, name in SWAD_NAMES.items():
        row = f"{algorithm} (SWAD)"
        values, against = _collect_columns(sweep, f"{algorithm} (methods)")
        cells = [name]
        for column, measure in (("out-of-domain", "accuracy"), ("in-domain", "in-domain")):
            difference = against.loc[measure, row, "pair"]
            cells += [f"{values.loc[row, column]:.1f}%", _format_difference(difference)]
        rows.append(cells)
    return rows


def _collect_columns(sweep: Collection, against: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return columns by row, most accurate first, and the differences from row ``against``."""
    results = collect(sweep, columns=COLUMNS, against=against)
    frame = results.cells[results.cells["dataset"] != ""]
    values = frame.pivot(index="algorithm", columns="column", values="mean")
    values["style"] = frame[frame["column"] == "worst"].set_index("algorithm")["of"]
    differences = results.against.set_index(["measure", "algorithm", "unit"]).sort_index()
    order = values["out-of-domain"].round(6).sort_values(ascending=False, kind="stable").index
    return values.loc[order], differences


def _page_name(row: object) -> str:
    """Return the name in docs/peers.md of a row of the table by variant."""
    algorithm, _, variant = str(row).partition(" (")
    return NAMES_OF_VARIANTS[variant.rstrip(")") or "methods"].format(algorithm)


def _format_difference(entry: Mapping[str, float]) -> str:
    return f"{entry['mean_difference']:+.2f} ({entry['standard_error']:.2f})"


def _format_small(number: float) -> str:
    return f"{number:.0e}".replace("e-0", "e-")


def protocol_rows(sweep: Collection) -> Rows:
    """Return accuracies by three protocols, and the last minus the first over trials."""
    by_method = _collect_out_of_domain(sweep, [TRAINING_DOMAIN, ORACLE, CLIPOOD])
    rows = []
    for row, name in FRESH_NAMES.items():
        cells = [cells[row] for cells in by_method]
        by_trial = pd.Series(cells[-1].trials) - pd.Series(cells[0].trials)
        means = [f"{cell.mean:.1f}" for cell in cells]
        rows.append([name, *means, f"{by_trial.mean():+.1f} ({by_trial.sem():.1f})"])
    return rows


def protocol_range_rows(sweeps: Sequence[Collection]) -> Rows:
    """Return the range of CLIPood's protocol minus training-domain over the rows of each sweep."""
    rows = []
    for name, sweep in zip(SWEEPS, sweeps, strict=True):
        chosen, last = _collect_out_of_domain(sweep, [TRAINING_DOMAIN, CLIPOOD])
        differences = [last[row].mean - chosen[row].mean for row in chosen]
        (n_trials,) = {cell.n for cell in chosen.values()}
        limits = [f"{limit:+.1f}" for limit in (min(differences), max(differences))]
        by_chance = _find_split_error(sweep, n_trials)
        rows.append(
            [f"`{name}`", str(n_trials), str(len(differences)), *limits, f"{by_chance:.1f}"]
        )
    return rows


def _find_split_error(sweep: Collection, n_trials: int) -> float:
    """Standard error in points of zero-shot CLIP's out-split minus in-split, by random splits.

    Each target and trial has its own split of the style's images, drawn without replacement, so the
    variance of a difference is S^2 (1 / n_out + 1 / n_in), with the variance S^2 of the answers.
    """
    (group,) = sweep.groups
    accuracies = comparisons.accuracies_by_row(group.select(TRAINING_DOMAIN))
    (zero_shot,) = (row for row in accuracies if row.startswith("CLIPZeroShot"))
    percent = pd.Series(accuracies[zero_shot]).groupby(level=1).mean()
    squares = (percent * (100 - percent)) * IMAGES_OF_STYLE / (IMAGES_OF_STYLE - 1)
    n_out = int(HOLDOUT_FRACTION * IMAGES_OF_STYLE)
    by_style = squares * (1 / n_out + 1 / (IMAGES_OF_STYLE - n_out))
    return float((by_style.mean() / (len(by_style) * n_trials)) ** 0.5)


def _collect_out_of_domain(sweep: Collection, methods: Sequence[str]) -> list[dict[str, Cell]]:
    """Return row -> out-of-domain accuracy for each selection rule."""
    tables = collect(replace(sweep, methods=methods), columns=["out-of-domain"]).tables
    return [table.get_column("out-of-domain") for table in tables if not table.averages]


def published_rows() -> Rows:
    """Return CAR-FT's published accuracies."""
    path = ROOT / "domainbed_carft" / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        rows = {row["dataset"]: row for row in csv.DictReader(file) if row["method"] == "CAR-FT"}
    columns = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet", "average")
    return [[f"{float(rows[column]['accuracy']):.1f}" for column in columns]]


def gpu_hour_rows() -> Rows:
    """Estimate the hours of two sweeps on a GPU from the numbers of images in their files."""
    gflop_of_sweeps = []
    for sweep in ("domainbed", "domainbed-search"):
        text = (ROOT / "sweeps" / f"{sweep}.yaml").read_text(encoding="utf-8")
        match = re.search(r"([\d,]+) images trained, ([\d,]+) evaluated", text)
        assert match, f"{sweep} does not count its images"
        trained, evaluated = (int(number.replace(",", "")) for number in match.groups())
        gflop_of_sweeps.append((4 * trained + evaluated) * IMAGE_GFLOP)

    rows = []
    for gpu, tflops in TFLOPS.items():
        gflop_per_second = SHARE_OF_DATA_SHEET * tflops * 1e3
        once, search = (gflop / gflop_per_second / 3600 for gflop in gflop_of_sweeps)
        trained_per_second = gflop_per_second / (4 * IMAGE_GFLOP)
        rows.append(
            [f"{gpu} ({tflops})", f"{trained_per_second:,.0f}", f"{once:.1f}", f"{search:.0f}"]
        )
    return rows


def batch_rows() -> Rows:
    """Estimate the maximum batch: 20 bytes per parameter, 45 per token, channel and block."""
    rows = []
    for clip, (parameters, tokens, width, blocks) in SHAPES.items():
        cells = []
        for gibibytes in (24, 40, 80):
            free = (0.9 * gibibytes - 1) * 2**30 - 20 * parameters
            images = free / (45 * tokens * width * blocks)
            cells.append(f"{int(images) // 10 * 10:,}")
        rows.append([clip, *cells])
    return rows


def all_tables(records: Path) -> list[tuple[str, str, Rows]]:
    """Return (page, beginning of the table's header, rows) of each table."""
    fresh_sweep, peers, checkout = (
        collection.gather([records / name], [TRAINING_DOMAIN], by=["variant"])
        for name in (*SWEEPS, SWEEP_IN_CHECKOUT)
    )
    summary = summary_rows(fresh_sweep)
    over_seeds = [row[:4] + row[5:6] + row[7:] for row in summary]
    return [
        ("README.md", "| method | out of domain | minus CAR-FT |", over_seeds),
        ("docs/peers.md", "| method | out of domain | minus CAR-FT |", summary),
        ("docs/peers.md", "| method | minus CAR-FT |", interval_rows(fresh_sweep)),
        ("docs/peers.md", "| method | out-of-domain | minus CARFT |", accuracy_rows(peers)),
        ("docs/peers.md", "| method | worst | ECE |", evaluation_rows(peers)),
        ("docs/peers.md", "| method | out of domain | difference |", swad_rows(peers)),
        ("docs/howto/any-algorithm.md", "| algorithm | learning rate |", checkout_rows(checkout)),
        ("docs/statistics.md", "| method | `training-domain` |", protocol_rows(fresh_sweep)),
        ("docs/statistics.md", "| sweep | trials |", protocol_range_rows([fresh_sweep, peers])),
        ("docs/reproduce.md", "| PACS | VLCS |", published_rows()),
        ("docs/reproduce.md", "| GPU (Tflop/s) |", gpu_hour_rows()),
        ("docs/reproduce.md", "| CLIP model | 24 GB", batch_rows()),
    ]


def replace_table(text: str, header: str, rows: Rows) -> str:
    """Replace the rows below a header in the text of a page."""
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    body = re.sub(r"\|  (?=\|)", "| ", lines)
    table = re.compile(rf"(^{re.escape(header)}.*\n\|-.*\n)(?:\|.*\n)*", re.MULTILINE)
    assert len(table.findall(text)) == 1, f"no table begins with {header}"
    return table.sub(lambda match: match[1] + body, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="only compare, and exit with 1 if a table differs",
    )
    check = parser.parse_args(arguments).check

    with tempfile.TemporaryDirectory() as folder:
        for sweep in (*SWEEPS, SWEEP_IN_CHECKOUT):
            shutil.unpack_archive(RECORDS / f"{sweep}.tar.xz", folder, filter="data")
        tables = all_tables(Path(folder))

    status = 0
    for page, header, rows in tables:
        text = (ROOT / page).read_text(encoding="utf-8")
        new_text = replace_table(text, header, rows)
        if new_text != text and check:
            print(
                f"{page}: the table {header} ... is not up to date; run tools/page_tables.py",
                file=sys.stderr,
            )
            status = 1
        elif new_text != text:
            (ROOT / page).write_text(new_text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
