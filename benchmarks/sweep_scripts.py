"""Compare DomainBed's scripts on the included harness between two source trees, byte for byte.

    python benchmarks/sweep_scripts.py BASE [NEW] [--sweeps 55] [--upstream CHECKOUT]

BASE and NEW (default: this tree) are checkouts of this repository. One process per tree runs
`sweep`, `collect_results` and `list_top_hparams` on the same drawn command lines. A sweep is
launched with the launcher `dummy`, gets synthetic records, is launched again, collected as text
and as LaTeX, ranked, and cleaned by `delete_incomplete`. Then follow a few jobs of the launcher
`local`, the records of `tests/harness/synthetic_records.py`, which have upstream's format, the
sweep that upstream recorded in CHECKOUT, and calls of functions that users' code imports. Compared
are exit statuses, both output streams, the names of all files and folders, and the contents of the
tables and of `sweep.json`. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parents[1]
WORKER = "--worker"
RECORDED_SWEEP = "domainbed/misc/test_sweep_data"  # in a checkout of DomainBed

# Names that code written for upstream imports.
UPSTREAM_NAMES = {
    "model_selection": "get_test_records SelectionMethod OracleSelectionMethod "
    "IIDAccuracySelectionMethod LeaveOneOutSelectionMethod",
    "lib.query": "Q make_selector_fn hashable",
    "lib.reporting": "load_records get_grouped_records",
    "command_launchers": "local_launcher dummy_launcher REGISTRY",
    "scripts.sweep": "Job all_test_env_combinations make_args_list DATASETS",
    "scripts.collect_results": "format_mean print_table print_results_tables",
}

DATASETS = (
    *("PACS", "Debug28 VLCS", "DomainNet", "SVIRO", "PACS OfficeHome", "Debug28 Debug224"),
    *("own/three", "own/one PACS", "TerraIncognita Debug28 own/three"),
)
ALGORITHMS = (
    "ERM",
    "CARFT",
    "CARFT ERM",
    "CLIPFineTune CARFT",
    "ERM CLIPLinearProbe",
    "CLIPZeroShot",
)
# Flags that are only sometimes passed.
OPTIONAL = {
    "--hparams": ['{"batch_size": 8}', '{"lr":1e-05,  "batch_size":4}', "{}"],
    "--steps": ["0", "7", "1001"],
    "--holdout_fraction": ["0.1", "0.5"],
    "--task": ["domain_generalization"],
    "--seed": ["3"],
    "--data_dir": ["data/", "it's here"],
}
# Mistakes, which the scripts must report.
MISTAKES = (
    *("--datasets TerraIncognita PASC", "--datasets own/two", "--datasets own/no", "--steps -1"),
    *("--algorithms Mixup", "--algorithms Erm CARFT", "--hparams lr=1", "--n_trials 0"),
    *("--n_hparams 0", "--task domain_adaptation", "--command_launcher dumy", "--task other"),
    *('--hparams {"batch_size":0}', '--hparams {"lrr":1}', "--holdout_fraction 1.5"),
)
ANSWERS = ["y\n", "no\n", ""]
STEPS = (0, 100, 200)
KINDS = ("complete", "gaps", "damaged", "repeated", "mixed", "swad")


def draw_flags(draw: random.Random) -> list[str]:
    """Draw the flags of a sweep."""
    first = draw.choice([0, 0, 0, 2])
    flags = ["--datasets", *draw.choice(DATASETS).split()]
    flags += ["--algorithms", *draw.choice(ALGORITHMS).split(), "--n_trials", draw.choice("1123")]
    flags += ["--n_hparams_from", str(first), "--n_hparams", str(first + draw.choice([1, 2]))]
    flags += ["--data_dir", "data", "--command_launcher", "dummy"]

    for name, values in OPTIONAL.items():
        if draw.random() < 0.3:
            flags += [name, draw.choice(values)]
    if draw.random() < 0.4:
        flags.append("--single_test_envs")
    if draw.random() < 0.3:
        flags += draw.choice(MISTAKES).split()
    return flags


def write_records(output: Path, kind: str, draw: random.Random) -> None:
    """Write records of one of the KINDS for the jobs in the manifest; some jobs are then done."""
    sweep = json.loads((output / "sweep.json").read_text())
    for job in sweep["jobs"]:
        if kind == "gaps" and draw.random() < 0.3:
            continue
        args = {**job["args"], "output_dir": f"{output}/{job['folder']}"}
        count = len(sweep["datasets"][args["dataset"]]["labels"])
        records = [make_record(args, step, count, draw) for step in STEPS]
        if kind == "repeated":  # of each step, and in a different order
            records += [make_record(args, step, count, draw) for step in reversed(STEPS)]
            records += [{**record, "args": {**args, "seed": 1}} for record in records[:2]]
        for record in records:
            if kind == "mixed":
                record["hparams"] |= {"amp": draw.choice(["off", "bf16"])}
            if kind == "swad":
                record["hparams"]["average"] = record["average"] = "swad"

        lines = [json.dumps(record, sort_keys=True) for record in records]
        if kind == "damaged":
            lines[1] = draw.choice(
                [
                    lines[1][:50],
                    lines[1].replace('"step": 100', '"step": "100"'),
                    json.dumps(records[1] | {"loss": float("nan"), "diverged_at": 100}),
                    json.dumps(records[1] | {"env0_out_acc": float("nan")}),
                    json.dumps(records[1] | {"env1_in_acc": 1.5}),
                ]
            )
        folder = output / job["folder"]
        (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
        if draw.random() < 0.7:
            (folder / "done").write_text("done")


def make_record(args: dict[str, Any], step: int, count: int, draw: random.Random) -> dict[str, Any]:
    """Return a random record whose accuracies are multiples of 1/20, so that ties occur."""
    record: dict[str, Any] = {
        "args": args,
        "hparams": {"lr": 0.1 ** (1 + args["hparams_seed"])},
        "step": step,
        "loss": draw.random(),
    }
    if args["dataset"].startswith("own/"):
        record["environments"] = [f"{env}" for env in range(count)]
    for env in range(count):
        record[f"env{env}_in_acc"] = draw.randint(6, 20) / 20
        record[f"env{env}_out_acc"] = draw.randint(6, 20) / 20
    return record


def run_script(name: str, words: Sequence[str], answer: str = "") -> dict[str, Any]:
    """Run a script of DomainBed in this process, and return its status and its output."""
    main = importlib.import_module(f"domainbed.scripts.{name}").main
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch("sys.stdin", io.StringIO(answer)),
        mock.patch.dict(os.environ),
    ):
        try:
            status: Any = main(words)
        except SystemExit as end:
            status = end.code
        except Exception as error:
            status = repr(error)
    command = shlex.join([name, *words])
    return {"command": command, "status": status, "out": out.getvalue(), "err": err.getvalue()}


def list_files(output: Path) -> dict[str, Any]:
    """Return the names of all files below a folder, with the contents of tables and manifest."""
    paths = sorted(output.rglob("*"))
    result: dict[str, Any] = {str(path): "" for path in paths if "tensorboard" not in path.parts}
    for name in ("results.txt", "results.tex", "sweep.json"):
        if (output / name).is_file():
            result[str(output / name)] = (output / name).read_text()
    if text := result.get(str(output / "sweep.json")):
        sweep = json.loads(text)
        for facts in sweep["datasets"].values():
            facts |= {"images": None, "held_out": False}  # older trees left these facts out
        # The order of keys has no meaning in this file.
        result[str(output / "sweep.json")] = json.dumps(sweep, sort_keys=True, indent=1)
    return result


def run_drawn_sweep(number: int) -> Iterator[dict[str, Any]]:
    """Yield what the scripts do with the drawn sweep of this number."""
    draw = random.Random(number)
    output = Path(f"sweep-{number}")
    flags = ["--output_dir", draw.choice([f"{output}", f"./{output}/"]), *draw_flags(draw)]
    is_asked = draw.random() < 0.2
    answer = draw.choice(ANSWERS)
    confirmed = [] if is_asked else ["--skip_confirmation"]
    yield run_script("sweep", ["launch", *flags, *confirmed], answer)

    jobs = []
    if (output / "sweep.json").is_file():
        write_records(output, KINDS[number % len(KINDS)], draw)
        jobs = json.loads((output / "sweep.json").read_text())["jobs"]
    yield run_script("sweep", ["launch", *flags, "--skip_confirmation"])
    yield from collect(output)
    for job in draw.sample(jobs, min(2, len(jobs))):
        args = job["args"]
        yield rank(output, args["dataset"], args["algorithm"], max(args["test_envs"], default=0))

    yield run_script("sweep", ["delete_incomplete", *flags, *confirmed], answer)
    yield list_files(output)


def collect(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the tables of a folder as text and as LaTeX."""
    for flags in ([], ["--latex"]):
        yield run_script("collect_results", ["--input_dir", str(folder), *flags])


