"""A saved run is opened for what it is, and nothing in a file is ever executed."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from test_algorithms import CLASSES, CONTEXTS, dumped, make, settings

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, hparams, observed, prompts
from domainbed_carft.plugin import additions
from domainbed_carft.runs import saved


def written(folder, algorithm, name="model.pkl", **more):
    """A folder with what DomainBed's train saves of ``algorithm``."""
    buffer = dumped(algorithm)
    buffer.seek(0)
    content = {**torch.load(buffer, weights_only=True), **more}
    torch.save(content, folder / name)
    return folder


def test_a_trained_job(trained):
    run = saved.open_run(trained)
    assert run.path == trained / "model.pkl"
    assert run.classes == list(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    assert run.contexts == prompts.contexts("emoji")
    assert run.hparams["prompts_digest"] == prompts.digest(run.contexts, run.classes)
    assert run.args["algorithm"] == "CARFT" and run.args["test_envs"] == [0]
    assert (run.input_shape, run.step, run.alpha) == ((3, 48, 48), None, None)
    assert type(run.algorithm).__name__ == "CARFT" and not run.algorithm.training
    best = saved.open_run(trained, "best")
    assert best.path == trained / "model_best.pkl"
    records = [json.loads(line) for line in (trained / "results.jsonl").read_text().splitlines()]
    means = {r["step"]: sum(r[f"env{e}_out_acc"] for e in (1, 2, 3)) for r in records}
    assert best.step == max(means, key=means.get) != records[-1]["step"]
    assert not torch.equal(run.algorithm.head.weight, best.algorithm.head.weight)


def test_words_of_the_folders_are_kept(random_tiny, tmp_path):
    """They come from the data set, which is not there any more."""
    values = settings(random_tiny, class_names="dataset:Mine")
    names = ["Alarm_Clock", "Bücher", "TV"]
    observed.remember(values, "Mine", [observed.Environment("a", names)])
    algorithm = algorithms.CARFT((3, 28, 28), 3, 2, values)
    observed.remember({}, "Other", [])
    written(tmp_path, algorithm, "model_step40.pkl")
    run = saved.open_run(str(tmp_path / "model_step40.pkl"))
    assert (run.classes, run.contexts) == (["alarm clock", "bücher", "TV"], CONTEXTS)
    assert run.step == 40


def test_the_words_are_in_the_state_dict_whatever_is_done_to_the_model(random_tiny):
    algorithm = make(random_tiny)
    text = bytes(algorithm.to(torch.float16).state_dict()["words"].tolist()).decode()
    assert json.loads(text) == {"classes": CLASSES, "contexts": CONTEXTS}
    average = torch.optim.swa_utils.AveragedModel(make(random_tiny), use_buffers=True)
    for _ in range(3):
        average.update_parameters(make(random_tiny))
    assert torch.equal(average.module.words, algorithm.words)


@pytest.mark.parametrize(
    "text",
    [b"{}", b"\xff\x00", b"[" * 100_000, b'{"classes": ["a"], "contexts": ["b {}"]}'],
)
def test_words_that_do_not_fit_are_refused(random_tiny, tmp_path, text):
    algorithm = make(random_tiny)
    algorithm.words = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(CarftError, match="model.pkl does not hold the words of its run") as raised:
        saved.open_run(written(tmp_path, algorithm))
    assert len(str(raised.value)) < 600


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def evil_zip(path, victim):
    torch.save({"args": {"algorithm": "CARFT"}, "x": Evil(victim)}, path)


def evil_pickle(path, victim):
    path.write_bytes(pickle.dumps(Evil(victim)))


def evil_legacy(path, victim):
    torch.save(Evil(victim), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [evil_zip, evil_pickle, evil_legacy])
def test_a_pickle_is_not_executed(tmp_path, write):
    path, victim = tmp_path / "model.pkl", tmp_path / "executed"
    write(path, victim)
    with pytest.raises(CarftError, match="model.pkl.*might be a program; nothing in it was"):
        saved.open_run(path)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Evil(victim)))
    assert victim.exists()  # it would have


