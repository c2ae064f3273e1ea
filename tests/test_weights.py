"""Files of weights may be a stranger's: nothing in them runs, and none is taken on trust."""

import json
import os
import random
import re
import shutil
import struct
import warnings
import zipfile
from collections import Counter

import pytest
import torch
import warm
from domainbed import networks
from domainbed.lib import resume
from domainbed.scripts import train
from sweep_jobs import wait_until
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
    "state.pt": (lambda path: resume.load(str(path.parent)), CarftError),
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


def offsets_outside_of_members(path):
    """Where the bytes of the directory and of the headers are, without those that only pad."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offsets = [*range(archive.start_dir, len(content))]
        for member in archive.infolist():
            start = member.header_offset
            name_length, extra_length = struct.unpack_from("<HH", content, start + 26)
            extra_header = min(extra_length, 4)
            offsets += range(start, start + 30 + name_length + extra_header)
    return offsets


def is_equal(value, expected):
    """Whether two contents of weights files are equal, NaN included."""
    if isinstance(expected, torch.Tensor):
        return value.dtype == expected.dtype and torch.equal(value, expected)
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(
            is_equal(value[key], expected[key]) for key in expected
        )
    if isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(map(is_equal, value, expected))
    return value == expected or (value != value and expected != expected)


def read_with_flips(path, flips):
    """How often the file was refused and read, with each of these bits of a byte flipped.

    Fails where something else was read than was written.
    """
    expected = weights.load_weights(path)
    outcomes = Counter()
    with open(path, "r+b", buffering=0) as file:
        content = path.read_bytes()
        for offset, bit in flips:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 1 << bit]), offset)
            try:
                assert is_equal(weights.load_weights(path), expected), (offset, bit)
                outcomes["read"] += 1
            except CarftError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                outcomes["refused"] += 1
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    return outcomes


def test_every_bit_of_headers_and_directory_is_refused_or_harmless(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(5), "b": ["c"]}, path)
    flips = [(offset, bit) for offset in offsets_outside_of_members(path) for bit in range(8)]
    outcomes = read_with_flips(path, flips)
    assert min(outcomes["refused"], outcomes["read"]) > 1000


def test_a_member_marked_as_a_folder_is_refused(tmp_path):
    """torch makes a tensor of uninitialised memory of it."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(5)}, path)
    content = bytearray(path.read_bytes())
    name = content.rindex(b"x/data/0")
    content[name - 46 + 38] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CarftError, match="x.pt is damaged: x/data/0 in it is marked as a folder"):
        weights.load_weights(path)


@pytest.fixture(scope="module")
def stopped_job(tmp_path_factory):
    """The folder of a job that was killed after its second checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "job"
    words = "--algorithm CARFT --dataset Debug28 --test_envs 0 --steps 9999 --checkpoint_freq 1"
    more = ["--hparams", '{"batch_size": 4}', "--workers", "0", "--output_dir", str(folder)]
    job = warm.start("-m", "domainbed.scripts.train", *words.split(), *more)
    wait_until(lambda: (folder / "state.pt").exists() and (folder / "model_best.pkl").exists())
    job.kill()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["state.pt", "model_best.pkl"])
def test_flipped_bits_of_a_jobs_files_are_refused_or_harmless(stopped_job, tmp_path, name):
    path = tmp_path / name
    shutil.copy(stopped_job / name, path)
    draw = random.Random(1)
    offsets = [draw.randrange(path.stat().st_size) for _ in range(1000)]
    offsets += draw.choices(offsets_outside_of_members(path), k=1000)
    outcomes = read_with_flips(path, [(offset, draw.randrange(8)) for offset in offsets])
    assert outcomes.total() == 2000 and outcomes["refused"] > 1000


def test_files_that_are_cut_off_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(500)}, path)
    whole = path.read_bytes()
    for length in random.Random(1).sample(range(len(whole)), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(CarftError, match="x.pt.*(is cut off|damaged)"):
            weights.load_weights(path)


READ_IN_LITTLE_MEMORY = """
import resource
from domainbed.lib import resume
from domainbed_carft.errors import PassingError
from domainbed_carft.files import weights

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
for read in (lambda: weights.load_weights("state.pt"), lambda: resume.load(".")):
    try:
        read()
    except PassingError as error:
        print(error)
"""


def test_too_little_memory_is_no_fault_of_the_file(tmp_path):
    torch.save({"a": torch.zeros(16 << 20)}, tmp_path / "state.pt")  # 64 MiB
    done = warm.run("-c", READ_IN_LITTLE_MEMORY, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert "state.pt was not read: out of memory with a file of 67,1" in line
        assert "delete" not in line


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