def rank(folder: Path, dataset: str, algorithm: str, target: int) -> dict[str, Any]:
    """Return what `list_top_hparams` prints for one cell of the tables."""
    words = ["--dataset", dataset, "--algorithm", algorithm, "--test_env", str(target)]
    return run_script("list_top_hparams", ["--input_dir", str(folder), *words])


def run_local_sweeps() -> Iterator[dict[str, Any]]:
    """Yield what the scripts do with jobs of the launcher `local`: trained, failed, refused."""
    flags = "--algorithms ERM --n_trials 1 --n_hparams 1 --single_test_envs --steps 2"
    flags += " --data_dir unused --output_dir local --command_launcher local --skip_confirmation"
    words = [*flags.split(), "--hparams", '{"batch_size": 8}']
    for dataset in ("Debug28", "Debug28", "own/three", "PACS"):
        yield run_script("sweep", ["launch", *words, "--datasets", dataset])
    yield from collect(Path("local"))
    yield rank(Path("local"), "Debug28", "ERM", 0)
    yield list_files(Path("local"))


def run_upstream_records(upstream: Path | None) -> Iterator[dict[str, Any]]:
    """Yield tables and rankings of records in upstream's format, and recorded by upstream."""
    from harness import synthetic_records

    for kind in synthetic_records.KINDS:
        synthetic_records.write_sweep(Path(kind), kind)
        yield from collect(Path(kind))
        for dataset, count in synthetic_records.ENVIRONMENTS.items():
            for algorithm in synthetic_records.ALGORITHMS:
                yield from (rank(Path(kind), dataset, algorithm, env) for env in range(count + 1))

    if upstream:
        recorded = Path("recorded")
        shutil.copytree(upstream / RECORDED_SWEEP, recorded)
        yield from collect(recorded)
        yield from (rank(recorded, "VLCS", "ERM", env) for env in range(4))


