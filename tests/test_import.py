"""`import domainbed_carft` runs at every interpreter start, so it must load almost nothing."""

import ast
import re
import shutil

import pytest
from fake_checkout import REPO, run_python, write_checkout

# Runs under -S, so that no `.pth` file has imported anything before the watch begins.
START = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and opened.append(event))
before = set(sys.modules)
from domainbed_carft.plugin import install
install()
print(*sorted(set(sys.modules) - before), *opened)
"""


def test_start_hook_loads_only_its_own_modules_and_opens_no_socket():
    done = run_python("-S", "-c", START, cwd=REPO, path=[REPO])
    assert done.stdout.split() == ["domainbed_carft", "domainbed_carft.plugin"], done.stderr


def remove_modules(package):
    """Leave the folder of the plugin, empty."""
    for path in (package / "plugin").glob("*.py"):
        path.unlink()


def cut_short(package):
    """Leave a module that does not compile."""
    path = package / "plugin" / "__init__.py"
    path.write_text(path.read_text()[:-200])


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (lambda package: None, 0),
        (shutil.rmtree, 0),  # a source tree that was moved away
        (remove_modules, 1),
        (cut_short, 1),
    ],
)
def test_damaged_installation_prints_one_line_at_the_start(tmp_path, damage, lines):
    package = tmp_path / "domainbed_carft"
    shutil.copytree(REPO / "domainbed_carft" / "plugin", package / "plugin")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(REPO / "domainbed_carft" / name, package)
    backend = ast.parse((REPO / "build_backend" / "carft_backend.py").read_text())
    (line,) = (
        ast.literal_eval(node.value)
        for node in backend.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PTH"
    )
    (tmp_path / "domainbed_carft.pth").write_text(line)
    damage(package)

    start = f"import site; site.addsitedir({str(tmp_path)!r}); print('went on')"
    done = run_python("-S", "-c", start, cwd=REPO.parent)
    assert done.stdout == "went on\n"
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert ("domainbed-carft is damaged" in done.stderr) == bool(lines)


# In whatever order modules are imported, `domainbed.algorithms` has our algorithms. Each module is
# the first in a fork of an interpreter that has imported torch.
FIRST = """
import importlib, os, sys, torch, clip
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        from domainbed import algorithms
        from domainbed_carft.method.algorithms import CARFT
        assert issubclass(algorithms.get_algorithm_class("CARFT"), CARFT)
        assert algorithms.CARFT is algorithms.get_algorithm_class("CARFT")
        assert "CARFT" in algorithms.ALGORITHMS
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{module} was imported first")
"""


@pytest.mark.slow
def test_algorithms_are_complete_whichever_module_is_imported_first(tmp_path):
    write_checkout(tmp_path, "classic")
    modules = [f"domainbed_carft.method.{name}" for name in ("algorithm", "carft", "host_lookup")]
    done = run_python("-W", "ignore", "-c", FIRST, *modules, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_no_test_imports_from_another_one():
    """What several tests share is in tests/helpers, or in a module without tests."""
    pattern = re.compile(r"^ *(from|import) (harness)?\.?test_", re.MULTILINE)
    tests = [*(REPO / "tests").rglob("*.py")]
    assert not [path for path in tests if pattern.search(path.read_text())]
