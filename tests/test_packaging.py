"""The source distribution, the wheel built from it, and what installing and uninstalling do.

Everything runs offline, in throwaway environments that borrow the dependencies of this one
(`installed`); what is built is built once a session (`conftest`).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import runpy
import shutil
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_checkout import REPO
from installed import Environment

START_FILES = ("domainbed_carft.pth", "domainbed_carft.start")

# One of each kind that a source distribution has to have.
SOURCE_FILES = {
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "ruff.toml",
    "Makefile",
    "LICENSE",
    "CITATION.cff",
    "sweeps/demo.yaml",
    "containers/Dockerfile",
    ".github/ISSUE_TEMPLATE/ran-on-a-gpu.yml",
    "build_backend/carft_backend.py",
    "build_backend/index_page.py",
    "third_party/domainbed/__init__.py",
    "tests/test_packaging.py",
    "benchmarks/hook_cost.py",
}

LARGEST_WHEEL = 25e6  # bytes

README = (REPO / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(
    find_spec("pip") is None, reason="building and installing need pip in this environment"
)


def copy_of(environment: Environment, folder: Path) -> Environment:
    """The environment once more, in another folder."""
    shutil.copytree(environment.python.parent.parent, folder, symlinks=True)
    return Environment(folder)


def check_harness(environment: Environment, expected: Path) -> None:
    """From an empty folder, `domainbed` is the harness in the folder `expected`."""
    done = environment.run("-c", "import domainbed; print(domainbed.__file__)")
    assert done.returncode == 0, done.stderr
    assert os.path.samefile(done.stdout.strip(), expected / "__init__.py")

    done = environment.run("-m", "domainbed.scripts.sweep", "launch", "--help")
    assert done.returncode == 0, done.stderr
    assert "--command_launcher" in done.stdout


def check_uninstalled(environment: Environment) -> None:
    """Uninstalling leaves nothing of ours, and an interpreter starts silently."""
    environment.uninstall()

    assert environment.files() == set()
    assert not (environment.python.parent / "carft").exists()

    done = environment.run("-c", "import sys; print(*sys.meta_path)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "domainbed_carft" not in done.stdout


def test_the_source_distribution_has_all_files_that_are_needed(source: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert names >= SOURCE_FILES
    assets = (source / "domainbed_carft" / "assets").rglob("*")
    files = {path.relative_to(source).as_posix() for path in assets if path.is_file()}
    assert files <= names
    assert not [name for name in names if "__pycache__" in name]


@pytest.fixture
def wheel_contents(wheel: Path) -> dict[str, bytes]:
    """Name -> content of each file in the wheel; no name is there twice."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        return {name: archive.read(name) for name in names}


def test_the_wheel_lists_its_files_with_their_checksums(
    wheel: Path, wheel_contents: dict[str, bytes]
) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < LARGEST_WHEEL

    (record,) = (name for name in wheel_contents if name.endswith(".dist-info/RECORD"))
    top_names = {name.partition("/")[0] for name in wheel_contents}
    assert top_names == {"domainbed_carft", record.partition("/")[0], *START_FILES}

    rows = csv.reader(io.StringIO(wheel_contents[record].decode()))
    listed = {name: (checksum, size) for name, checksum, size in rows}
    assert listed.keys() == wheel_contents.keys()
    assert listed.pop(record) == ("", "")
    for name, row in listed.items():
        content = wheel_contents[name]
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert row == (f"sha256={digest}", str(len(content))), name


def test_the_wheel_has_the_package_the_harness_and_the_sweeps(
    source: Path, wheel_contents: dict[str, bytes]
) -> None:
    for path in (source / "third_party" / "domainbed").rglob("*.py"):
        name = path.relative_to(source / "third_party").as_posix()
        assert wheel_contents[f"domainbed_carft/harness/{name}"] == path.read_bytes()

    for path in (source / "sweeps").glob("*.yaml"):
        assert wheel_contents[f"domainbed_carft/sweeps/{path.name}"] == path.read_bytes()
    assert "domainbed_carft/sweeps/demo.yaml" in wheel_contents

    for path in (source / "domainbed_carft").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(source).as_posix() in wheel_contents


