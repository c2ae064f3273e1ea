"""Where the time of a job goes: a bar for each stage, on upstream's harness and on ours.

    python benchmarks/stages.py --upstream CHECKOUT [--python PYTHON] [--steps 41] [--rounds 3]

A job of `whole_sweep.py` (CARFT on the tiny CLIP, 3 x 16 JPEGs of 500 x 400 a step, evaluated at
the first and the last), in one process of one thread that loads in itself, so that its stages
follow one another: on upstream's harness; on ours with the data set's own transforms, which are
upstream's; and on ours as it is. Processor time, since other work on the machine changes it least;
the median over rounds, in which the jobs take turns.

PYTHON (default: this one) runs the checkout, and has upstream's requirements and this package.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STAGES = ("imports", "pictures, training", "steps", "pictures, evaluation", "predicting", "rest")
TRANSFORMS = "ours, upstream's transforms"
# As `-m` finds it: domainbed in the folder where it is started, else the harness.
JOB = "import runpy, sys; runpy.run_path(sys.argv[1])['timed_job'](*sys.argv[2:])"


def timed_job(way: str, report: str, *arguments: str) -> None:
    """Run train, and write the seconds of each stage as JSON."""
    spent: dict[str, float] = defaultdict(float)

    def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent[stage] += time.process_time() - began

        return run

    from domainbed import algorithms, datasets
    from domainbed.lib import fast_data_loader, misc
    from domainbed.scripts import train  # noqa: F401

    spent["imports"] = time.process_time()
    datasets.MultipleDomainDataset.N_WORKERS = 0
    misc.accuracy = timed("evaluation", misc.accuracy)
    own = hasattr(fast_data_loader, "load_batches")
    if own:
        from domainbed.lib import picture_batches
        from domainbed.lib.job_batches import JobBatches

        if way == TRANSFORMS:
            picture_batches.environment_plan = lambda environment: None  # type: ignore[assignment]

        JobBatches.step_batches = timed("pictures, training", JobBatches.step_batches)  # type: ignore[method-assign]
    else:
        iterate = fast_data_loader.InfiniteDataLoader.__iter__

        def timed_iteration(loader: Any) -> Iterator[Any]:
            take = timed("pictures, training", iterate(loader).__next__)
            while True:
                yield take()

        fast_data_loader.InfiniteDataLoader.__iter__ = timed_iteration
    algorithm = algorithms.get_algorithm_class("CARFT")
    step = "step_on_device" if own else "update"
    setattr(algorithm, step, timed("steps", getattr(algorithm, step)))
    algorithm.predict = timed("predicting", algorithm.predict)
    sys.argv = ["train", *arguments]
    try:
        runpy.run_module("domainbed.scripts.train", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            raise
    spent["pictures, evaluation"] = spent.pop("evaluation") - spent["predicting"]
    spent["rest"] = time.process_time() - sum(spent.values())
    Path(report).write_text(json.dumps(spent), encoding="utf-8")


def main() -> None:
    """Run the jobs, and print a bar for each stage."""
    from synthetic_tree import photographs  # beside this file, which a job is not

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="a checkout of DomainBed")
    parser.add_argument("--python", default=sys.executable, help="runs the checkout")
    parser.add_argument("--steps", type=int, default=41)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if not (given.upstream / "domainbed" / "scripts").is_dir():
        parser.error(f"expected a checkout of DomainBed in {given.upstream}")
    with tempfile.TemporaryDirectory(prefix="carft-stages-") as folder:
        count, classes = photographs(Path(folder), 24)
        hparams = {"clip_backbone": "tiny", "contexts": "emoji", "class_names": classes}
        hparams |= {"batch_size": 16, "total_steps": given.steps, "data_edition": "unchecked"}
        words = ["--algorithm", "CARFT", "--dataset", "PACS", "--data_dir", folder]
        words += ["--steps", str(given.steps), "--hparams", json.dumps(hparams)]
        ways = {
            "upstream's harness": [],
            TRANSFORMS: ["--workers", "0"],
            "ours": ["--workers", "0"],
        }
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
        for number in range(given.rounds):
            for way, more in ways.items():
                theirs = way == "upstream's harness"
                report, output = f"{folder}/report", f"{folder}/{number} {way}"
                command = [given.python if theirs else sys.executable, "-c", JOB, __file__]
                command += [way, report, *words, *more]
                subprocess.run(
                    [*command, "--output_dir", output], env=environment, check=True,
                    cwd=given.upstream if theirs else folder, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )  # fmt: skip
                found[way].append(json.loads(Path(report).read_text(encoding="utf-8")))
    print(f"{count} pictures, {given.steps} steps of 3 x 16, one core, {given.rounds} rounds")
    for way, rounds in found.items():
        times = {stage: statistics.median(one[stage] for one in rounds) for stage in STAGES}
        print(f"\n{way}: {sum(times.values()):.1f} s of processor time")
        for stage, seconds in times.items():
            print(f"  {stage:20} {seconds:5.1f} s {'#' * round(2 * seconds)}")


if __name__ == "__main__":
    main()
