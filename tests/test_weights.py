"""Files of weights may be a stranger's: nothing in them runs, and none is taken on trust."""

import json
import os
import random
import re
import shutil
import warnings
import zipfile

import pytest
import torch
from domainbed import networks
from domainbed.lib import resume
from domainbed.scripts import train
from test_algorithms import make
from test_runs_wise_ft import changed

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.runs import saved


class Program(torch.nn.Module):
    """As TorchScript it writes a file, ``victim``, as soon as ``torch.jit.load`` opens it."""

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
        torch.save(torch.ones(3), "victim")

    def forward(self, x):
        return x


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The archive of a program, which is not run by the test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "original.pt"
    victim = tmp_path / "victim"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Program()).save(str(path))
        torch.jit.load(str(path))
    victim.unlink()  # it does write
    yield path
    assert not victim.exists()


@pytest.mark.parametrize(
    "original, told",
    [(False, "Paths named in a run are not opened.*--original FILE"), (True, "is TorchScript, wh")],
)
@pytest.mark.parametrize("command", ["wise-ft", "export"])
def test_a_strangers_run_runs_no_torchscript(
    pets, tmp_path, hostile, capsys, command, original, told
):
    run = changed(pets, tmp_path / "stranger", clip_backbone=str(hostile))
    more = ["--original", str(hostile)] if original else []
    assert cli.main([command, str(run), "-o", str(tmp_path / "out.pt"), *more]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(told, said)


def test_training_runs_no_torchscript(tmp_path, hostile, capsys):
    hparams = {"clip_backbone": str(hostile), "warmup_steps": 0, "total_steps": 1}
    arguments = ["--algorithm", "CARFT", "--dataset", "Debug28", "--hparams", json.dumps(hparams)]
    assert train.main([*arguments, "--steps", "1", "--output_dir", str(tmp_path / "job")]) == 2
    assert "the file is TorchScript, which" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "words"), [("wise-ft", ["--alphas", "0.5"]), ("export", [])])
def test_the_user_names_the_clip_that_a_run_started_from(
    pets, tmp_path, capsys, monkeypatch, command, words
):
    """Even a good file is not opened for a run's word alone."""
    shutil.copy(openai.locate("tiny")[0], tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    run = changed(pets, tmp_path / "stranger", clip_backbone="mine.pt")
    arguments = [command, str(run), *words, "-o", str(tmp_path / "out.pt")]
    assert cli.main(arguments) == 1
    assert "started from the CLIP 'mine.pt'" in capsys.readouterr().err
    assert cli.main([*arguments, "--original", "mine.pt"]) == 0
    assert (tmp_path / "out.pt").exists()


def flip(path):
    """Turn one bit of the largest member of torch's archive."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 0x40
    path.write_bytes(content)


READERS = {
    "model.pkl": (saved.open_run, CarftError),
    "clip.pt": (lambda path: backbone.load(str(path)), CarftError),
    "state.pt": (lambda path: resume.load(str(path.parent)), resume.ResumeError),
    "resnet18-f37072fd.pth": (lambda path: networks.pretrained(networks.RESNET18), CarftError),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path, monkeypatch):
    """The place of a file of weights, and what reads it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / request.param, *READERS[request.param]


def test_every_reader_refuses_torchscript(reader, hostile):
    path, read, refusal = reader
    shutil.copy(hostile, path)
    with pytest.raises(refusal, match=f"{path.name} was not opened: the file is TorchScript"):
        read(path)


def test_every_reader_refuses_flipped_bits_and_code(reader):
    path, read, refusal = reader
    torch.save({"a": torch.rand(2000)}, path)
    flip(path)
    torch.load(path, weights_only=True)  # does not notice
    with pytest.raises(refusal, match=f"{path.name} is damaged: the checksum of .*data/0 is wrong"):
        read(path)
    torch.save({"a": make}, path)
    with pytest.raises(refusal, match="holds test_algorithms.make, which may be") as caught:
        read(path)
    assert "weights_only" not in str(caught.value)  # torch's advice is to read it unsafely


def test_damaged_files_are_refused_or_read_unchanged(tmp_path):
    """benchmarks/hostile.py tries more."""
    draw = random.Random(1)
    path = tmp_path / "x.pt"
    state = {"a": torch.rand(500), "b": ["c"] * 9}
    torch.save(state, path)
    whole = path.read_bytes()
    refused = 0
    for number in range(200):
        content = bytearray(whole)
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(content[: draw.randrange(len(whole)) if number % 4 == 0 else None])
        try:
            found = weights.load_weights(path)
            assert torch.equal(found["a"], state["a"]) and found["b"] == state["b"]
        except CarftError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 100


def test_a_clip_with_nan_weights_is_refused(tmp_path, random_tiny):
    state = torch.load(random_tiny, weights_only=True)
    state["visual.proj"][0, 0] = torch.nan
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CarftError, match="x.pt has NaN or infinity in 'visual.proj'"):
        backbone.load(str(tmp_path / "x.pt"))


def test_a_clip_with_weights_whose_sum_overflows_is_loaded(tmp_path, random_tiny):
    state = torch.load(random_tiny, weights_only=True)
    state["visual.proj"][0] = torch.finfo(torch.float32).max
    assert state["visual.proj"].sum().isinf()
    torch.save(state, tmp_path / "x.pt")
    loaded = backbone.load(str(tmp_path / "x.pt"))
    assert torch.equal(loaded.model.visual.proj, state["visual.proj"])


WORDS = [["a photo of a dog", "a photo of a cat"]]


def test_damaged_cached_text_features_are_computed_again(random_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path))
    clip_model = backbone.load(str(random_tiny))
    first = backbone.text_features(clip_model, WORDS)
    (kept,) = (tmp_path / "text").iterdir()
    flip(kept)
    assert torch.equal(backbone.text_features(clip_model, WORDS), first)
    assert torch.equal(weights.load_weights(kept).view_as(first), first)


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "clip.pt"
    path.write_bytes(b"a")
    assert weights.cached_sha256(path) == weights.sha256(path)

    path.write_bytes(b"ab")
    assert weights.cached_sha256(path) == weights.sha256(path)

    other = tmp_path / "other.pt"
    other.write_bytes(b"ba")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)  # of the same size and time
    assert weights.cached_sha256(path) == weights.sha256(path)
