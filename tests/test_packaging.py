"""The source distribution, the wheel built from it, and what installing and uninstalling do.

Everything runs offline, in throwaway environments that borrow the dependencies of this one.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_checkout import REPO, run_python

START_FILES = ("domainbed_carft.pth", "domainbed_carft.start")
PIP_OPTIONS = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--quiet")

# What a working tree holds that is not the project's source.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "node_modules",
    "*_output",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    find_spec("pip") is None, reason="building and installing need pip in this environment"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that building leaves nothing in this one."""
    copy = tmp_path_factory.mktemp("packaging") / "source"
    shutil.copytree(REPO, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    """The source distribution."""
    code = "import sys, carft_backend; carft_backend.build_sdist(sys.argv[1])"
    folder = source.parent / "sdist"
    done = run_python("-c", code, str(folder), cwd=source, path=[source / "build_backend"])
    assert done.returncode == 0, done.stderr
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the unpacked source distribution and nothing else."""
    folder = sdist.parent.parent
    with tarfile.open(sdist) as archive:
        # Older releases of 3.10 and 3.11 have no filters, 3.12 and 3.13 warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    pip("wheel", *PIP_OPTIONS, "--wheel-dir", str(folder / "wheel"), str(unpacked))
    (built,) = (folder / "wheel").iterdir()
    return built


class Environment:
    """A fresh environment without pip, with this one's packages as a last plain path.

    A plain path line does not process the `.pth` files of the folder it names, so nothing that
    is installed here is hooked there.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)
        self.python = folder / "bin" / "python"
        (self.site_packages,) = folder.glob("lib/python3*/site-packages")
        borrowed = self.site_packages / "_borrowed.pth"
        borrowed.write_text(sysconfig.get_paths()["purelib"] + "\n")
        self.elsewhere = folder / "an empty folder"
        self.elsewhere.mkdir()

    def install(self, *what: str) -> None:
        pip("install", *PIP_OPTIONS, "--ignore-installed", *what, python=self.python)

    def uninstall(self) -> None:
        pip("uninstall", "--yes", "--quiet", "domainbed-carft", python=self.python)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its interpreter from an empty folder."""
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.elsewhere,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def files(self) -> set[str]:
        """The names in its site-packages that an installation put there."""
        return {path.name for path in self.site_packages.iterdir()} - {"_borrowed.pth"}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def clean_environment() -> dict[str, str]:
    drop = ("PYTHON", "DOMAINBED_CARFT", "PIP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)}


def pip(*arguments: str, python: str | Path = sys.executable) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_harness(environment: Environment, expected: Path) -> None:
    """From an empty folder, `domainbed` is the harness in the folder `expected`."""
    done = environment.run("-c", "import domainbed; print(domainbed.__file__)")
    assert done.returncode == 0, done.stderr
    assert os.path.samefile(done.stdout.strip(), expected / "__init__.py")
    done = environment.run("-m", "domainbed.scripts.sweep", "launch", "--help")
    assert done.returncode == 0, done.stderr
    assert "--command_launcher" in done.stdout


def check_uninstalled(environment: Environment) -> None:
    """Nothing of ours is left, and an interpreter starts without a word."""
    environment.uninstall()
    assert environment.files() == set()
    assert not (environment.python.parent / "carft").exists()
    done = environment.run("-c", "import sys; print(*sys.meta_path)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "HostFinder" not in done.stdout


def test_the_source_distribution_is_enough(source: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "setup.cfg",
        "ruff.toml",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        "build_backend/carft_backend.py",
        "third_party/domainbed/__init__.py",
        "tests/test_packaging.py",
        "benchmarks/hook_cost.py",
    } <= names
    assets = (source / "domainbed_carft" / "assets").rglob("*")
    files = {path.relative_to(source).as_posix() for path in assets if path.is_file()}
    assert files <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel(source: Path, wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 25e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(archive.read(record).decode()))}
        contents = {name: archive.read(name) for name in names}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"domainbed_carft", record.partition("/")[0], *START_FILES}
    assert len(names) == len(set(names)) == len(rows)
    assert not [name for name in names if name.endswith(".pyc")]
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        expected = ["", ""] if name == record else [f"sha256={digest}", str(len(data))]
        assert rows[name] == expected, name
    for path in (source / "third_party" / "domainbed").rglob("*.py"):
        name = path.relative_to(source / "third_party").as_posix()
        assert contents[f"domainbed_carft/harness/{name}"] == path.read_bytes()
    for path in (source / "domainbed_carft").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(source).as_posix() in contents


def test_the_start_file_names_the_hook(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = archive.read("domainbed_carft.start").decode().strip()
        line = archive.read("domainbed_carft.pth").decode()
    assert re.fullmatch(r"[\w.]+:\w+", entry)
    assert callable(pkgutil.resolve_name(entry))
    assert line.startswith("import ") and line.count("\n") == 1


def test_installing_and_uninstalling_the_wheel(environment: Environment, wheel: Path) -> None:
    environment.install(str(wheel))
    files = environment.files()
    assert {"domainbed_carft", *START_FILES} <= files
    assert "domainbed" not in files
    assert (environment.python.parent / "carft").is_file()
    package = environment.site_packages / "domainbed_carft"
    check_harness(environment, package / "harness" / "domainbed")
    check_uninstalled(environment)


def test_installing_and_uninstalling_in_place(environment: Environment, source: Path) -> None:
    environment.install("--editable", str(source))
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


def test_one_version_of_each_tool_and_of_the_package() -> None:
    config = ConfigParser()
    config.read(REPO / "setup.cfg")
    lint = dict(re.findall(r"^([\w-]+)==(\S+)$", config["options.extras_require"]["lint"], re.M))
    assert {"ruff", "mypy"} <= lint.keys()
    hooks = (REPO / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {lint["ruff"]}
    package = (REPO / "domainbed_carft" / "__init__.py").read_text()
    citation = (REPO / "CITATION.cff").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', package, re.M)
    assert re.findall(r"^version: (.+)$", citation, re.M) == [version]
