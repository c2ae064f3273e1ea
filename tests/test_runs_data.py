"""The splits of a saved run equal the splits of its training, image by image."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch
from domainbed import datasets
from domainbed.lib import misc, preparation
from fake_checkout import module_text, run_python, write_checkout
from runs_jobs import ENVIRONMENTS, copy_changed, records, write_images
from torch.utils.data import DataLoader

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved, splits


def splits_by_name(run):
    return {split.name: split for split in splits.read_data(run).splits}


def test_image_does_not_depend_on_how_it_is_loaded(trained):
    items = splits_by_name(saved.load_run(trained, "last", device="cpu"))["env1_out"].items
    images = next(iter(DataLoader(items, len(items))))[0]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(items[50][0], images[50])
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])

    with_workers = torch.cat([x for x, _ in DataLoader(items, 7, num_workers=2)])
    assert torch.equal(images, with_workers)

    best = saved.load_run(trained, "best", device="cpu")
    items_at_best_step = splits_by_name(best)["env1_out"].items
    assert not torch.equal(items_at_best_step[50][0], images[50])


@pytest.mark.parametrize(("name", "is_constant"), [("CLIPZeroShot", True), ("CARFT", False)])
def test_run_that_training_does_not_change_has_the_images_of_its_only_evaluation(
    pets, name, is_constant
):
    run = saved.load_run(pets / name, "last", device="cpu")
    evaluated_first = dataclasses.replace(run, step=0)
    last, first = (splits_by_name(r)["env1_out"].items for r in (run, evaluated_first))
    assert len(last) > 1
    pairs = [(last[index][0], first[index][0]) for index in range(len(last))]
    assert all(torch.equal(*pair) for pair in pairs) == is_constant


@pytest.mark.parametrize("which", ["best", pytest.param("last", marks=pytest.mark.slow)])
def test_splits_give_the_recorded_accuracies(trained, which):
    run = saved.load_run(trained, which, device="cpu")
    (record,) = (record for record in records(trained) if record["step"] == splits.get_step(run))
    by_name = splits_by_name(run)
    for name in ("env0_in", "env0_uda", "env1_out", "env2_out", "env3_out"):
        images, labels = next(iter(DataLoader(by_name[name].items, 1000)))
        with torch.no_grad():
            is_correct = run.algorithm.predict(images).argmax(dim=1) == labels
        assert int(is_correct.sum()) / len(labels) == record[f"{name}_acc"]


def test_debug_dataset_is_drawn_with_the_seed_of_the_run(pets, tmp_path):
    """Debug28 is noise, drawn after the seeds are set."""
    args = {"dataset": "Debug28", "seed": 7, "trial_seed": 2}
    parts = {"args": args, "image_plan": None, "model_input_shape": (3, 28, 28)}
    job = copy_changed(pets / "CLIPZeroShot", tmp_path, data_edition="", **parts)
    split = splits.read_data(saved.load_run(job, device="cpu")).splits[1]

    preparation.seed_everything(7)
    environment = datasets.Debug28(None, [0], {})[1]
    (_, in_split) = misc.split_dataset(environment, 3, misc.seed_hash(2, 1))
    assert len(split) == len(in_split) > 10
    assert all(torch.equal(split.items[i][0], in_split[i][0]) for i in range(len(in_split)))


def test_own_folder_with_two_targets_is_split_as_in_training(pets, tmp_path):
    args = {"test_envs": [0, 2], "uda_holdout_fraction": 0.3}
    job = copy_changed(pets / "CARFT", tmp_path, args=args, model_num_domains=1)
    by_name = splits_by_name(saved.load_run(job, device="cpu"))
    names = [f"env{i}_{part}" for part in ("in", "out") for i in range(3)]
    assert list(by_name) == [*names, "env0_uda", "env1_uda"]
    assert [split.is_target for split in by_name.values()] == [True, False, True] * 2 + [True] * 2
    assert [by_name[f"env{i}_uda"].environment for i in (0, 1)] == ["art", "sketch"]
    assert [len(by_name[name]) for name in ("env2_in", "env2_out", "env1_uda")] == [12, 4, 4]


@pytest.mark.parametrize(
    ("args", "data_dir", "message"),
    [
        ({"test_envs": [0, 1]}, None, "environments 4 then, 3 now"),
        ({"test_envs": [0, 7]}, None, "test_envs has .7., but there are 3 environments"),
        ({"dataset": "/gone"}, None, "for your own data, the data folder itself"),
        ({"dataset": "PACS"}, "/nowhere", "dataset PACS .* /nowhere .*/nowhere does not exist"),
        ({"dataset": "EmojiStyles"}, "/gone", "there is no folder /gone"),
        ({}, "/gone", "there is no folder /gone"),
    ],
)
def test_missing_or_different_data_is_an_error(pets, tmp_path, args, data_dir, message):
    run = saved.load_run(copy_changed(pets / "CARFT", tmp_path, args=args), device="cpu")
    with pytest.raises(CarftError, match=message):
        splits.read_data(run, data_dir)


def test_own_folder_can_be_moved_but_not_changed(pets, tmp_path):
    recorded = shutil.copytree(pets / "my pets", tmp_path / "recorded")
    args = {"dataset": str(recorded)}
    run = saved.load_run(copy_changed(pets / "CARFT", tmp_path / "job", args=args), device="cpu")
    before = [split.items.host_items.keys for split in splits.read_data(run).splits]
    moved = shutil.copytree(recorded, tmp_path / "moved")
    data = splits.read_data(run, str(moved), is_augmented=True)
    assert [split.items.host_items.keys for split in data.splits] == before
    assert data.dataset[0].root.startswith(str(moved))

    (moved / "art" / "cat" / "0.png").rename(moved / "art" / "wild dog" / "from cat.png")
    with pytest.raises(CarftError, match="data_edition consistent: .* then, consistent: .* now"):
        splits.read_data(run, str(moved))

    for environment in moved.iterdir():
        (environment / "cat").rename(environment / "zebra")
    message = r"classes \['cat', 'wild dog'\] then, \['wild dog', 'zebra'\] now. Restore the data"
    with pytest.raises(CarftError, match=message):
        splits.read_data(run, str(moved))


# A checkout with only the documented contract, and with DomainBed's `split_dataset`.
FOREIGN_MISC = """
import hashlib
import numpy as np
from torch.utils.data import Subset

