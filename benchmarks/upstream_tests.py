"""Run upstream's unmodified tests on the included harness.

    python benchmarks/upstream_tests.py --upstream CHECKOUT

The six test files of facebookresearch/DomainBed that need neither a GPU nor data, and the recorded
sweep that two of them read, are copied next to a copy of the harness in a temporary folder, and run
by unittest, with the plugin switched off and on. DATA_DIR is set to an empty folder; without it
upstream skips a launch, although the launch reads no data. Install `parameterized`, which
upstream's tests import. Exits with status 1 if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[1] / "third_party" / "domainbed"
MODULES = (
    "lib.test_misc",
    "lib.test_query",
    "test_model_selection",
    "test_hparams_registry",
    "scripts.test_sweep",
    "scripts.test_collect_results",
)


def main() -> int:
    """Run the test files, print a line for each, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of DomainBed")
    upstream = parser.parse_args().upstream / "domainbed"
    if not (upstream / "scripts").is_dir():
        parser.error(f"expected a checkout of DomainBed in {upstream.parent}")
    all_passed = True
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "domainbed"
        shutil.copytree(HARNESS, copy)
        for name in ("test", "misc"):
            shutil.copytree(upstream / name, copy / name)
        for plugin in ("off", "on"):
            for module in MODULES:
                n_run, n_skipped, status = run(Path(folder), module, plugin == "off")
                print(
                    f"plugin {plugin:3}  {module:28} {n_run:3} run, {n_skipped} skipped: {status}"
                )
                all_passed &= status == "OK"
    return 0 if all_passed else 1


def run(folder: Path, module: str, without_plugin: bool) -> tuple[int, int, str]:
    """Run a test file, and return the numbers of tests run and skipped, and the status."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    # Upstream's tests call `python`, which must be this interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, "DATA_DIR": str(data), "PATH": path}
    if without_plugin:
        env["DOMAINBED_CARFT_DISABLE"] = "1"
    command = [sys.executable, "-m", "unittest", f"domainbed.test.{module}"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    ran = re.search(r"^Ran (\d+) test", done.stderr, re.MULTILINE)
    skipped = re.search(r"skipped=(\d+)", done.stderr)
    if done.returncode or ran is None:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", file=sys.stderr)
    status = "OK" if done.returncode == 0 and ran else f"failed, exit status {done.returncode}"
    return int(ran[1]) if ran else 0, int(skipped[1]) if skipped else 0, status


if __name__ == "__main__":
    sys.exit(main())