def call_functions() -> Iterator[dict[str, Any]]:
    """Yield the results of functions that code written for upstream imports."""
    modules = {name: importlib.import_module(f"domainbed.{name}") for name in UPSTREAM_NAMES}
    for name, listed in UPSTREAM_NAMES.items():
        yield {f"{name}.{word}": hasattr(modules[name], word) for word in listed.split()}

    sweep, collect_results = modules["scripts.sweep"], modules["scripts.collect_results"]
    golden = REPO / "tests" / "golden" / "upstream" / "jobs.json"
    for case in json.loads(golden.read_text()).values():
        args_list = sweep.make_args_list(**case["keywords"])
        jobs = [sweep.Job(train_args, "out dir") for train_args in args_list]
        yield {"args": args_list, "jobs": [[str(job), job.command_str] for job in jobs]}
    for count in range(3, 7):
        yield {"combinations": list(sweep.all_test_env_combinations(count))}

    for values in ([], [0.25], [0.1, 0.2, 0.3], [0.5] * 3, [i / 7 for i in range(8)]):
        yield {"means": [collect_results.format_mean(values, latex) for latex in (False, True)]}

    class Last(modules["model_selection"].SelectionMethod):  # type: ignore[name-defined,misc]
        name = "a user's method"

        @classmethod
        def run_acc(cls, run_records: Any) -> dict[str, float]:
            last = run_records.sorted(lambda record: record["step"])[-1]
            return {"val_acc": last["env0_out_acc"], "test_acc": last["env1_in_acc"]}

    records = modules["lib.reporting"].load_records("complete")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        collect_results.print_results_tables(records, Last, False)
        collect_results.print_table([["1", 0.5]], "title", ["row"], ["", "a", "b"], 8, False)
        collect_results.print_table([["1", 0.5]], "title", ["row"], ["", "a", "b"], 8, True)
    yield {"printed": out.getvalue()}


