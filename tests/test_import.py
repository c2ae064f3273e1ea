"""`import domainbed_carft` happens at every interpreter start, so it must load next to nothing."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from fake_checkout import REPO, run_python, write_files

# Runs under -S, so that no `.pth` file has imported anything before the watch begins; the
# site-packages folders are then appended as plain paths.
WATCHED_IMPORT = """
import json, sys
events = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and events.append(event))
module, *paths = sys.argv[1:]
sys.path[:0] = paths
__import__(module)
heavy = {"torch", "torchvision", "clip", "domainbed", "numpy", "pandas"} & set(sys.modules)
print(json.dumps({"heavy": sorted(heavy), "sockets": events}))
"""


def watched_import(module: str, *paths: Path) -> dict[str, list[str]]:
    """Import `module` in a new interpreter; return the heavy modules and the sockets it brought."""
    all_paths = [str(path) for path in paths] + [path for path in sys.path if path]
    arguments = ["-S", "-c", WATCHED_IMPORT, module, *all_paths]
    done = run_python(*arguments, cwd=REPO)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "module", ["domainbed_carft", "domainbed_carft.plugin", "domainbed_carft.errors"]
)
def test_loads_nothing_heavy_and_opens_no_socket(module: str) -> None:
    assert watched_import(module, REPO) == {"heavy": [], "sockets": []}


def test_the_check_notices_what_it_watches_for(tmp_path: Path) -> None:
    careless = "import numpy, socket\nsocket.socket().close()\n"
    write_files(tmp_path, {"numpy.py": "", "careless.py": careless})
    found = watched_import("careless", tmp_path)
    assert found["heavy"] == ["numpy"] and "socket.__new__" in found["sockets"]


def test_the_start_loads_its_own_modules_only() -> None:
    code = (
        "import os, sys; before = set(sys.modules); from domainbed_carft.plugin import install; "
        "install(); print(*sorted(set(sys.modules) - before))"
    )
    done = run_python("-S", "-c", code, cwd=REPO, path=[REPO])
    assert done.stdout.split() == [
        *("domainbed_carft", "domainbed_carft.plugin", "domainbed_carft.plugin.names")
    ], done.stderr


def cut_short(package: Path) -> None:
    path = package / "plugin" / "__init__.py"
    path.write_text(path.read_text()[:-200])


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (lambda package: None, 0),
        (shutil.rmtree, 0),  # a source tree that was moved away
        (lambda package: [path.unlink() for path in (package / "plugin").glob("*.py")], 1),
        (lambda package: (package / "plugin" / "__init__.py").write_text(""), 1),
        (lambda package: (package / "plugin" / "__init__.py").write_bytes(bytes(300)), 1),
        (cut_short, 1),
    ],
)
def test_a_half_installed_package_is_one_line_at_the_start(tmp_path, damage, lines) -> None:
    package = tmp_path / "domainbed_carft"
    shutil.copytree(REPO / "domainbed_carft" / "plugin", package / "plugin")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(REPO / "domainbed_carft" / name, package)
    backend = ast.parse((REPO / "build_backend" / "carft_backend.py").read_text())
    (text,) = (
        ast.literal_eval(node.value)
        for node in backend.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PTH"
    )
    write_files(tmp_path, {"domainbed_carft.pth": text})
    damage(package)
    start = f"import site; site.addsitedir({str(tmp_path)!r}); print('went on')"
    done = run_python("-S", "-c", start, cwd=REPO.parent)
    assert done.stdout == "went on\n"
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert not lines or "domainbed-carft is damaged" in done.stderr