def seed_hash(*args):
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)

def split_dataset(dataset, n, seed=0):
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    return Subset(dataset, keys[:n]), Subset(dataset, keys[n:])
"""
FOREIGN_JOB = """
import domainbed_carft; domainbed_carft.register()
import json, os, sys
import torch
from torch.utils.data import DataLoader
import domainbed
from domainbed import algorithms, datasets, hparams_registry

hparams = hparams_registry.default_hparams("CARFT", "Pets") | {"clip_backbone": "tiny"}
args = dict(
    algorithm="CARFT", dataset="Pets", data_dir="data", test_envs=[0], steps=None,
    trial_seed=3, seed=1, holdout_fraction=0.2, uda_holdout_fraction=0,
)
dataset = datasets.Pets(args["data_dir"], [0], hparams)
algorithm = algorithms.get_algorithm_class("CARFT")(dataset.input_shape, 2, 2, hparams)
torch.save({
    "args": args, "model_input_shape": dataset.input_shape, "model_num_classes": 2,
    "model_num_domains": 2, "model_hparams": hparams, "model_dict": algorithm.state_dict(),
}, "model.pkl")
os.rename("data", "moved")

from domainbed_carft.runs import saved, splits
read = splits.read_data(saved.load_run(".", device="cpu"), "moved").splits
passes = [torch.cat([x for x, _ in DataLoader(read[1].items, b)]) for b in (3, 8)]
print(json.dumps({
    "file": domainbed.__file__, "equal": torch.equal(*passes),
    "splits": [[s.name, s.environment, s.is_target, s.items.host_items.indices] for s in read],
}))
"""


@pytest.mark.slow
def test_splits_of_a_foreign_checkout_are_reproduced(tmp_path):
    text = module_text("datasets", "classic")
    text = text.replace("transforms.Resize((32, 32))", "transforms.RandomResizedCrop(32)")
    text = text.replace("ENVIRONMENTS = None", "ENVIRONMENTS, N_STEPS = None, 5001")
    modules = {"datasets": text, "lib/misc": FOREIGN_MISC}
    checkout = write_checkout(tmp_path / "checkout", "classic", modules)
    write_images(checkout / "data" / "Pets", count=5)

    done = run_python("-c", FOREIGN_JOB, cwd=checkout)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["file"].startswith(str(tmp_path)) and read["equal"]

    names = [[f"env{i}_{part}", e] for part in ("in", "out") for i, e in enumerate(ENVIRONMENTS)]
    assert [split[:2] for split in read["splits"]] == names
    assert [split[2] for split in read["splits"]] == [True, False, False] * 2

    for index in (1, 2):  # the target's in-split is divided again for domain adaptation
        keys = list(range(10))
        np.random.RandomState(misc.seed_hash(3, index)).shuffle(keys)
        assert read["splits"][index][3] + read["splits"][3 + index][3] == keys[2:] + keys[:2]
