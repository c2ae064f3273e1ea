"""Contexts, class names, and their sources."""

import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.images.dataset_facts import NO_FACTS, DatasetFacts, EnvironmentFacts
from domainbed_carft.method import algorithms, prompts


def test_shipped_context_lists_are_complete():
    imagenet = prompts.parse_contexts("imagenet")  # OpenAI's ImageNet templates
    assert (imagenet[0], imagenet[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    assert len(imagenet) == 80 and len(prompts.parse_contexts("emoji")) == 36

    metadata = pytest.importorskip("open_clip.zero_shot_metadata", reason="needs open_clip")
    expected = [template("{}") for template in metadata.SIMPLE_IMAGENET_TEMPLATES]
    assert prompts.parse_contexts("imagenet7") == expected


# openai/CLIP, data/prompts.md: numbers of templates and classes, first and last class, in
# torchvision's order of labels (without Caltech101's "background").
OPENAI = {
    "imagenet": (80, 1000, "tench", "toilet paper"),
    "aircraft": (2, 100, "707-320", "Yak-42"),
    "caltech101": (34, 101, "off-center face", "yin and yang symbol"),
    "cars": (8, 196, "AM General Hummer SUV 2000", "smart fortwo Convertible 2012"),
    "cifar10": (18, 10, "airplane", "truck"),
    "cifar100": (18, 100, "apple", "worm"),
    "dtd": (8, 47, "banded", "zigzagged"),
    "eurosat": (3, 10, "annual crop land", "lake or sea"),
    "flowers": (1, 102, "pink primrose", "blackberry lily"),
    "food101": (1, 101, "apple pie", "waffles"),
    "pets": (1, 37, "Abyssinian", "yorkshire terrier"),
    "sun397": (2, 397, "abbey", "youth hostel"),
}


@pytest.mark.parametrize("name", prompts.CLASS_LISTS)
def test_openai_lists_of_contexts_and_class_names_are_complete(name):
    templates, classes, first, last = OPENAI[name]
    names = prompts.find_class_names({"class_names": name}, classes)
    duplicates = 2 if name == "imagenet" else 0
    assert (names[0], names[-1], len({*names})) == (first, last, classes - duplicates)
    if templates > 1:
        assert len(prompts.parse_contexts(name)) == templates
    else:
        with pytest.raises(CarftError, match=f"'{name}', a list of 1 template.*KL.*'imagenet7'"):
            prompts.parse_contexts(name)


def test_contexts_are_read_from_file_or_list(tmp_path):
    path = tmp_path / "my contexts.txt"
    path.write_text("a sketch of a {}.\n\n  a photo of a {}.\n", encoding="utf-8")
    assert prompts.parse_contexts(str(path)) == ["a sketch of a {}.", "a photo of a {}."]
    assert prompts.parse_contexts(["the {}", "a {}"]) == ["the {}", "a {}"]


def make_facts(classes):
    return DatasetFacts([EnvironmentFacts(name, names) for name, names in classes.items()])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["a {}", "no place"], r"2 templates, such as 'no place'; expected .* exactly one \{\}"),
        (["a {}"], "is a list of 1 template; expected at least two.* always zero.*'imagenet7'"),
        (["a {}", "a {}"], r"such as 'a \{\}'; expected at least two, all different"),
        ("sketches", r"contexts is 'sketches'.*shipped list \(domains, .*imagenet7, emoji,"),
    ],
)
def test_invalid_contexts_are_rejected(spec, message):
    with pytest.raises(CarftError, match=message):
        prompts.parse_contexts(spec)


def test_folder_names_are_cleaned():
    names = ["Alarm_Clock", "flip-flops", "TV", "ToothBrush", "The_Eiffel_Tower"]
    cleaned = ["alarm clock", "flip flops", "TV", "toothbrush", "the eiffel tower"]
    assert [*map(prompts.clean, names)] == cleaned


def test_class_names_of_the_user_take_precedence_unchanged(tmp_path):
    names = ["crane", "T-shirt", "Crock Pot", "crane"]
    for folders in (["a", "b", "c", "d"], ["crane", "t-shirt", "crock pot", "crane"]):
        facts = make_facts({"env": folders})
        assert prompts.find_class_names({"class_names": names}, 4, facts) == names

    path = tmp_path / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    assert prompts.find_class_names({"class_names": str(path)}, 4) == names


