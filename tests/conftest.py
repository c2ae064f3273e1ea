"""Shared fixtures: a cache folder, CLIP models with random weights, trained jobs, distributions."""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import packed_records
import pytest
from fake_checkout import REPO, run_python
from installed import NOT_SOURCE, PIP_OPTIONS, Environment, pip

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from sweep_folders import ForeignProcesses

    from domainbed_carft.jobs.job import Job
    from domainbed_carft.runs.export import ExportedFiles

Command = Callable[..., "subprocess.CompletedProcess[str]"]

# Small models gain nothing from a second thread, and on a busy machine two that wait for each other
# take ten times as long. Before torch is imported; sub-processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests started by nohup or in the background of a script inherit ignored signals, and so would the
# processes that they stop by signals. A handler is not inherited.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)

# Set before any test imports the package, and inherited by every sub-process, so that the user's
# own cache is neither read nor written.
_cache = tempfile.TemporaryDirectory(prefix="carft-test-cache-")
os.environ["DOMAINBED_CARFT_CACHE"] = _cache.name

# torch counts its devices at the first backward pass of a process, so the stand-in comes before it.
import stand_in_device  # noqa: E402


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        from domainbed_carft.machine import devices

        if not devices.is_gpu(devices.default_device()):
            pytest.skip("there is no GPU that torch can use")


# The arguments of a small ``clip.model.CLIP``.
TINY_SHAPE = {
    "embed_dim": 128,
    "image_resolution": 48,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 16,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}


def random_clip(seed: int = 0, **shape: Any) -> Any:
    """A randomly initialised ``clip.model.CLIP`` of this shape, float32."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import CLIP

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(**shape).eval()


@pytest.fixture(scope="session")
def random_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of a small CLIP with random weights."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "random tiny's.pt"
    torch.save(random_clip(**TINY_SHAPE).state_dict(), path)
    return path


@pytest.fixture
def stand_in() -> Iterator[torch.device]:
    """The stand-in for a GPU, on which the package computes during the test."""
    if stand_in_device.describe_unsupported():
        pytest.skip(stand_in_device.describe_unsupported())
    with stand_in_device.install() as device:
        yield device


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device for computations: the stand-in for a GPU, or a GPU with ``-m gpu``."""
    from domainbed_carft.machine import devices

    if request.param == "gpu":
        return devices.default_device()
    return request.getfixturevalue("stand_in")


@pytest.fixture
def carft(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `carft ARGUMENTS` in this process: ``carft("evaluate", folder, "--json").stdout``."""
    from domainbed_carft import cli

    return functools.partial(_run_main, capsys, cli.main)


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m domainbed.scripts.NAME ARGUMENTS` in this process: ``script("train", ...)``.

    Tests that assert on logs of a training read out.txt and err.txt, or the streams returned here.
    """

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        module = importlib.import_module(f"domainbed.scripts.{name}")
        return _run_main(capsys, module.main, *arguments)

    return run


def _run_main(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], int], *arguments: object
) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    capsys.readouterr()
    try:
        with mock.patch.dict(os.environ):  # commands set variables for the jobs that they start
            status = main(words)
    except SystemExit as end:  # argparse's, for wrong arguments and --help
        status = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(words, status, *capsys.readouterr())


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that building leaves nothing in this one."""
    copy = tmp_path_factory.mktemp("packaging") / "source"
    shutil.copytree(REPO, copy, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="session")
def sdist(source: Path) -> Path:
    """The source distribution."""
    code = "import sys, carft_backend; carft_backend.build_sdist(sys.argv[1])"
    folder = source.parent / "sdist"
    done = run_python("-c", code, str(folder), cwd=source, path=[source / "build_backend"])

    assert done.returncode == 0, done.stderr
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="session")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the unpacked source distribution alone."""
    folder = sdist.parent.parent
    with tarfile.open(sdist) as archive:
        # Older releases of 3.10 and 3.11 have no filters, 3.12 and 3.13 warn without one.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder / "unpacked")

    (unpacked,) = (folder / "unpacked").iterdir()
    pip("wheel", *PIP_OPTIONS, "--wheel-dir", str(folder / "wheel"), str(unpacked))
    (built,) = (folder / "wheel").iterdir()
    return built


@pytest.fixture(scope="session")
def installations(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path, source: Path
) -> dict[str, Environment]:
    """The package in two environments, "wheel" and "editable". Copy one before you change it."""
    folder = tmp_path_factory.mktemp("installed")
    from_wheel = Environment(folder / "wheel")
    from_wheel.install(str(wheel))

    in_place = Environment(folder / "editable")
    in_place.install("--editable", str(source))
    return {"wheel": from_wheel, "editable": in_place}


def built_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]
) -> Path:
    """Return a folder that the first worker builds by `build(folder)`, while the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    folder = root / "built once" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".built").exists():
            build(folder)
            (folder / ".built").touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that `domainbed.scripts.train` has run: CARFT on EmojiStyles.

    `trained_jobs` unpacks it. The learning rate is so high that the best step is not the last. The
    job has a uda-split, and records only the out-splits of the training environments.
    """
    import trained_jobs

    unpack = functools.partial(trained_jobs.unpack, trained_jobs.ON_EMOJI_STYLES)
    return built_once(tmp_path_factory, "job", unpack) / trained_jobs.ON_EMOJI_STYLES


@pytest.fixture(scope="session")
def files(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedFiles:
    """That job's export."""
    import export_jobs

    return export_jobs.exported(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's images, "my pets", next to a job of each algorithm on them."""
    import trained_jobs

    return built_once(tmp_path_factory, "pets", trained_jobs.unpack_pets)


@pytest.fixture(scope="session")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with a missing job, in a folder whose name a shell would split, and its report."""
    return built_once(tmp_path_factory, "it's <a> sweep", _write_incomplete_sweep)


def _write_incomplete_sweep(folder: Path) -> None:
    import report_page

    report_page.write_incomplete(folder / "sweep")
    assert report_page.report(folder / "sweep", folder / "new" / "report") == 0


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[Job]]:
    """The folder and the jobs of a launched sweep of 8 jobs, none of which has started."""
    import sweep_folders

    folder = tmp_path / "it's out"
    return folder, sweep_folders.write_launched_sweep(folder)


@pytest.fixture
def foreign_processes() -> Iterator[ForeignProcesses]:
    """Other processes that hold jobs or wait for them, until the test ends."""
    from sweep_folders import ForeignProcesses

    processes = ForeignProcesses()
    yield processes
    processes.kill()


@pytest.fixture(scope="session")
def peers_emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the sweep peers-emoji, unpacked from benchmarks/records."""
    return built_once(tmp_path_factory, "packed", packed_records.unpack) / "peers-emoji"


@pytest.fixture(scope="session")
def selected(peers_emoji: Path) -> pd.DataFrame:
    """The selected checkpoint of each job of peers-emoji, computed by pandas alone."""
    return packed_records.selected_checkpoints(peers_emoji)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The selected checkpoint of each job of fresh-emoji, computed by pandas alone."""
    folder = tmp_path_factory.mktemp("fresh")
    packed_records.unpack(folder, "fresh-emoji")
    return packed_records.selected_checkpoints(folder / "fresh-emoji")
