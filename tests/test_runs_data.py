"""The splits of a saved run are those that it was trained on, to the picture."""

import dataclasses
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import runs_jobs
import torch
from domainbed import datasets
from domainbed.lib import misc, preparation
from domainbed.scripts import train
from fake_checkout import module_text, run_python_with_torch, write_checkout
from runs_jobs import ENVIRONMENTS, evaluated, train_job, write_pictures
from torch.utils.data import DataLoader

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.splits import split_environments
from domainbed_carft.method import dataset_facts
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as data


def split_of(run, name):
    return next(split for split in data.splits(run) if split.name == name)


def test_a_picture_is_the_same_however_it_is_loaded(trained):
    """Also as the records have it, whose accuracy the pictures give."""
    run = saved.open_run(trained)
    items = split_of(run, "env1_out").items
    pictures, labels = next(iter(DataLoader(items, len(items))))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert torch.equal(items[50][0], pictures[50])
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])

    with_workers = torch.cat([x for x, _ in DataLoader(items, 7, num_workers=2)])
    assert torch.equal(pictures, with_workers)

    with torch.no_grad():
        is_correct = run.algorithm.predict(pictures).argmax(dim=1) == labels
    recorded = runs_jobs.records(trained)[-1]["env1_out_acc"]
    assert int(is_correct.sum()) / len(items) == recorded

    at_another_step = split_of(saved.open_run(trained, "best"), "env1_out").items
    assert not torch.equal(at_another_step[50][0], pictures[50])


def test_splits_equal_the_harnesss(trained):
    run = saved.open_run(trained)
    dataset = datasets.EmojiStyles(None, [0], dict(run.hparams))
    expected = split_environments(
        environments=dataset,
        targets=[0],
        trial_seed=0,
        holdout_fraction=0.2,
        uda_holdout_fraction=0.25,
        host_functions=misc,
    )
    all_of_them = data.splits(run)
    names = [f"env{i}_{part}" for part in ("in", "out") for i in range(4)]
    assert [split.name for split in all_of_them] == [*names, "env0_uda"]
    assert [s.is_target for s in all_of_them] == [True, False, False, False] * 2 + [True]

    split_items = {split.name: split.items._items for split in all_of_them}
    for index, environment in enumerate(expected):
        assert split_items[f"env{index}_in"].keys == environment.in_split.keys
        assert split_items[f"env{index}_out"].keys == environment.out_split.keys
    assert split_items["env0_uda"].keys == expected[0].uda_split.keys


