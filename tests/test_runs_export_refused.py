"""What `carft export` refuses: other originals, places and values that cannot be written."""

import os

import pytest
import torch
import warm
from conftest import TINY_SHAPE, random_clip
from export_jobs import debug, exported

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.files.weights import sha256
from domainbed_carft.method import backbone
from domainbed_carft.runs import export, saved


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    return exported(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def run(trained):
    return saved.open_run(trained)


def test_the_original_is_missing_moved_or_another(random_tiny, tmp_path, capsys):
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(mine))
    mine.rename(tmp_path / "elsewhere.pt")

    def attempt(*more):
        capsys.readouterr()
        status = cli.main(["export", str(job), "-o", str(tmp_path / "out.pt"), *more])
        assert status == 0 or not list(tmp_path.glob("out*"))
        return status, capsys.readouterr().err

    for more in ((), ("--original", str(mine))):
        status, said = attempt(*more)
        assert status == 1 and "mine.pt" in said and "--original FILE" in said
    torch.save(random_clip(seed=1, **TINY_SHAPE).state_dict(), mine)
    for other in (str(mine), "tiny"):
        status, said = attempt("--original", other)
        digest = sha256(tmp_path / "elsewhere.pt")
        assert status == 1 and "is not the CLIP that" in said and f"expected {digest}" in said
    assert attempt("--original", str(tmp_path / "elsewhere.pt"))[0] == 0


def test_nothing_is_overwritten_unless_told(files, trained, run, tmp_path, capsys):
    (tmp_path / "out.md").write_text("mine")
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt")]) == 1
    said = capsys.readouterr().err
    assert "out.md is there already" in said and "--force" in said
    assert [p.name for p in tmp_path.iterdir()] == ["out.md"]
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt"), "--force"]) == 0
    assert (tmp_path / "out.pt").read_bytes() == files.weights.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / "out.md").read_text() != "mine"


def test_what_it_is_made_from_is_never_overwritten(trained, tmp_path):
    (tmp_path / "run.pt").write_bytes((trained / "model.pkl").read_bytes())
    with pytest.raises(CarftError, match="run.pt would overwrite an input"):
        export.export(saved.open_run(tmp_path / "run.pt"), tmp_path / "run.pt", force=True)
    original = tmp_path / "tiny.pt"
    original.write_bytes(backbone.locate("tiny")[0].read_bytes())
    with pytest.raises(CarftError, match="tiny.pt would overwrite an input"):
        run = saved.open_run(trained)
        export.export(run, original, original=str(original), force=True)
    assert sorted(os.listdir(tmp_path)) == ["run.pt", "tiny.pt"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out", "expected a name that ends in .pt or .pth"),
        ("out.json", "expected a name that ends in .pt or .pth"),
        ("no/such/out.pt", "expected the name of a file in a folder"),
        ("folder.pt", "folder.pt: expected the name of a file"),
    ],
)
def test_names_that_cannot_be_written(output, message, run, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CarftError, match=message):
        export.export(run, tmp_path / output, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.pt"]


def test_weights_that_are_no_numbers_are_refused(trained, tmp_path):
    run = saved.open_run(trained)
    run.algorithm.encoder.proj.data[0, 0] = 1e6
    with pytest.raises(CarftError, match="visual.proj has values .* without --half it may fit"):
        export.export(run, tmp_path / "out.pt", half=True)
    run.algorithm.encoder.proj.data[0, 0] = float("nan")
    with pytest.raises(CarftError, match="visual.proj has values .* the training diverged"):
        export.export(run, tmp_path / "out.pt")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full(files, trained, tmp_path):
    """Neither the weights, nor what was there, is cut."""
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (
        "import resource, sys; from domainbed_carft import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); sys.exit(cli.main())"
    )
    weights = tmp_path / files.weights.name
    done = warm.run("-c", code, "export", trained, "-o", weights, "--force")
    assert done.returncode == 1, done.stderr
    assert "File too large; nothing was overwritten" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
