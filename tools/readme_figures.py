"""Make the images of README from the packed records of `fresh-emoji`, in docs/images/.

    python tools/readme_figures.py           # robustness-light.svg, -dark.svg, and both -narrow.svg
    python tools/readme_figures.py --page    # also report-light.png, report-dark.png, by Chromium
    python tools/readme_figures.py --check   # exit status 1 if a figure is out of date

The figure shows in-domain against out-of-domain accuracy of the methods in README's table, as means
over the trials with standard errors. It contains the digest of its data.
"""

from __future__ import annotations

import argparse
import colorsys
import hashlib
import io
import itertools
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib import colors
from matplotlib.figure import Figure
from PIL import Image

from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.report import figure_data, plots
from domainbed_carft.report.page import write_report
from domainbed_carft.report.plots import Mark
from domainbed_carft.results import columns
from domainbed_carft.results.collect import collect

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "fresh-emoji.tar.xz"
IMAGES = ROOT / "docs" / "images"
SELECTION = "training-domain"
# Ending of the file name -> size in inches; the narrow figure is for telephones.
SIZES = {"": (7.6, 4.3), "-narrow": (4.4, 4.6)}
MIN_LIGHTNESS = 0.07  # of the background on a dark page
# Points of in-domain accuracy on the right, by the ending of the file name.
SPACE_FOR_LABELS = {"": 3.5, "-narrow": 7.5}
GREY = "#6e7781"  # for methods that are not highlighted
HIGHLIGHTED = ("CARFT (methods)", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")
# Row of the table -> its label in README, and the label's position: offset from the mark in points
# to the right and up, and alignment.
LABELS = {
    "CARFT (methods)": ("CAR-FT", 18, 6, "left"),
    "CARFT (CARFT+beta)": ("CAR-FT, Beta average", -2, 18, "center"),
    "CLIPZeroShot": ("zero-shot CLIP", 10, 9, "left"),
    "CLIPLinearProbe": ("linear probe", -24, 8, "right"),
    "CLIPFineTune": ("ERM", 20, -4, "left"),
    "CLIPWiSEFT": ("WiSE-FT", -14, 0, "right"),
    "LipsumFT": ("Lipsum-FT", 2, 18, "center"),
}
# Labels of the narrow figure that would overlap at these positions.
NARROW_LABELS = {
    "CARFT (CARFT+beta)": ("CAR-FT, Beta average", 8, 8, "left"),
    "CLIPZeroShot": ("zero-shot CLIP", 10, -9, "left"),
}
PAGE_SIZE = {"width": 1440, "height": 1100}  # px


def main() -> int:
    """Make the images, or compare them with the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--page", action="store_true", help="also make screenshots of the report page"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check that the figures are up to date, without writing files",
    )
    arguments = parser.parse_args()

    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(RECORDS) as archive:
            archive.extractall(folder, filter="data")
        means = load_means(Path(folder, "fresh-emoji"))
        if arguments.check:
            return check(digest(means))

        for ending in SIZES:
            light = draw_robustness(means, ending)
            (IMAGES / f"robustness-light{ending}.svg").write_text(light)
            (IMAGES / f"robustness-dark{ending}.svg").write_text(darken(light))

        if arguments.page:
            report = write_report([Path(folder, "fresh-emoji", "methods")], Path(folder, "report"))
            save_screenshots(report.index)
    return 0


def check(expected: str) -> int:
    """Return 1 if a figure does not have the expected digest, otherwise 0."""
    status = 0
    for scheme, ending in itertools.product(("light", "dark"), SIZES):
        path = IMAGES / f"robustness-{scheme}{ending}.svg"
        if f"<desc>Data: SHA-256 {expected}</desc>" not in path.read_text():
            print(f"{path.relative_to(ROOT)} is not up to date", file=sys.stderr)
            status = 1
    return status


def load_means(sweep: Path) -> dict[Mark, int]:
    """Load the means of LABELS; return mark -> number of its trials."""
    (table,) = collect([sweep], by=["variant"], methods=[SELECTION]).tables_of_groups[0][:1]
    out_of_domain = table.get_column(columns.OUT_OF_DOMAIN)
    marks = plots.make_marks(table.get_column(columns.IN_DOMAIN), out_of_domain)
    return {mark: out_of_domain[mark.algorithm].n for mark in sorted(marks)}


def digest(means: Mapping[Mark, int]) -> str:
    """Return the SHA-256 of the means as CSV, sorted by name, with six significant digits."""
    header = ["algorithm", "in_domain", "in_domain_error", "out_of_domain", "out_of_domain_error"]
    rows = [
        (mark.algorithm, mark.x, mark.x_error, mark.y, mark.y_error, n_trials)
        for mark, n_trials in means.items()
    ]
    return hashlib.sha256(plots.write_csv([*header, "trials"], rows).encode()).hexdigest()


def draw_robustness(means: Mapping[Mark, int], ending: str) -> str:
    """Draw the figure of a size as SVG, with the `digest` of its data as description."""
    with plots.figure_style():
        canvas = Figure(figsize=SIZES[ending], layout="constrained")
        axes = canvas.subplots()
        labels = LABELS | (NARROW_LABELS if ending else {})
        by_algorithm = plots.get_styles(ALGORITHMS)
        all_styles = {row: by_algorithm[row.split()[0]] for row in LABELS}
        styles = {
            row: style if row in HIGHLIGHTED else replace(style, colour=GREY)
            for row, style in all_styles.items()
        }
        plots.draw_marks(
            axes, [*means], styles, x=figure_data.IN_DOMAIN, y=figure_data.OUT_OF_DOMAIN
        )
        for mark in means:
            is_highlighted = mark.algorithm in HIGHLIGHTED
            label, right, up, alignment = labels[mark.algorithm]
            axes.annotate(
                label,
                (mark.x, mark.y),
                xytext=(right, up),
                textcoords="offset points",
                ha=alignment,
                va="center",
                fontsize=9 if is_highlighted else 8,
                weight="bold" if is_highlighted else "normal",
                color=all_styles[mark.algorithm].colour if is_highlighted else GREY,
            )
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + SPACE_FOR_LABELS[ending])
        separator = "\n" if ending else " "
        title = ("EmojiStyles: each of four drawing styles", "held out, ten trials")
        axes.set_title(separator.join(title))
        svg = plots.save_figure(canvas, "", "", "", [], []).svg

    beginning, end = svg.split(">", 1)
    return f"{beginning}>\n <desc>Data: SHA-256 {digest(means)}</desc>{end}"


def darken(svg: str) -> str:
    """Invert the lightness of all colours for a dark page, and keep their hues."""

    def invert(match: re.Match[str]) -> str:
        hue, lightness, saturation = colorsys.rgb_to_hls(*colors.to_rgb(match[0]))
        lightness = MIN_LIGHTNESS + (1 - MIN_LIGHTNESS) * (1 - lightness)
        return colors.to_hex(colorsys.hls_to_rgb(hue, lightness, saturation))

    return re.sub("#[0-9a-f]{6}", invert, svg)


def save_screenshots(index: Path) -> None:
    """Save screenshots of the top of a report, light and dark."""
    from playwright import sync_api

    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, programs)), args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport=PAGE_SIZE, color_scheme=scheme)
            page.goto(index.as_uri())
            page.wait_for_load_state("networkidle")
            screen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            screen.save(IMAGES / f"report-{scheme}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
