"""Untrusted weights files: code in them is not run, and damaged files are refused."""

import random
import warnings
import zipfile

import pytest
import torch
from domainbed import networks
from domainbed.lib import resume
from fake_checkout import run_python

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.runs import saved

READERS = {
    "model.pkl": saved.load_run,
    "clip.pt": lambda path: backbone.load(str(path)),
    "state.pt": lambda path: resume.load(str(path.parent)),
    "resnet18-f37072fd.pth": lambda path: networks.pretrained(networks.RESNET18),
}


@pytest.fixture(params=READERS)
def reader(request, tmp_path, monkeypatch):
    """Return the path of a weights file, and the function that reads it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / request.param, READERS[request.param]


def test_torchscript_is_refused_by_all_readers(reader):
    path, read = reader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    with pytest.raises(CarftError, match=f"{path.name} was not opened: the file is TorchScript"):
        read(path)


def flip_largest(path):
    """Flip a bit of the largest member of torch's archive."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 0x40
    path.write_bytes(content)


def test_flipped_bits_and_code_are_refused_by_all_readers(reader):
    path, read = reader
    torch.save({"a": torch.rand(2000)}, path)
    flip_largest(path)
    torch.load(path, weights_only=True)  # does not notice
    with pytest.raises(CarftError, match=f"{path.name} is damaged: the checksum of .*data/0 is"):
        read(path)

    torch.save({"a": flip_largest}, path)
    with pytest.raises(CarftError, match="contains test_weights.flip_largest, which") as caught:
        read(path)
    assert "weights_only" not in str(caught.value)  # torch's advice is to read it unsafely


def test_member_marked_as_a_folder_is_refused(tmp_path):
    # torch would return a tensor of uninitialised memory.
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(5)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"x/data/0") - 46 + 38] ^= 0x10  # of its attributes in the directory
    path.write_bytes(content)
    with pytest.raises(CarftError, match="x.pt is damaged: x/data/0 in it is marked as a folder"):
        weights.load_weights(path)


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.rand(500)}, path)
    content = path.read_bytes()
    for length in random.Random(1).sample(range(len(content)), 50):
        path.write_bytes(content[:length])
        with pytest.raises(CarftError, match="x.pt.*(is cut off|damaged)"):
            weights.load_weights(path)


READ_IN_LITTLE_MEMORY = """
import resource
from domainbed.lib import resume
from domainbed_carft.errors import TransientError
from domainbed_carft.files import weights

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)
for read in (lambda: weights.load_weights("state.pt"), lambda: resume.load(".")):
    try:
        read()
    except TransientError as error:
        print(error)
"""


def test_lack_of_memory_is_a_transient_error(tmp_path):
    torch.save({"a": torch.zeros(16 << 20)}, tmp_path / "state.pt")  # 64 MiB
    done = run_python("-c", READ_IN_LITTLE_MEMORY, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert "state.pt was not read: out of memory with a file of 67,1" in line
        assert "delete" not in line


def test_clip_with_nan_weights_is_refused(tmp_path, random_tiny):
    state = torch.load(random_tiny, weights_only=True)
    state["visual.proj"][0, 0] = torch.nan
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CarftError, match="x.pt .*'visual.proj'"):
        backbone.load(str(tmp_path / "x.pt"))
