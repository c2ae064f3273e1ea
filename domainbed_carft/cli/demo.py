"""The demo: the sweep that ``sweeps/demo.yaml`` declares, run on this machine, table and report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.report import building, writing
from domainbed_carft.sweep import launch, sources
from domainbed_carft.text import counted

DATA_DIR = "embedded"  # not read: the pictures are in the package


def run(output: Path, trials: int | None = None, declared: str | Path = "demo") -> None:
    """Train, collect and report into ``output``; what was done or begun there before is not redone.

    ``declared`` is a sweep of EmojiStyles; ``trials`` replaces its number of trials.
    """
    declaration = sources.load(declared)
    if trials:
        declaration = declaration.model_copy(update={"trials": trials})
    (dataset,) = declaration.datasets
    folder = output / "sweep"
    print(
        f"{', '.join(declaration.algorithms)}: each trained {declaration.steps_of(dataset)} steps "
        f"on {dataset} with one environment left out"
    )
    writing.require_place(output / "report")
    if left := launch.run(declaration, DATA_DIR, folder, launchers.make("pool", {})):
        raise CarftError(
            f"{counted(len(left), 'job is', 'jobs are')} not done, the first in "
            f"{left[0].job.folder}: {left[0].detail}\nFix the cause, run `carft sweep retry "
            f"{folder}` if jobs failed, then rerun this command"
        )
    words = ["-m", "domainbed.scripts.collect_results", "--input_dir", str(folder)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CarftError(f"{' '.join(words)} failed with {done.returncode}: {done.stderr[-1000:]}")
    (output / "results.txt").write_text(done.stdout, encoding="utf-8")
    print(done.stdout)
    print(
        "Each cell: accuracy (%) on the environment that was left out, with the checkpoint chosen "
        "by the method named above the table.\nX: leave-one-domain-out cross-validation needs the "
        "jobs with two test environments, which the demo does not run.\n"
    )
    report = writing.write(output / "report", building.build([folder]))
    print(f"Table:    {output / 'results.txt'}")
    print(f"Report:   {report} (open it in a browser)")
    print(f"Records:  {folder}/*/results.jsonl, next to out.txt, err.txt and model.pkl")
