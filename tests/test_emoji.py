"""EmojiStyles as DomainBed sees it, and its unpacking."""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import torch

from domainbed_carft.data import emoji
from domainbed_carft.method import prompts
from domainbed_carft.plugin import emoji_styles

HPARAMS = {
    "data_augmentation": True,
    "class_names": "dataset:EmojiStyles",
    "clip_backbone": "tiny",
}


def test_contract():
    hparams = dict(HPARAMS)
    dataset = emoji_styles.EmojiStyles("not read", [1], hparams)
    assert len(dataset) == 4 and dataset.num_classes == 10
    assert dataset.input_shape == (3, 48, 48)
    assert sorted(dataset.ENVIRONMENTS) == dataset.ENVIRONMENTS  # as sorted folders would be
    for environment in dataset:
        x, y = environment[0]
        assert x.shape == (3, 48, 48) and x.dtype == torch.float32 and y == 0
    assert prompts.class_names(hparams, 10) == sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    assert hparams == HPARAMS


def test_only_training_environments_are_augmented():
    dataset = emoji_styles.EmojiStyles("", [1], dict(HPARAMS))
    moves = [not torch.equal(env[5][0], env[5][0]) for env in dataset]
    assert moves == [True, False, True, True]
    still = emoji_styles.EmojiStyles("", [1], {**HPARAMS, "data_augmentation": False})
    assert all(torch.equal(env[5][0], env[5][0]) for env in still)


def test_the_hosts_own_algorithms_get_the_size_they_have_networks_for():
    dataset = emoji_styles.EmojiStyles("", [1], {"data_augmentation": True, "batch_size": 8})
    assert dataset.input_shape == (3, 224, 224)
    assert all(env[0][0].shape == (3, 224, 224) for env in dataset)


def test_a_host_that_gives_no_hparams_transforms_by_itself():
    dataset = emoji_styles.EmojiStyles("not read")
    picture, label = dataset[2][0]
    assert (picture.size, picture.mode, label) == ((64, 64), "RGB", 0)
    assert dataset.input_shape == (3, 224, 224)  # SWAD's and MIRO's transforms, in every data set
    assert dataset.environments == dataset.ENVIRONMENTS
    names = prompts.class_names({"class_names": "dataset:EmojiStyles"}, 10)
    assert names == sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])


def test_jobs_that_start_at_once_all_find_the_whole_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: emoji.unpacked(), range(4)))
    (folder,) = folders
    with zipfile.ZipFile(str(files("domainbed_carft") / "assets" / "emoji_styles.zip")) as archive:
        expected = {n for n in archive.namelist() if not n.endswith("/")}
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == expected
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no left-overs
