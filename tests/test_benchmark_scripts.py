"""Every script in benchmarks/ runs once, with its smallest input; those that need a checkout of
DomainBed have a test of their imports and arguments.

Our harness stands in for a checkout where a script wants no more of it than its interface.
"""

import ast
import importlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from fake_checkout import REPO

BENCHMARKS = REPO / "benchmarks"
HARNESS = str(REPO / "third_party")
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py"))

MODULES = {"synthetic_tree.py"}  # imported by other scripts

# The smallest input of each script that needs no checkout; {new} is a folder that is not there.
COMMANDS = {
    "collect.py": "{new} --jobs 24 --rounds 2",
    "contamination.py": "{records}/contamination",
    "evaluation.py": "--images 64 --rounds 2 --workers 0",
    "hook_cost.py": "--runs 2",
    "hostile.py": "--minutes 0.01",
    "large_tree.py": "--folder {new} --scale 0.002 --steps 2 --workers 0 --distinct 10",
    "pictures.py": f"--upstream {HARNESS} --rounds 2",
    "step_cost.py": "--shape tiny --rounds 2",
    "sweep_evaluation.py": "--rounds 1 --trials 1 --images 4",
}

# Their exit status is 1 if a time misses its goal, as on a machine with other work.
MAY_MISS_A_GOAL = {"hook_cost.py", "sweep_evaluation.py"}

# Run by the tests of what they measure, on sweeps that those train.
RUN_ELSEWHERE = {"without_near_duplicates.py": "test_emoji_unseen.py"}

NEED_A_CHECKOUT = {"checkout_methods.py", "parity.py", "upstream_tests.py", "whole_sweep.py"}


def test_every_script_is_run_or_checked():
    assert {*SCRIPTS} == MODULES | COMMANDS.keys() | NEED_A_CHECKOUT | RUN_ELSEWHERE.keys()
    for script, module in RUN_ELSEWHERE.items():
        assert script.removesuffix(".py") in (REPO / "tests" / module).read_text()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    shutil.unpack_archive(BENCHMARKS / "records" / "contamination.tar.xz", folder, filter="data")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_it_runs_with_its_smallest_input(script, records, tmp_path):
    words = COMMANDS[script].format(new=tmp_path / "new", records=records).split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    has_missed_goal = done.returncode == 1 and script in MAY_MISS_A_GOAL
    assert done.returncode == 0 or has_missed_goal, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout.strip()


def imports_of(tree):
    """(module, name or "") of each import of the package or of another script, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_it_imports_from_us_is_there_and_shadowed_by_no_parameter(script, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    tree = ast.parse((BENCHMARKS / script).read_text(encoding="utf-8"))
    own_modules = {name.removesuffix(".py") for name in SCRIPTS}
    for module, name in imports_of(tree):
        if module.split(".")[0] in {"domainbed_carft", *own_modules}:
            imported = importlib.import_module(module)
            if name and not hasattr(imported, name):
                importlib.import_module(f"{module}.{name}")

    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            parameters = {argument.arg for argument in function.args.args}
            names = {name or module for module, name in imports_of(function)}
            assert not parameters & names, f"{function.name}: {parameters & names}"


@pytest.mark.parametrize("script", sorted(NEED_A_CHECKOUT))
def test_it_names_a_checkout_that_is_missing(script, tmp_path, monkeypatch, capsys):
    """After its arguments, which include those of the example in its docstring."""
    text = (BENCHMARKS / script).read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert ended.value.code == 0
    help_text = capsys.readouterr().out

    example = re.search(rf"^    python benchmarks/{script} (.*)$", text, re.MULTILINE)
    for flag in re.findall(r"--[a-z_-]+", example[1]):
        assert flag in help_text

    flag = ["--upstream"] if "--upstream" in help_text else []
    monkeypatch.setattr(sys, "argv", [script, *flag, str(tmp_path / "no checkout")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert ended.value.code == 2 and str(tmp_path / "no checkout") in capsys.readouterr().err
