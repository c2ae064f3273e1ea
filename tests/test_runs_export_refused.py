"""What `carft export` refuses: other originals, places and values that cannot be written."""

import pytest
import torch
import warm
from conftest import TINY_SHAPE, random_clip
from export_jobs import debug, exported

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import export, saved


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    return exported(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def run(trained):
    return saved.open_run(trained)


@pytest.fixture
def moved(random_tiny, tmp_path):
    """A run whose original CLIP was a file of the user's, which is gone."""
    backbone_file = tmp_path / "mine.pt"
    backbone_file.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(backbone_file))
    backbone_file.rename(tmp_path / "elsewhere.pt")
    return job


def test_the_original_is_missing_moved_or_another(moved, tmp_path, capsys):
    def attempt(*more):
        capsys.readouterr()
        status = cli.main(["export", str(moved), "-o", str(tmp_path / "out.pt"), *more])
        assert status == 0 or not list(tmp_path.glob("out*"))
        return status, capsys.readouterr().err

    mine = ("--original", str(tmp_path / "mine.pt"))
    for more in ((), mine):
        status, said = attempt(*more)
        assert status == 1 and "mine.pt" in said and "--original FILE" in said
    torch.save(random_clip(seed=1, **TINY_SHAPE).state_dict(), tmp_path / "mine.pt")
    status, said = attempt(*mine)
    assert status == 1 and "mine.pt is not the CLIP" in said and "text encoder" in said
    status, said = attempt("--original", "tiny")
    assert status == 1 and "other shapes in its image encoder, as in" in said
    scaled = torch.load(tmp_path / "elsewhere.pt", weights_only=True)
    scaled["logit_scale"] += 0.1
    torch.save(scaled, tmp_path / "mine.pt")
    assert "its logit scale is" in attempt(*mine)[1]
    assert attempt("--original", str(tmp_path / "elsewhere.pt"))[0] == 0


def test_another_image_encoder_is_noticed_where_none_was_trained(random_tiny, tmp_path):
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CLIPZeroShot", clip_backbone=str(mine))
    changed = torch.load(mine, weights_only=True)
    changed["visual.proj"] += 0.01
    torch.save(changed, mine)
    with pytest.raises(CarftError, match="other weights in its image encoder, as in proj"):
        export.export(saved.open_run(job), tmp_path / "out.pt", original=str(mine))


def test_nothing_is_overwritten_unless_told(files, trained, run, tmp_path, capsys):
    (tmp_path / "out.md").write_text("mine")
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt")]) == 1
    said = capsys.readouterr().err
    assert "already there" in said and "out.md" in said and "--force" in said
    assert [p.name for p in tmp_path.iterdir()] == ["out.md"]
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt"), "--force"]) == 0
    assert (tmp_path / "out.pt").read_bytes() == files.weights.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / "out.md").read_text() != "mine"


def test_what_it_is_made_from_is_never_overwritten(trained, random_tiny, tmp_path):
    (tmp_path / "run.pt").write_bytes((trained / "model.pkl").read_bytes())
    with pytest.raises(CarftError, match=r"run.pt is what this command reads"):
        export.export(saved.open_run(tmp_path / "run.pt"), tmp_path / "run.pt", force=True)
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    trained_from = debug(tmp_path / "job", "CARFT", clip_backbone=str(mine))
    with pytest.raises(CarftError, match=r"mine.pt is what this command reads"):
        export.export(saved.open_run(trained_from), mine, original=str(mine), force=True)
    assert mine.read_bytes() == random_tiny.read_bytes()
    with pytest.raises(CarftError, match=r"job.json is a file of a job"):  # beside job.pt
        export.export(
            saved.open_run(trained_from), tmp_path / "job/job.pt", original=str(mine), force=True
        )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out", "expected a name that ends in .pt or .pth"),
        ("out.json", "expected a name that ends in .pt or .pth"),
        ("no/such/out.pt", "no/such is no folder; make it first"),
        ("folder.pt", "folder.pt is a folder"),
    ],
)
def test_names_that_cannot_be_written(output, message, run, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CarftError, match=message):
        export.export(run, tmp_path / output, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.pt"]


def test_a_run_that_is_none(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path / "job"), "-o", str(tmp_path / "out.pt")]) == 1
    assert f"there is no {tmp_path / 'job'}" in capsys.readouterr().err


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