def test_class_names_of_the_folders_precede_the_known_ones():
    names = [f"class {i}" for i in range(7)]
    facts = make_facts({"a": names, "b": names})
    assert prompts.find_class_names({"class_names": "dataset:PACS"}, 7, facts) == names


MANY = {"art": [f"a{n}" for n in range(500)], "photo": ["b"] * 500}


@pytest.mark.parametrize(
    ("spec", "count", "folders", "message"),
    [
        (["a", "b"], 3, {}, r"2 class names \['a', 'b'\], .* has 3 classes"),
        ("imagenet", 2, {}, "gives 1,000 class names .* and 990 more"),
        ("nowhere.txt", 3, {}, "'nowhere.txt', which is not a file"),
        ("dataset:Mine", 3, {}, "'Mine'.*--hparams.*text file.*MultipleEnvironment"),
        (["TV", "bike"], 2, {"art": ["bike", "tv"]}, "label 0 is 'bike' in 'art', but 'TV' in cla"),
        (
            "dataset:X",
            2,
            {"art": ["cat", "dog"], "photo": ["cat", "horse"]},
            r"'art' and 'photo'.*only one of them has 'dog', 'horse'",
        ),
        ("dataset:X", 500, MANY, r"only one of them has 'a0', 'a1', .* and 496 more"),
    ],
)
def test_class_names_that_do_not_fit_are_rejected(spec, count, folders, message):
    with pytest.raises(CarftError, match=message):
        prompts.find_class_names({"class_names": spec}, count, make_facts(folders))


def test_digest_depends_on_all_texts_and_their_order():
    # printf '{"classes": ["cat", "d\\u00f6g"], "contexts": ["a {}", "the {}"]}' | sha256sum
    assert prompts.digest(["a {}", "the {}"], ["cat", "dög"]) == "16c22956d3889fcd"
    changed = [(["the {}", "a {}"], ["cat", "dög"]), (["a {}", "the {}"], ["dög", "cat"])]
    changed += [(["a {}"], ["cat", "dög"]), (["a {}", "the {}"], ["cat", "dog"])]
    assert len({prompts.digest(*words) for words in changed} | {"16c22956d3889fcd"}) == 5


def find_contexts(hparams, names, test_envs=None):
    environments = [EnvironmentFacts(name, None) for name in names]
    return prompts.find_contexts(hparams, DatasetFacts(environments, test_envs=test_envs))


def test_contexts_are_made_from_all_domains_or_without_the_target():
    folders = ["art_painting", "Real World", "TV"]
    hparams = {"contexts": "domains", "class_names": "dataset:Mine"}
    templates = ["a art painting of a {}.", "a real world of a {}.", "a TV of a {}."]

    assert find_contexts(hparams, folders) == templates
    assert find_contexts(hparams, folders, [1]) == templates

    hparams["contexts"] = "domains-without-target"
    assert find_contexts(hparams, folders, [1]) == [templates[0], templates[2]]
    assert find_contexts(hparams, folders, []) == templates
    with pytest.raises(CarftError, match="a list of 1 template.*KL"):
        find_contexts(hparams, folders, [0, 1])
    with pytest.raises(CarftError, match="does not show which environments are held out"):
        find_contexts(hparams, folders)
    with pytest.raises(CarftError, match="does not show its environments"):
        prompts.find_contexts(hparams, NO_FACTS)


@pytest.mark.parametrize(
    ("dataset", "name"), [("TerraIncognita", "'location_38'"), ("VLCS", "'SUN09'")]
)
def test_domain_names_that_are_not_words_are_rejected_before_a_job(dataset, name):
    (problem,) = algorithms.CARFT.resolve_hparams(dataset, {"contexts": "domains"}).problems
    assert str(problem).startswith("contexts is 'domains', but ") and name in str(problem)
    assert algorithms.CARFT.resolve_hparams("DomainNet", {"contexts": "domains"}).problems == []
