"""What the import hook costs an interpreter start: `python -c pass` with and without it.

    python benchmarks/hook_cost.py [--runs 300] [--python python3.12 ...]

Two throwaway environments of each interpreter, equal but for the hook, whose modules are compiled
as an installation compiles them. Both have a .pth file beside: setuptools, which we require, brings
one, and the first to be read costs more than the next (Python 3.13 loads a codec for it). Their
starts alternate in one run. The figure is the median of the differences within a pair; above the
limit of 1 ms the exit status is 1.
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


def environment(folder: Path, python: str, hooked: bool) -> Path:
    """Make an environment in `folder`, hooked or not, and return its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    interpreter = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    (site_packages / "distutils-precedence.pth").write_text("import os\n")
    if hooked:
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
    """Time one start."""
    begin = time.perf_counter()
    subprocess.run([interpreter, "-c", "pass"], check=True)
    return 1000 * (time.perf_counter() - begin)


def is_hooked(interpreter: Path) -> bool:
    """Whether our finders are there, so that the right thing is measured."""
    code = "import sys; print([type(f).__name__ for f in sys.meta_path])"
    done = subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.count("'Finder'") == 2


def measure(python: str, runs: int) -> float:
    """Print and return the cost of the hook for the interpreter `python`, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        bare = environment(Path(folder, "bare"), python, hooked=False)
        hooked = environment(Path(folder, "hook"), python, hooked=True)
        if is_hooked(bare) or not is_hooked(hooked):
            raise SystemExit(f"{python}: the two environments are not as they should be")
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
    """Measure all interpreters asked for; 0 if every one keeps to the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300, help="pairs of starts (default: 300)")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters")
    arguments = parser.parse_args()
    # Whatever the caller's environment adds to a start would be noise.
    for name in [name for name in os.environ if name.startswith(("PYTHON", "DOMAINBED_CARFT"))]:
        del os.environ[name]
    print(f"{platform.machine()}, {os.cpu_count()} cores")
    return int(max(measure(python, arguments.runs) for python in arguments.python) > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
