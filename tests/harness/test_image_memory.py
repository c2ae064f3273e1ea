"""Evaluation images in memory."""

import json
from collections import Counter

import pytest
import torch
from domainbed.lib.fast_data_loader import UnfinishedBatch
from domainbed.scripts import train

from domainbed_carft import launchers, machine
from domainbed_carft.arguments import parse_memory_limit
from domainbed_carft.errors import CarftError
from domainbed_carft.images import loading

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")

IMAGE_BYTES = 3 * 224 * 224


def train_job(images, folder, *flags, hparams=None):
    """Train a job with four checkpoints, and return its comparable records."""
    hparams = {"batch_size": 4, **(hparams or {})}
    words = ["--dataset", str(images), "--hparams", json.dumps(hparams), *flags]
    assert train.main(fakes.quick_arguments(folder, *words)) == 0
    return fakes.comparable_records(folder)


@pytest.fixture
def decoded(monkeypatch):
    """Count the images of each environment that this process decodes."""
    counts = Counter()
    decode = loading.decode

    def counting(path):
        counts[path.split("/")[-3]] += 1
        return decode(path)

    monkeypatch.setattr(loading, "decode", counting)
    return counts


def test_images_in_memory_change_no_record_and_are_decoded_once(images, tmp_path, decoded, capsys):
    target, *sources = sorted(path.name for path in images.iterdir())
    expected = train_job(images, tmp_path / "augmented")
    assert decoded[target] == 10
    # At four checkpoints, and in seven steps.
    assert {decoded[source] for source in sources} == {4 * 10 + 7 * 4}

    assert train_job(images, tmp_path / "in loaders", "--workers", "2") == expected
    assert capsys.readouterr().out.count("evaluation images are kept in memory") == 2

    decoded.clear()
    assert train_job(images, tmp_path / "each time", "--image_memory", "0") == expected
    assert "evaluation images are read each time" in capsys.readouterr().out
    assert decoded[target] == 4 * 10

    decoded.clear()
    # The target has an in-split of 8 images and an out-split of 2.
    limit = str(5 * IMAGE_BYTES)
    assert train_job(images, tmp_path / "two", "--image_memory", limit) == expected
    assert decoded[target] == 4 * 8 + 2

    decoded.clear()
    train_job(images, tmp_path / "plain", hparams={"data_augmentation": False})
    assert {decoded[source] for source in sources} == {10 + 7 * 4}


def test_batch_of_loader_process_is_copied_out_of_shared_memory():
    # Each shared tensor takes a file descriptor; a process is limited to about a thousand.
    shared = torch.zeros(2, 4, 4, 3, dtype=torch.uint8).share_memory_()
    batch = UnfinishedBatch(None, shared, torch.zeros(2, 10), torch.zeros(2))
    copy = batch.copy()
    assert shared.is_shared()
    assert not any(part.is_shared() for part in (copy.images, copy.choices, copy.labels))


def test_image_memory_parses_units_and_refuses_other_text():
    sizes = [parse_memory_limit(text) for text in ("1.5G", "2mb", "7", "0")]
    assert sizes == [3 << 29, 2 << 20, 7, 0]
    for text in ("much", "-1", "", "²G", f"{10**20}"):
        with pytest.raises(CarftError, match="expected a size such as 8G or 500M"):
            parse_memory_limit(text)


def test_parallel_jobs_share_a_quarter_of_the_memory(monkeypatch):
    monkeypatch.delenv(machine.IMAGE_MEMORY, raising=False)
    monkeypatch.setattr(machine, "memory", lambda: 32 << 30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert parse_memory_limit(None) == 8 << 30

    slots = launchers.make("pool", {"jobs": "4"}).slots(10)
    limits = {parse_memory_limit(slot[machine.IMAGE_MEMORY]) for slot in slots}
    assert len(slots) == 4 and limits == {2 << 30}

    monkeypatch.setenv(machine.IMAGE_MEMORY, "1G")  # the user's value is not overridden
    assert machine.IMAGE_MEMORY not in launchers.make("pool", {"jobs": "4"}).slots(10)[0]


def test_memory_of_a_slurm_job_is_its_allocation(monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2")
    assert machine.memory() == 2 << 20
