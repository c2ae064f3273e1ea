"""Measure the cost of the import hook at the start of an interpreter.

    python benchmarks/hook_cost.py [--runs 300] [--python python3.12 ...]

For each interpreter, two temporary environments run `python -c pass` alternately. They are equal
except for the hook, whose modules are compiled as in an installation. Both contain another .pth
file, like the one of setuptools, which the package requires, because the first .pth file costs more
than the next one (Python 3.13 loads a codec for it). The result is the median of the differences
within a pair. The exit status is 1 if it is above the limit of 1 ms.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MS = 1.0

sys.path.insert(0, str(ROOT / "build_backend"))
from carft_backend import START_FILES  # noqa: E402


def make_environment(folder: Path, python: str, has_hook: bool) -> Path:
    """Make an environment in `folder` with or without the hook, and return its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    interpreter = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    (site_packages / "distutils-precedence.pth").write_text("import os\n")
    if has_hook:
        package = site_packages / "domainbed_carft"
        shutil.copytree(
            ROOT / "domainbed_carft",
            package,
            ignore=shutil.ignore_patterns("assets", "__pycache__"),
        )
        subprocess.run([interpreter, "-m", "compileall", "-q", package], check=True)
        for name, data in START_FILES.items():
            (site_packages / name).write_bytes(data)
    return interpreter


def start_ms(interpreter: Path) -> float:
    """Return the milliseconds of one start."""
    begin = time.perf_counter()
    subprocess.run([interpreter, "-c", "pass"], check=True)
    return 1000 * (time.perf_counter() - begin)


def is_hooked(interpreter: Path) -> bool:
    """Return True if the interpreter has the finders of the hook."""
    code = "import sys; print([type(f).__name__ for f in sys.meta_path])"
    done = subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.count("'Finder'") == 2


def measure(python: str, runs: int) -> float:
    """Print and return the cost of the hook for the interpreter `python`, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        bare = make_environment(Path(folder, "bare"), python, has_hook=False)
        hooked = make_environment(Path(folder, "hook"), python, has_hook=True)
        if is_hooked(bare) or not is_hooked(hooked):
            raise SystemExit(f"{python}: expected the hook in one environment and not in the other")
        pairs = []
        for run in range(runs):
            if run % 2:
                pairs.append((start_ms(bare), start_ms(hooked)))
            else:
                pairs.append((start_ms(hooked), start_ms(bare))[::-1])
        version = subprocess.run([bare, "-V"], check=True, capture_output=True, text=True)
    cost = statistics.median(with_hook - without for without, with_hook in pairs)
    without = statistics.median(pair[0] for pair in pairs)
    print(f"{version.stdout.strip()}: {without:.2f} ms without, {cost:+.2f} ms with, n = {runs}")
    return cost


def main() -> int:
    """Measure all interpreters; return 0 if all are within the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300, help="pairs of starts (default: 300)")
    parser.add_argument(
        "--python",
        nargs="+",
        default=[sys.executable],
        help="interpreters to measure (default: this one)",
    )
    arguments = parser.parse_args()
    # Variables of the caller can slow down the start.
    for name in [name for name in os.environ if name.startswith(("PYTHON", "DOMAINBED_CARFT"))]:
        del os.environ[name]
    print(f"{platform.machine()}, {os.cpu_count()} cores")
    return int(max(measure(python, arguments.runs) for python in arguments.python) > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
