"""A saved run is opened for what it is, and nothing in a file is ever executed."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from test_algorithms import CLASSES, CONTEXTS, build, dumped, make, settings

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, dataset_facts, prompts
from domainbed_carft.runs import saved


def written(folder, algorithm, name="model.pkl", **changes):
    """A folder with what DomainBed's train saves of ``algorithm``."""
    buffer = dumped(algorithm)
    buffer.seek(0)
    content = {**torch.load(buffer, weights_only=True), **changes}
    torch.save(content, folder / name)
    return folder


def test_a_trained_job_opens_with_its_settings(trained):
    run = saved.open_run(trained)
    assert run.path == trained / "model.pkl"
    assert run.classes == list(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    assert run.contexts == prompts.contexts("emoji")
    assert run.hparams["prompts_digest"] == prompts.digest(run.contexts, run.classes)
    assert run.args["algorithm"] == "CARFT" and run.args["test_envs"] == [0]
    assert (run.step, run.alpha) == (None, None)
    assert type(run.algorithm).__name__ == "CARFT" and not run.algorithm.training

    best = saved.open_run(trained, "best")
    assert best.path == trained / "model_best.pkl"

    records = [json.loads(line) for line in (trained / "results.jsonl").read_text().splitlines()]
    means = {r["step"]: sum(r[f"env{e}_out_acc"] for e in (1, 2, 3)) for r in records}
    assert best.step == max(means, key=means.get) != records[-1]["step"]
    assert not torch.equal(run.algorithm.head.weight, best.algorithm.head.weight)


def test_class_names_of_the_folders_are_kept(random_tiny, tmp_path):
    """They come from the data set, which is not there any more."""
    values = settings(random_tiny, class_names="dataset:Mine")
    names = ["Alarm_Clock", "Bücher", "TV"]
    dataset_facts.remember(values, "Mine", [dataset_facts.EnvironmentFacts("a", names)])
    algorithm = build(algorithms.CARFT, (3, 28, 28), 3, 2, values)
    dataset_facts.remember({}, "Other", [])
    written(tmp_path, algorithm, "model_step40.pkl")
    run = saved.open_run(str(tmp_path / "model_step40.pkl"))
    assert (run.classes, run.contexts) == (["alarm clock", "bücher", "TV"], CONTEXTS)
    assert run.step == 40


def test_class_names_in_the_state_dict_survive_casts_and_averaging(random_tiny):
    algorithm = make(random_tiny)
    text = bytes(algorithm.to(torch.float16).state_dict()["words"].tolist()).decode()
    assert json.loads(text) == {"classes": CLASSES, "contexts": CONTEXTS}
    average = torch.optim.swa_utils.AveragedModel(make(random_tiny), use_buffers=True)
    for _ in range(3):
        average.update_parameters(make(random_tiny))
    assert torch.equal(average.module.words, algorithm.words)


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
    with pytest.raises(CarftError, match="model.pkl.*may be code; nothing in") as raised:
        saved.open_run(path)
    assert not victim.exists() and "\n" not in str(raised.value)
    pickle.loads(pickle.dumps(Evil(victim)))
    assert victim.exists()  # it would have


SPARSE = torch.empty((10**5, 3, 160, 160), layout=torch.sparse_coo)
ARGS = {"algorithm": "CARFT", "dataset": "x", "test_envs": [0]}
ONE_WORD = b'{"classes": ["a"], "contexts": ["b {}"]}'


def test_weights_that_are_no_run_of_ours_are_refused(random_tiny, tmp_path):
    algorithm = make(random_tiny)
    state = algorithm.state_dict()

    for changes, message in (
        ({"args": {"algorithm": "ERM"}}, "not a run of CARFT, .*: its algorithm is 'ERM'"),
        ({"args": {**ARGS, "test_envs": [[0]]}}, "its test_envs is"),
        ({"model_dict": {"head.weight": torch.zeros(3, 2)}}, "not hold the weights of a CARFT"),
        ({"model_dict": {**state, "words": torch.tensor([*b"[" * 10**5])}}, "not hold the"),
        ({"model_dict": {**state, "words": torch.tensor([*ONE_WORD])}}, "not hold the"),
        ({"model_dict": {**state, "head.weight": torch.ones(2)}}, "not hold the"),
        ({"model_dict": {**state, "encoder.conv1.weight": SPARSE}}, "quantized, sparse or empty"),
        ({"model_hparams": {**algorithm.hparams, "clip_backbone": 5}}, "its model_hparams is"),
        ({"model_input_shape": ()}, "its model_input_shape is "),
        ({"model_hparams": {**algorithm.hparams, (1, 2): 3}}, "its model_hparams is"),
        ({"args": {**ARGS, "task": {(1, 2): 3}}}, "its args is"),
        ({"format": 2}, "its format is 2"),
        ({"wise_ft_alpha": "0.5"}, "its wise_ft_alpha is '0.5'"),
        ({"best_step": "last"}, "its best_step is 'last'"),
        ({"best_step": -1}, "its best_step is -1"),
        ({"best_step": 2**70}, "its best_step is 118"),
        ({"wise_ft_step": -3}, "its wise_ft_step is -3"),
        ({"args": {**ARGS, "steps": -1}}, "its steps is -1"),
        ({"args": {**ARGS, "steps": 0.5}}, "its steps is 0.5"),
        ({"args": {**ARGS, "seed": "x"}}, "its seed is 'x'"),
        ({"args": {**ARGS, "trial_seed": [1]}}, "its trial_seed is .1."),
        ({"args": {**ARGS, "holdout_fraction": -0.5}}, "its holdout_fraction is -0.5"),
        ({"args": {**ARGS, "uda_holdout_fraction": 7}}, "its uda_holdout_fraction is 7"),
        ({"args": {**ARGS, "data_dir": 7}}, "its data_dir is 7"),
    ):
        with pytest.raises(CarftError, match=message) as raised:
            saved.open_run(written(tmp_path, algorithm, **changes))
        assert len(str(raised.value)) < 600


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning", "ignore:TypedStorage")
@pytest.mark.parametrize("name", ["encoder.proj", "head.weight", "context_weights", "logit_scale"])
def test_tensors_that_are_not_dense_are_refused(random_tiny, tmp_path, name):
    algorithm = make(random_tiny)
    dense = algorithm.state_dict()[name]
    tensors = [
        torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8),
        dense.to_sparse(),
        dense.to("meta"),
    ]
    for tensor in tensors:
        state = {**algorithm.state_dict(), name: tensor}
        path = written(tmp_path, algorithm, model_dict=state) / "model.pkl"
        with pytest.raises(CarftError, match=f"{path} holds quantized, .*; expected dense"):
            saved.open_run(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(random_tiny, tmp_path, capsys, value):
    algorithm = make(random_tiny)
    algorithm.encoder.proj.data[0, 0] = value
    with pytest.raises(CarftError, match="not finite in 1 tensor, the first in enc"):
        saved.open_run(written(tmp_path, algorithm))

    algorithm.head.weight.data.fill_(value)
    written(tmp_path, algorithm)
    output = tmp_path / "mix"
    capsys.readouterr()
    for command in (["evaluate", "--json"], ["predict", "x.png"], ["wise-ft", "-o", str(output)]):
        assert cli.main([command[0], str(tmp_path), *command[1:]]) == 1
        out, err = capsys.readouterr()
        assert out == "" and "encoder.proj: the training diverged" in err
        assert "--which best" in err and "Warning" not in err
    assert not output.exists()


def test_missing_files_are_named(random_tiny, tmp_path):
    with pytest.raises(CarftError, match=r"has no model\.pkl; expected the folder of a finished"):
        saved.open_run(tmp_path)
    written(tmp_path, make(random_tiny), "model_best.pkl")
    with pytest.raises(CarftError, match=r"has no model\.pkl; use --which best for its model_best"):
        saved.open_run(tmp_path)
    with pytest.raises(CarftError, match="--which chooses a file in a folder; omit it"):
        saved.open_run(tmp_path / "model_best.pkl", "last")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("args", "test_envs", [2]),
        ("args", "trial_seed", 1),
        ("args", "seed", 1),
        ("args", "holdout_fraction", 0.4),
        ("model_hparams", "lr", 1e-4),  # as that of another job of a search
    ],
)
def test_weights_that_contradict_the_records_beside_them_are_refused(
    pets, tmp_path, part, name, value
):
    content = torch.load(pets / "CARFT" / "model.pkl", weights_only=True)
    torch.save({**content, part: {**content[part], name: value}}, tmp_path / "model.pkl")
    assert saved.load_run(tmp_path, device="cpu").classes

    shutil.copy(pets / "CARFT" / "results.jsonl", tmp_path)
    message = rf"model.pkl does not belong to the records in its folder: (hparam )?{name} is .* in"
    with pytest.raises(CarftError, match=message):
        saved.load_run(tmp_path, "last", device="cpu")
