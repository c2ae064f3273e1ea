"""The source distribution, the wheel built from it, installing and uninstalling.

Everything runs offline, in temporary environments that use the dependencies of this one
(`installed`). The distributions are built once per session (`conftest`).
"""

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

import pytest
from fake_checkout import REPO
from installed import Environment, pip

pytestmark = pytest.mark.slow
START_FILES = {"domainbed_carft.pth", "domainbed_carft.start"}

# One file of each kind in a source distribution.
SOURCE_FILES = {
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "ruff.toml",
    "Makefile",
    "LICENSE",
    "CITATION.cff",
    ".importlinter",
    "sweeps/demo.yaml",
    "containers/Dockerfile",
    ".github/ISSUE_TEMPLATE/ran-on-a-gpu.yml",
    "build_backend/carft_backend.py",
    "third_party/domainbed/__init__.py",
    "tests/test_packaging.py",
    "benchmarks/hook_cost.py",
}


def files_below(folder):
    """Return the files of a folder by relative path, without bytecode."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_source_distribution_has_required_files(source, sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= SOURCE_FILES
    assert names >= {f"domainbed_carft/{name}" for name in files_below(source / "domainbed_carft")}
    assert not [name for name in names if "__pycache__" in name]


def test_wheel_has_package_harness_and_sweeps_with_checksums(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len({*names})
        contents = {name: archive.read(name) for name in names}
    assert wheel.name.endswith("-py3-none-any.whl") and wheel.stat().st_size < 25e6

    for folder, place in (
        ("domainbed_carft", "domainbed_carft"),
        ("third_party/domainbed", "domainbed_carft/harness/domainbed"),
        ("sweeps", "domainbed_carft/sweeps"),
    ):
        for name, path in files_below(source / folder).items():
            if path.suffix != ".md":
                assert contents[f"{place}/{name}"] == path.read_bytes(), name

    (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
    top_names = {name.partition("/")[0] for name in names}
    assert top_names == {"domainbed_carft", record.partition("/")[0], *START_FILES}
    listed = {name: row for name, *row in csv.reader(io.StringIO(contents[record].decode()))}
    assert listed.keys() == contents.keys() and listed.pop(record) == ["", ""]
    for name, row in listed.items():
        digest = hashlib.sha256(contents[name]).digest()
        checksum = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        assert row == [f"sha256={checksum}", str(len(contents[name]))], name


def test_extras_of_pages_and_messages_are_spelled_as_in_the_metadata(wheel):
    """pip 23.2 installs nothing for another spelling, such as open_clip for open-clip."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    provided = {*re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)}

    places = ("README.md", "CONTRIBUTING.md", "RELEASING.md", "Makefile", "docs/**/*.md")
    sources = ("domainbed_carft/**/*.py", "third_party/**/*.py")
    texts = [
        path.read_text(encoding="utf-8")
        for pattern in (*places, *sources)
        for path in REPO.glob(pattern)
    ]
    named = [extra for text in texts for extra in re.findall(r"'\.\[([^\]]+)\]'", text)]
    assert {*named} == provided


@pytest.mark.parametrize("address", ["", "https://example.org/group/domainbed-carft"])
def test_links_of_index_page_are_absolute_and_exist(address):
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    make_page = runpy.run_path(str(REPO / "build_backend" / "index_page.py"))["index_page"]
    page = make_page(readme, name="domainbed-carft", version="1.2.3", address=address)

    targets = re.findall(r"\]\(([^)]+)\)", page) + re.findall(r'(?:src|srcset)="([^"]+)"', page)
    assert targets and all("://" in target for target in targets)
    assert "pip install domainbed-carft\n" in page
    clone = "git clone https://example.org/group/domainbed-carft && cd domainbed-carft\nmake demo "
    assert (clone in page) == bool(address)
    linked_files = re.findall(rf"{address}/(?:raw|blob)/v1\.2\.3/([^)\"#]+)", page)
    assert bool(linked_files) == bool(address)
    assert all((REPO / target).is_file() for target in linked_files)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_and_uninstall(kind, installations, source, tmp_path):
    shutil.copytree(
        installations[kind].python.parent.parent, tmp_path / "environment", symlinks=True
    )
    environment = Environment(tmp_path / "environment")
    files = environment.files()
    assert files > START_FILES and "domainbed" not in files
    assert (environment.python.parent / "carft").is_file()

    harness = environment.site_packages / "domainbed_carft" / "harness" / "domainbed"
    if kind == "editable":
        harness = source / "third_party" / "domainbed"
        (path_file,) = (name for name in files if name.startswith("__editable__"))
        assert path_file < min(START_FILES), "the path must be set before the hook"
    done = environment.run("-c", "import domainbed; print(domainbed.__file__)")
    assert os.path.samefile(done.stdout.strip(), harness / "__init__.py"), done.stderr
    done = environment.run("-m", "domainbed.scripts.sweep", "launch", "--help")
    assert "--command_launcher" in done.stdout, done.stderr

    pip("uninstall", "--yes", "--quiet", "domainbed-carft", python=environment.python)
    assert environment.files() == set()
    assert not (environment.python.parent / "carft").exists()
    done = environment.run("-c", "import sys; print(*sys.meta_path)")
    assert (done.returncode, done.stderr) == (0, "") and "domainbed_carft" not in done.stdout