def test_random_data_of_a_run_is_drawn_again(tmp_path):
    """Debug28 is noise, made after the seeds were set."""
    arguments = ["--algorithm", "CLIPZeroShot", "--dataset", "Debug28", "--workers", "0"]
    further_arguments = [
        "--steps",
        "1",
        "--seed",
        "7",
        "--trial_seed",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    assert train.main([*arguments, *further_arguments]) == 0

    run = saved.open_run(tmp_path)
    preparation.seed_everything(7)
    expected = datasets.Debug28(None, [0], {})[1]
    (_, in_split) = misc.split_dataset(expected, 3, misc.seed_hash(2, 1))
    split = data.splits(run)[1]
    assert all(torch.equal(split.items[i][0], in_split[i][0]) for i in range(len(in_split)))


def test_a_users_own_folder_with_two_targets(pets, tmp_path, capsys):
    job = train_job(
        tmp_path / "job",
        pets / "my pets",
        "CLIPLinearProbe",
        "--uda_holdout_fraction",
        "0.3",
        test_envs=("0", "2"),
    )
    run = saved.open_run(job)
    splits = {split.name: split for split in data.splits(run)}
    assert run.classes == ["cat", "wild dog"]
    assert splits["env0_in"].environment == "art" and not splits["env1_in"].is_target
    assert [splits[f"env{i}_uda"].environment for i in (0, 1)] == ["art", "sketch"]

    recorded = runs_jobs.accuracies(runs_jobs.records(job)[-1])
    assert runs_jobs.by_split(evaluated(capsys, job, "--which", "last")) == recorded


def test_other_data_than_the_runs_is_refused(pets, tmp_path):
    run = saved.open_run(pets / "CARFT")

    def altered(**args):
        return dataclasses.replace(run, args={**run.args, **args})

    with pytest.raises(CarftError, match="environments 4 then, 3 now"):
        data.splits(altered(test_envs=[0, 1]))

    with pytest.raises(CarftError, match="cannot be read from there and split as in training"):
        data.splits(altered(holdout_fraction="a fifth"))

    with pytest.raises(CarftError, match="cannot be read from there .*with --data_dir"):
        data.splits(altered(dataset=str(tmp_path / "gone")))

    with pytest.raises(CarftError, match="data set PACS .* /nowhere .*/nowhere does not exist"):
        data.splits(altered(dataset="PACS"), "/nowhere")

    run.algorithm.input.shift += 0.5
    with pytest.raises(CarftError, match=r"normalisation \[.*\] then, \["):
        data.splits(run)


def test_a_data_folder_that_is_missing_is_named(trained):
    """Also for pictures that come with the package, which are not looked for there."""
    with pytest.raises(CarftError, match="there is no folder /gone"):
        data.splits(saved.open_run(trained), "/gone")


def test_a_users_own_folder_is_found_where_it_is_now_and_refused_once_changed(pets, tmp_path):
    shutil.copytree(pets / "my pets", tmp_path / "here")
    run = saved.open_run(train_job(tmp_path / "job", tmp_path / "here", "CLIPLinearProbe"))
    before = [split.items._items.keys for split in data.splits(run)]
    root = (tmp_path / "here").rename(tmp_path / "there")
    moved_splits = data.splits(run, str(root))
    assert [split.items._items.keys for split in moved_splits] == before

    with pytest.raises(CarftError, match="for your own data, the data folder itself"):
        data.splits(run)

    shutil.copytree(root, tmp_path / "here")  # as recorded; what is given still counts
    for folder in ("here", "there"):
        split = data.splits(run, str(tmp_path / folder))[0]
        items = split.items._items
        while hasattr(items, "indices"):
            items = items.dataset
        assert items.root.startswith(str(tmp_path / folder))

    for missing_folder in (str(tmp_path / "gone"), "gone"):
        with pytest.raises(CarftError, match=f"there is no folder {missing_folder}[.]"):
            data.splits(run, missing_folder)

    (root / "art" / "cat" / "0.png").rename(root / "art" / "wild dog" / "from cat.png")
    with pytest.raises(CarftError, match="data_edition consistent: .* then, consistent: .* now"):
        data.splits(run, str(root))

    for environment in root.iterdir():
        (environment / "cat").rename(environment / "zebra")
    message = r"classes \['cat', 'wild dog'\] then, \['wild dog', 'zebra'\] now. Restore the data"
    with pytest.raises(CarftError, match=message):
        data.splits(run, str(root))


class OneEnvironment:
    num_classes = 1000

    def __len__(self):
        return 1


def test_of_a_thousand_classes_only_different_ones_are_named():
    classes = [f"class {number}" for number in range(1000)]
    changed = [*classes[:700], "another", *classes[701:]]
    facts = dataset_facts.DatasetFacts([dataset_facts.EnvironmentFacts("train", changed)])
    run = SimpleNamespace(
        path=Path("job"),
        args={"dataset": "ImageNet"},
        classes=classes,
        content={"model_num_domains": 1},
        hparams={"class_names": "dataset:ImageNet", "data_edition": ""},
    )
    message = r"classes \['class 700'\] then, \['another'\] now"
    with pytest.raises(CarftError, match=message) as raised:
        data.require_same_data(run, OneEnvironment(), [], facts)
    assert len(str(raised.value)) < 300


# After the contract: what DomainBed's `lib.misc` has, a data set that augments, and `train`'s end.
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
REGISTERED = "import domainbed_carft; domainbed_carft.register()\n"
FOREIGN_TRAIN = """
import sys
import torch
from domainbed import algorithms, datasets, hparams_registry
from torchvision import transforms
hparams = hparams_registry.default_hparams("CARFT", "Pets") | {"clip_backbone": "tiny"}
args = dict(
    algorithm="CARFT", dataset="Pets", data_dir=sys.argv[1], test_envs=[0], steps=None,
    trial_seed=3, seed=1, holdout_fraction=0.2, uda_holdout_fraction=0,
)
dataset = datasets.Pets(args["data_dir"], [0], hparams)
algorithm = algorithms.get_algorithm_class("CARFT")(dataset.input_shape, 2, 2, hparams)
torch.save({
    "args": args, "model_input_shape": dataset.input_shape, "model_num_classes": 2,
    "model_num_domains": 2, "model_hparams": hparams, "model_dict": algorithm.state_dict(),
}, sys.argv[2])
"""
FOREIGN_READ = """
import json, sys
import torch
from torch.utils.data import DataLoader
import domainbed
from domainbed_carft.runs import saved
from domainbed_carft.runs import splits as data
run = saved.open_run(sys.argv[1])
found = data.splits(run, sys.argv[2])
passes = [torch.cat([x for x, _ in DataLoader(found[1].items, b)]) for b in (3, 8)]
print(json.dumps({
    "file": domainbed.__file__, "equal": torch.equal(*passes),
    "splits": [[s.name, s.environment, s.is_target, s.items._items.indices] for s in found],
}))
"""


def test_splits_of_a_foreign_checkout_are_reproduced(tmp_path):
    """Read again by a DomainBed of another make, of which only the contract is known."""
    text = module_text("datasets", "classic")
    text = text.replace("transforms.Resize((32, 32))", "transforms.RandomResizedCrop(32)")
    text = text.replace("ENVIRONMENTS = None", "ENVIRONMENTS, N_STEPS = None, 5001")
    modules = {"datasets": text, "lib/misc": FOREIGN_MISC}
    write_checkout(tmp_path / "checkout", "classic", modules)
    write_pictures(tmp_path / "data" / "Pets", count=5)

    def python(*arguments):
        done = run_python_with_torch("-c", *arguments, cwd=tmp_path / "checkout")
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    (tmp_path / "job").mkdir()
    python(REGISTERED + FOREIGN_TRAIN, str(tmp_path / "data"), str(tmp_path / "job" / "model.pkl"))
    (tmp_path / "data").rename(tmp_path / "moved")
    read = json.loads(
        python(REGISTERED + FOREIGN_READ, str(tmp_path / "job"), str(tmp_path / "moved"))
    )
    assert read["file"].startswith(str(tmp_path)) and read["equal"]

    names = [[f"env{i}_{part}", e] for part in ("in", "out") for i, e in enumerate(ENVIRONMENTS)]
    assert [split[:2] for split in read["splits"]] == names
    assert [split[2] for split in read["splits"]] == [True, False, False] * 2

    for index in (1, 2):  # a target's is divided once more, by the share that has no labels
        keys = list(range(10))
        np.random.RandomState(misc.seed_hash(3, index)).shuffle(keys)
        assert read["splits"][index][3] + read["splits"][3 + index][3] == keys[2:] + keys[:2]