def index_page(address: str) -> str:
    """README as the package index shows it, for a repository at this address."""
    make_page = runpy.run_path(str(REPO / "build_backend" / "index_page.py"))["index_page"]
    return make_page(README, name="domainbed-carft", version="0.3.0", address=address)


def test_without_an_address_the_index_shows_no_links_into_the_repository(
    wheel_contents: dict[str, bytes],
) -> None:
    (name,) = (name for name in wheel_contents if name.endswith(".dist-info/METADATA"))
    page = wheel_contents[name].decode().partition("\n\n")[2]

    assert [link for link in re.findall(r"\]\(([^)]+)\)", page) if "://" not in link] == []
    assert "<img" not in page
    assert "pip install domainbed-carft\n" in page
    assert "/path/to/this/clone" not in page
    for line in README.splitlines():  # nothing else is lost
        if (line.startswith("    ") and "clone" not in line) or line.startswith("## "):
            assert line in page


def test_with_an_address_the_index_links_to_the_release() -> None:
    address = "https://example.org/group/domainbed-carft"
    page = index_page(address)

    links = re.findall(r"\]\(([^)]+)\)", README)
    linked = [link for link in links if "://" not in link]
    assert linked
    for link in linked:
        kind = "raw" if link.endswith((".png", ".svg")) else "blob"
        assert f"]({address}/{kind}/v0.3.0/{link})" in page
        assert (REPO / link.partition("#")[0]).is_file()

    sources = re.findall(r'(?:src|srcset)="([^"]+)"', page)
    prefix = f"{address}/raw/v0.3.0/"
    assert sources and all((REPO / source.removeprefix(prefix)).is_file() for source in sources)
    assert f"    git clone {address} && cd domainbed-carft\n    make demo" in page


def test_installing_and_uninstalling_the_wheel(
    installations: dict[str, Environment], tmp_path: Path
) -> None:
    environment = copy_of(installations["wheel"], tmp_path / "environment")

    files = environment.files()
    assert {"domainbed_carft", *START_FILES} <= files
    assert "domainbed" not in files
    assert (environment.python.parent / "carft").is_file()

    package = environment.site_packages / "domainbed_carft"
    check_harness(environment, package / "harness" / "domainbed")
    check_uninstalled(environment)


def test_installing_and_uninstalling_in_place(
    installations: dict[str, Environment], source: Path, tmp_path: Path
) -> None:
    environment = copy_of(installations["editable"], tmp_path / "environment")

    files = environment.files()
    assert set(START_FILES) < files
    assert not {"domainbed", "domainbed_carft"} & files
    assert (environment.python.parent / "carft").is_file()

    editable = [name for name in files if name.startswith("__editable__")]
    assert [name.endswith(".pth") for name in editable] == [True], "a plain path line, no finder"
    assert max(editable) < min(START_FILES), "the path must be there before the hook"
    check_harness(environment, source / "third_party" / "domainbed")

    source.rename(source.with_name("moved"))
    try:
        done = environment.run("-c", "pass")
        assert (done.returncode, done.stderr) == (0, ""), "a tree that moved away is no error"
    finally:
        source.with_name("moved").rename(source)

    check_uninstalled(environment)


def test_the_linters_have_one_version() -> None:
    config = ConfigParser()
    config.read(REPO / "setup.cfg")
    lint = dict(re.findall(r"^([\w-]+)==(\S+)$", config["options.extras_require"]["lint"], re.M))
    assert {"ruff", "mypy"} <= lint.keys()
    hooks = (REPO / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {lint["ruff"]}


def test_the_package_has_one_version() -> None:
    package = (REPO / "domainbed_carft" / "version.py").read_text()
    citation = (REPO / "CITATION.cff").read_text()

    (version,) = re.findall(r'^__version__ = "(.+)"$', package, re.M)
    assert re.findall(r"^version: (.+)$", citation, re.M) == [version]