def work(tree: Path, n_sweeps: int, upstream: Path | None) -> None:
    """Run everything in the current folder, and save the results in `results.json`."""
    import domainbed

    if not Path(domainbed.__path__[0]).is_relative_to(tree):
        raise SystemExit(f"{domainbed.__path__[0]} was imported, expected a folder below {tree}")
    make_own_datasets()
    results = {f"sweep {number}": [*run_drawn_sweep(number)] for number in range(n_sweeps)}
    results["local"] = [*run_local_sweeps()]
    results["upstream's records"] = [*run_upstream_records(upstream)]
    results["functions"] = [*call_functions()]
    Path("results.json").write_text(json.dumps(results))


def make_own_datasets() -> None:
    """Make datasets of one, two and three environments."""
    from PIL import Image

    for name, count in (("one", 1), ("two", 2), ("three", 3)):
        for env in range(count):
            for label in ("cat", "dog"):
                folder = Path("own", name, str(env), label)
                folder.mkdir(parents=True)
                Image.new("RGB", (8, 8)).save(folder / "1.png")


def run_tree(tree: Path, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run everything with the code of a tree, in a process, and return the results."""
    folder.mkdir()
    path = [tree, tree / "third_party", REPO / "tests"]
    done = subprocess.run(
        [sys.executable, __file__, WORKER, str(tree), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tree}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return dict(json.loads((folder / "results.json").read_text()))


def differences(base: Any, new: Any) -> list[str]:
    """Return the differences between two results as lines."""
    texts = [
        json.dumps(item, indent=1, sort_keys=True).replace("\\n", "\n").splitlines()
        for item in (base, new)
    ]
    return list(difflib.unified_diff(*texts, "base", "new", lineterm="", n=2))


def main() -> int:
    """Run both trees, print the differences, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path, help="checkout of this repository")
    parser.add_argument("new", type=Path, nargs="?", default=REPO, help="default: this tree")
    parser.add_argument("--sweeps", type=int, default=55, help="number of drawn sweeps")
    parser.add_argument("--upstream", type=Path, help="checkout of facebookresearch/DomainBed")
    parser.add_argument(WORKER, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.base, arguments.sweeps, arguments.upstream)
        return 0

    trees = {"base": arguments.base.resolve(), "new": arguments.new.resolve()}
    for tree in trees.values():
        if not (tree / "third_party" / "domainbed" / "scripts").is_dir():
            parser.error(f"expected a checkout of this repository in {tree}")
    options = ["--sweeps", str(arguments.sweeps)]
    if upstream := arguments.upstream and arguments.upstream.resolve():
        if not (upstream / RECORDED_SWEEP).is_dir():
            parser.error(f"expected a checkout of DomainBed in {upstream}")
        options += ["--upstream", str(upstream)]
    with tempfile.TemporaryDirectory() as folder:
        base, new = (run_tree(tree, options, Path(folder, name)) for name, tree in trees.items())

    different = [name for name in base if base[name] != new[name]]
    for name in different:
        print(f"{name}:", *differences(base[name], new[name])[:60], sep="\n")
    statuses = [item["status"] for items in base.values() for item in items if "status" in item]
    counts = ", ".join(f"{statuses.count(status)} with {status}" for status in (0, 1, 2))
    print(f"{len(statuses)} commands ({counts}) of {len(base)} groups; {len(different)} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
