"""Contexts, class names and where they come from."""

import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.method import observed, prompts


def test_shipped_lists():
    imagenet = prompts.contexts("imagenet")
    assert len(imagenet) == 80  # OpenAI's ImageNet templates
    assert imagenet[0] == "a bad photo of a {}." and imagenet[-1] == "a tattoo of the {}."
    assert len(prompts.contexts("emoji")) == 36


def test_contexts_from_a_file_and_from_a_list(tmp_path):
    path = tmp_path / "my contexts.txt"
    path.write_text("a sketch of a {}.\n\n  a photo of a {}.\n", encoding="utf-8")
    assert prompts.contexts(str(path)) == ["a sketch of a {}.", "a photo of a {}."]
    assert prompts.contexts(["the {}", "a {}"]) == ["the {}", "a {}"]


def remember(hparams, classes, dataset="PACS"):
    observed.remember(hparams, dataset, [observed.Environment(e, c) for e, c in classes.items()])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["a {}", "no place"], r"2 templates, such as 'no place'; expected .* exactly one \{\}"),
        (["a {}"], "is a list of 1 template; expected at least two"),
        (["a {}", "a {}"], r"such as 'a \{\}'; expected at least two, all different"),
        ("sketches", r"contexts is 'sketches'.*shipped list \(imagenet, emoji\)"),
    ],
)
def test_bad_contexts_are_refused(spec, message):
    with pytest.raises(CarftError, match=message):
        prompts.contexts(spec)


def test_class_names_are_cleaned():
    names = ["Alarm_Clock", "flip-flops", "TV", "ToothBrush", "The_Eiffel_Tower"]
    cleaned = ["alarm clock", "flip flops", "TV", "toothbrush", "the eiffel tower"]
    assert [*map(prompts.clean, names)] == cleaned


def test_explicit_names_win(tmp_path):
    hparams = {"class_names": ["Big_Dog", "cat"]}
    remember(hparams, {"env": ["x", "y"]})
    assert prompts.class_names(hparams, 2) == ["big dog", "cat"]
    path = tmp_path / "names.txt"
    path.write_text("owl\nhen\n", encoding="utf-8")
    assert prompts.class_names({"class_names": str(path)}, 2) == ["owl", "hen"]


def test_then_what_the_data_set_said_for_this_very_object():
    hparams = {"class_names": "dataset:PACS"}
    names = [f"class {i}" for i in range(7)]
    remember(hparams, {"a": names, "b": names})
    assert prompts.class_names(hparams, 7) == names
    equal_but_other = dict(hparams)
    assert prompts.class_names(equal_but_other, 7)[0] == "dog"
    assert hparams == {"class_names": "dataset:PACS"}  # nothing enters the records


def test_or_what_a_data_set_without_hparams_said_under_its_name():
    remember(None, {"a": [f"class {i}" for i in range(7)]}, dataset="PACS")
    assert prompts.class_names({"class_names": "dataset:PACS"}, 7)[0] == "class 0"
    assert prompts.class_names({"class_names": "dataset:VLCS"}, 5)[0] == "bird"
    remember({}, {"a": ["one"]}, dataset="PACS")  # the next job's data set
    assert prompts.class_names({"class_names": "dataset:PACS"}, 7)[0] == "dog"


def test_then_the_built_in_table_then_an_error_that_says_how():
    assert prompts.class_names({"class_names": "dataset:VLCS"}, 5) == [
        "bird", "car", "chair", "dog", "person",
    ]  # fmt: skip
    office = prompts.class_names({"class_names": "dataset:OfficeHome"}, 65)
    assert (office[0], office[58], office[-1]) == ("alarm clock", "TV", "webcam")
    net = prompts.class_names({"class_names": "dataset:DomainNet"}, 345)
    assert (net[0], net[3], net[-1]) == ("the eiffel tower", "aircraft carrier", "zigzag")
    assert {"t shirt", "teddy bear"} <= set(net)
    with pytest.raises(CarftError, match=r"'Mine'.*--hparams.*text file.*MultipleEnvironment"):
        prompts.class_names({"class_names": "dataset:Mine"}, 3)


def test_environments_that_disagree_are_named():
    hparams = {"class_names": "dataset:X"}
    remember(hparams, {"art": ["cat", "dog"], "photo": ["cat", "horse"]})
    with pytest.raises(CarftError, match=r"'art' and 'photo'.*\['dog', 'horse'\]"):
        prompts.class_names(hparams, 2)


def test_the_number_of_names_must_fit():
    with pytest.raises(CarftError, match=r"2 class names .*\(a, b\).* has 3 classes"):
        prompts.class_names({"class_names": ["a", "b"]}, 3)
    with pytest.raises(CarftError, match=r"'nowhere.txt', which is not a file"):
        prompts.class_names({"class_names": "nowhere.txt"}, 3)


def test_the_digest_is_over_every_word_and_their_order():
    # printf '{"classes": ["cat", "d\\u00f6g"], "contexts": ["a {}", "the {}"]}' | sha256sum
    assert prompts.digest(["a {}", "the {}"], ["cat", "dög"]) == "16c22956d3889fcd"
    others = [(["the {}", "a {}"], ["cat", "dög"]), (["a {}", "the {}"], ["dög", "cat"])]
    others += [(["a {}"], ["cat", "dög"]), (["a {}", "the {}"], ["cat", "dog"])]
    assert len({prompts.digest(*words) for words in others} | {"16c22956d3889fcd"}) == 5
