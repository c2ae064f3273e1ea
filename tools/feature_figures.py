"""Make the figures of docs/howto/features.md from the runs of `carft demo`, in docs/images/.

python tools/feature_figures.py demo_output

The scripts that the page shows draw them, for CARFT with the target `line`. Fewer colours make the
files small.
"""

import runpy
import sys
from pathlib import Path

from PIL import Image

from domainbed_carft.results.top import top

ROOT = Path(__file__).parents[1]
SCRIPTS = ("features", "heat_maps")
COLOURS = 128


def main() -> None:
    """Draw both figures, and reduce their colours."""
    (entry,) = top(f"{sys.argv[1]}/sweep", only="CARFT, test environments 1").entries
    for script in SCRIPTS:
        figure_file = ROOT / "docs" / "images" / f"{script.replace('_', '-')}.png"
        sys.argv = [script, str(entry.folders[0]), str(figure_file)]
        runpy.run_path(str(ROOT / "examples" / f"{script}.py"), run_name="__main__")
        figure = Image.open(figure_file).convert("RGB")
        figure.quantize(COLOURS).save(figure_file, optimize=True)


if __name__ == "__main__":
    main()
