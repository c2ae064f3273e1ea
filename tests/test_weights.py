"""Files of weights may be a stranger's: nothing in them runs, and none is taken on trust."""

import json
import shutil
import warnings

import pytest
import torch
from domainbed.scripts import train
from test_runs_wise_ft import changed

from domainbed_carft import backbone, cli
from domainbed_carft.errors import CarftError


def program(path, victim):
    """A TorchScript archive that writes ``victim`` as soon as ``torch.jit.load`` opens it."""
    source = f"""
import torch
class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.training = False
        self.w = torch.nn.Parameter(torch.zeros(1))
    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)
    @torch.jit.export
    def __setstate__(self, s: tuple[torch.Tensor, bool]):
        self.w = s[0]
        self.training = s[1]
        torch.save(torch.ones(3), {str(victim)!r})
    def forward(self, x):
        return x
"""
    code = path.with_suffix(".py")  # the compiler reads a function's source from its file
    code.write_text(source)
    names = {"__name__": "program"}
    exec(compile(source, str(code), "exec"), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(names["Program"]()).save(str(path))
    return path


@pytest.fixture
def victim(tmp_path):
    return tmp_path / "victim"


@pytest.fixture
def hostile(tmp_path, victim):
    path = program(tmp_path / "original.pt", victim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(path))
    victim.unlink()  # it does write
    return path


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("command", ["wise-ft", "export"])
def test_a_strangers_run_runs_no_torchscript(
    pets, tmp_path, hostile, victim, capsys, command, original
):
    run = changed(pets, tmp_path / "stranger", clip_backbone=str(hostile))
    more = ["--original", str(hostile)] if original else []
    assert cli.main([command, str(run), "-o", str(tmp_path / "out.pt"), *more]) == 1
    said = capsys.readouterr().err
    assert not victim.exists() and len(said.splitlines()) == 1
    if original:
        assert "is a TorchScript archive" in said and "torch.save(clip_model.state_dict()" in said
    else:
        assert "that a run names is not opened" in said and "--original FILE" in said


def test_training_runs_no_torchscript(tmp_path, hostile, victim, capsys):
    hparams = {"clip_backbone": str(hostile), "warmup_steps": 0, "total_steps": 1}
    arguments = ["--algorithm", "CARFT", "--dataset", "Debug28", "--hparams", json.dumps(hparams)]
    assert train.main([*arguments, "--steps", "1", "--output_dir", str(tmp_path / "job")]) == 2
    assert not victim.exists() and "is a TorchScript archive" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["wise-ft", "export"])
def test_the_user_names_the_clip_that_a_run_started_from(
    pets, tmp_path, capsys, monkeypatch, command
):
    """Even a good file is not opened for a run's word alone."""
    shutil.copy(backbone.locate("tiny")[0], tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    run = changed(pets, tmp_path / "stranger", clip_backbone="mine.pt")
    arguments = [command, str(run), "-o", str(tmp_path / "out.pt")]
    assert cli.main(arguments) == 1
    assert "started from the CLIP 'mine.pt'" in capsys.readouterr().err
    assert cli.main([*arguments, "--original", "mine.pt"]) == 0
    assert (tmp_path / "out.pt").exists()


def test_openais_own_archive_is_known_by_its_digest(tmp_path, hostile, victim, monkeypatch):
    published = ("ViT-B-32.pt", backbone.sha256(hostile))
    monkeypatch.setitem(backbone.OPENAI_WEIGHTS, "ViT-B/32", published)
    with pytest.raises(CarftError, match="not a CLIP in OpenAI's format"):
        backbone.load(str(hostile))
    assert victim.exists()