def cut(path, whole):
    path.write_bytes(whole[: len(whole) // 2])


def empty(path, whole):
    path.write_bytes(b"")


def text(path, whole):
    path.write_text("step,loss\n0,1\n")


def archive(path, whole):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")


@pytest.mark.parametrize("damage", [cut, empty, text, archive])
def test_files_that_are_not_whole_are_refused_in_one_line(random_tiny, tmp_path, damage):
    damage(tmp_path / "model.pkl", dumped(make(random_tiny)).getvalue())
    with pytest.raises(CarftError, match=r"model\.pkl is cut off or holds") as raised:
        saved.open_run(tmp_path)
    assert "\n" not in str(raised.value)


def test_weights_of_something_else_are_refused(random_tiny, tmp_path):
    algorithm = make(random_tiny)
    state = algorithm.state_dict()
    for more, message in (
        ({"args": {"algorithm": "ERM"}}, "not a run of CARFT, .*: its algorithm is 'ERM'"),
        ({"args": "none"}, "its algorithm is None"),
        ({"model_dict": {"head.weight": torch.zeros(3, 2)}}, "not hold the weights of a CARFT"),
        ({"model_dict": {**state, "more": torch.zeros(1)}}, "Unexpected key"),
        ({"model_dict": {**state, "words": torch.ones(2)}}, "does not hold the words"),
        ({"model_dict": {**state, "head.weight": torch.ones(2)}}, "not hold the"),
        ({"model_hparams": {**algorithm.hparams, "clip_backbone": 5}}, "its model_hparams is"),
        ({"model_hparams": {**algorithm.hparams, "amp": torch.ones(2)}}, "its model_hparams is"),
        ({"model_input_shape": ()}, "its model_input_shape is "),
        ({"model_num_domains": None}, "its model_num_domains is None"),
        ({"best_step": "last"}, "its best_step is 'last'"),
        ({"wise_ft_alpha": "half"}, "its wise_ft_alpha is 'half'"),
    ):
        with pytest.raises(CarftError, match=message) as raised:
            saved.open_run(written(tmp_path, algorithm, **more))
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(random_tiny, tmp_path, capsys, value):
    algorithm = make(random_tiny)
    algorithm.encoder.proj.data[0, 0] = value
    with pytest.raises(CarftError, match=r"not finite in encoder\.proj: the training diverged"):
        saved.open_run(written(tmp_path, algorithm))
    algorithm.head.weight.data.fill_(value)
    written(tmp_path, algorithm)
    output = tmp_path / "mix"
    capsys.readouterr()
    for command in (["evaluate", "--json"], ["predict", "x.png"], ["wise-ft", "-o", str(output)]):
        assert cli.main([command[0], str(tmp_path), *command[1:]]) == 1
        out, err = capsys.readouterr()
        assert out == "" and "encoder.proj and 1 other tensor: the training diverged" in err
        assert "--which best" in err and "Warning" not in err
    assert not output.exists()


def test_what_is_not_there_is_said(random_tiny, tmp_path):
    with pytest.raises(CarftError, match="gone cannot be read: No such file"):
        saved.open_run(tmp_path / "gone")
    job = tmp_path / "job"
    job.mkdir()
    with pytest.raises(CarftError, match=r"has no model\.pkl; expected the folder of a finished"):
        saved.open_run(job)
    written(job, make(random_tiny), "model_best.pkl")
    with pytest.raises(CarftError, match=r"has no model\.pkl; --which best takes its model_best"):
        saved.open_run(job)
    with pytest.raises(CarftError, match="--which chooses a file of a folder, but"):
        saved.open_run(job / "model_best.pkl", "last")


def test_numpy_values_of_a_hosts_registry_are_stored_as_pythons():
    """Upstream draws some by RandomState.choice; no restricted reader would read those back."""

    def random_hparams(algorithm, dataset, seed):
        return {"resnet_dropout": np.float64(0.1), "count": np.int64(3), "name": "x"}

    drawn = additions._overlaid(random_hparams, hparams, 1)("CARFT", "PACS", 1)
    assert [type(drawn[key]) for key in ("resnet_dropout", "count", "name")] == [float, int, str]
