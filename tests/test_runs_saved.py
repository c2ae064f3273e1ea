"""Saved runs open with their settings, and nothing in a weights file is executed."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch
from runs_jobs import copy_changed, records

from domainbed_carft.errors import CarftError
from domainbed_carft.method import prompts
from domainbed_carft.runs import saved


def test_trained_job_opens_with_its_settings(trained):
    run = saved.load_run(trained, "last", device="cpu")
    assert run.classes == list(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    assert run.contexts == prompts.parse_contexts("emoji")
    assert run.hparams["prompts_digest"] == prompts.digest(run.contexts, run.classes)
    assert run.args["algorithm"] == "CARFT" and run.args["test_envs"] == [0]
    assert (run.step, run.alpha) == (None, None)
    assert type(run.algorithm).__name__ == "CARFT" and not run.algorithm.training

    best = saved.load_run(trained, "best", device="cpu")
    assert best.path == trained / "model_best.pkl"
    assert best.step == records(trained)[0]["step"]
    assert not torch.equal(run.algorithm.head.weight, best.algorithm.head.weight)


def test_step_is_read_from_the_name_of_the_weights(pets, tmp_path):
    path = shutil.copy(pets / "CARFT" / "model.pkl", tmp_path / "model_step40.pkl")
    assert saved.load_run(str(path), device="cpu").step == 40


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, evil: torch.save({"args": {"algorithm": "CARFT"}, "x": evil}, path),
        lambda path, evil: torch.save(evil, path, _use_new_zipfile_serialization=False),
        lambda path, evil: path.write_bytes(pickle.dumps(evil)),
        lambda path, evil: path.write_bytes(pickle.dumps([0] * 99 + [evil])[:-50]),  # cut off
        lambda path, evil: path.write_text("step,loss\n0,1\n"),
        lambda path, evil: zipfile.ZipFile(path, "w").close(),
    ],
)
def test_nothing_in_a_weights_file_is_executed(tmp_path, write):
    path = tmp_path / "model.pkl"
    victim = tmp_path / "executed"
    write(path, Evil(victim))
    with pytest.raises(CarftError, match="model.pkl") as raised:
        saved.load_run(path, device="cpu")
    assert not victim.exists() and "\n" not in str(raised.value)
    pickle.loads(pickle.dumps(Evil(victim)))
    assert victim.exists()  # the pickle does execute code


SPARSE = torch.empty((10**5, 3, 160, 160), layout=torch.sparse_coo)
ONE_WORD = torch.tensor([*b'{"classes": ["a"], "contexts": ["b {}"]}'])
NESTED_WORDS = torch.tensor([*b"[" * 10**5])


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("args", {"algorithm": "ERM"}, "not a run of CARFT, .*: its algorithm is 'ERM'"),
        ("args", {"test_envs": [[0]]}, "its test_envs is"),
        ("args", {"task": {(1, 2): 3}}, "its args is"),
        ("args", {"steps": -1}, "its steps is -1"),
        ("args", {"steps": 0.5}, "its steps is 0.5"),
        ("args", {"seed": "x"}, "its seed is 'x'"),
        ("args", {"trial_seed": [1]}, "its trial_seed is .1."),
        ("args", {"holdout_fraction": -0.5}, "its holdout_fraction is -0.5"),
        ("args", {"uda_holdout_fraction": 7}, "its uda_holdout_fraction is 7"),
        ("args", {"data_dir": 7}, "its data_dir is 7"),
        ("model_hparams", {"clip_backbone": 5}, "its model_hparams is"),
        ("model_hparams", {(1, 2): 3}, "its model_hparams is"),
        ("model_input_shape", (), "its model_input_shape is "),
        ("format", 2, "its format is 2"),
        ("training_only_names", "x", "its training_only_names is 'x'"),
        ("wise_ft_alpha", "0.5", "its wise_ft_alpha is '0.5'"),
        ("best_step", "last", "its best_step is 'last'"),
        ("best_step", -1, "its best_step is -1"),
        ("best_step", 2**70, "its best_step is 118"),
        ("wise_ft_step", -3, "its wise_ft_step is -3"),
        ("model_dict", None, "not hold the weights of a CARFT"),
        ("model_dict", {"words": NESTED_WORDS}, "not hold the weights of a CARFT"),
        ("model_dict", {"words": ONE_WORD}, "not hold the weights of a CARFT"),
        ("model_dict", {"head.weight": torch.ones(2)}, "not hold the weights of a CARFT"),
        ("model_dict", {"encoder.conv1.weight": SPARSE}, "sparse"),
        ("model_dict", {"logit_scale": torch.empty(1, device="meta")}, "dense"),
        ("model_dict", {"head.bias": torch.tensor([0.0, torch.inf])}, "not finite in 1 tensor"),
        ("model_dict", {"head.bias": torch.tensor([0.0, torch.nan])}, "head.bias: the training"),
    ],
)
def test_invalid_weights_file_is_an_error(pets, tmp_path, part, changes, message):
    folder = copy_changed(pets / "CARFT", tmp_path, **{part: changes})
    with pytest.raises(CarftError, match=message) as raised:
        saved.load_run(folder, device="cpu")
    assert len(str(raised.value)) < 600


def test_run_of_host_algorithm_on_clip_model_is_named(pets, tmp_path):
    changes = {"args": {"algorithm": "CORAL"}, "model_hparams": {"clip_head": "random"}}
    folder = copy_changed(pets / "CARFT", tmp_path, **changes)
    with pytest.raises(CarftError, match="is a run of CORAL, an algorithm of DomainBed or a fork"):
        saved.load_run(folder, device="cpu")


def test_weight_that_no_method_needs_is_an_error_unless_it_is_recorded(pets, tmp_path):
    added = {"adapter.weight": torch.ones(2)}
    folder = copy_changed(pets / "CARFT", tmp_path, model_dict=added, training_only_names=[*added])
    run = saved.load_run(folder, device="cpu")
    expected = saved.load_run(pets / "CARFT", "last", device="cpu")
    assert "adapter.weight" not in run.algorithm.state_dict()
    assert run.algorithm.state_dict().keys() == expected.algorithm.state_dict().keys()

    copy_changed(folder, tmp_path, training_only_names=["adapter.bias"])
    with pytest.raises(CarftError, match=r"Unexpected key.*adapter\.weight.*was the file changed"):
        saved.load_run(folder, device="cpu")


def test_missing_weights_are_named(pets, tmp_path):
    with pytest.raises(CarftError, match=r"has no model\.pkl; expected the folder of a finished"):
        saved.load_run(tmp_path, device="cpu")
    shutil.copy(pets / "CARFT" / "model_best.pkl", tmp_path)
    with pytest.raises(CarftError, match=r"has no model\.pkl; use --which best for its model_best"):
        saved.load_run(tmp_path, "last", device="cpu")
    with pytest.raises(CarftError, match="--which chooses a file in a folder, but .* omit it"):
        saved.load_run(tmp_path / "model_best.pkl", "last", device="cpu")


@pytest.mark.parametrize(
    ("changed", "label"),
    [
        ({"args": {"test_envs": [2]}}, "test_envs"),
        ({"args": {"trial_seed": 1}}, "trial_seed"),
        ({"args": {"seed": 1}}, "seed"),
        ({"args": {"holdout_fraction": 0.4}}, "holdout_fraction"),
        ({"model_hparams": {"lr": 1e-4}}, "hparam lr"),  # another job of a search
        ({"amp": "bf16"}, "hparam amp"),
        ({"data_edition": "0123456789abcdef"}, "fact data_edition"),
    ],
)
def test_weights_that_contradict_the_records_are_an_error(pets, tmp_path, changed, label):
    copy_changed(pets / "CARFT", tmp_path, **changed)
    assert saved.load_run(tmp_path, device="cpu").classes

    shutil.copy(pets / "CARFT" / "results.jsonl", tmp_path)
    message = rf"model.pkl does not belong to the records in its folder: {label} is .* in"
    with pytest.raises(CarftError, match=message):
        saved.load_run(tmp_path, "last", device="cpu")
