"""A made-up dataset for each kind of class map, with answers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from wiseft_dist.config import DatasetSpec
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import Dataset, describe_dataset
from wiseft_dist.evaluate.catalog.lists import read_classnames
from wiseft_dist.evaluate.class_map import ClassMap, load_class_map, map_for, same_classes

LOGITS = torch.tensor([[1.0, -2.0, 3.0, 0.5, 4.0], [9.0, 8.0, 7.0, 6.0, 5.0]])
INFINITY = float("inf")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param(((2,), (0,)), [[3.0, 1.0], [7.0, 9.0]], id="subset, in another order"),
        pytest.param(((0, 1), (2, 3, 4)), [[1.0, 4.0], [9.0, 7.0]], id="merged by the largest"),
        pytest.param(((1, 3), (), (4,)), [[0.5, -INFINITY, 4.0], [8.0, -INFINITY, 5.0]], id="a class without a source"),
        pytest.param(((0,), (0, 1)), [[1.0, 1.0], [9.0, 9.0]], id="a class in two groups"),
        pytest.param(((), ()), [[-INFINITY, -INFINITY]] * 2, id="nothing but classes without a source"),
    ],
)
def test_logits_of_a_dataset_come_from_those_of_the_head(groups, expected):
    mapped = ClassMap("made_up", 5, groups)(LOGITS)
    torch.testing.assert_close(mapped, torch.tensor(expected), rtol=0, atol=0)


def test_a_map_keeps_type_and_leading_dimensions_and_does_not_change_its_input():
    logits = torch.arange(30, dtype=torch.bfloat16).reshape(2, 3, 5)
    before = logits.clone()
    mapped = ClassMap("made_up", 5, ((4, 0), ()))(logits)
    assert mapped.dtype == torch.bfloat16
    assert mapped[..., 0].tolist() == [[4, 9, 14], [19, 24, 29]]
    assert torch.equal(logits, before)


def test_a_class_without_a_source_never_wins_even_if_every_other_logit_is_far_below_zero():
    mapped = ClassMap("made_up", 5, ((), (1,), (), (3,)))(torch.full((4, 5), -1e30))
    assert set(mapped.argmax(dim=-1).tolist()) <= {1, 3}
    assert mapped.softmax(dim=-1)[0].tolist() == [0.0, 0.5, 0.0, 0.5]


def test_a_map_refuses_logits_of_another_head():
    with pytest.raises(ValueError, match="made_up takes logits of 5 classes, not of 4"):
        ClassMap("made_up", 5, ((0,),))(torch.zeros(2, 4))


def test_a_label_of_the_head_leads_to_the_class_of_its_group():
    class_map = ClassMap("made_up", 5, ((2,), (0, 4), ()))
    assert [class_map.class_of(label) for label in range(5)] == [1, None, 0, None, 1]


HEAD = ("cat", "lynx", "dog", "wolf", "car")
OWN = ("feline", "canine")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "own.txt").write_text("\n".join(OWN))
    (tmp_path / "head.txt").write_text("\n".join(HEAD))
    tree = {"source": "head.txt", "groups": [[0, 1], [2, 3]]}
    (tmp_path / "pets.json").write_text(json.dumps(tree))
    return tmp_path


@pytest.fixture
def pets(files) -> Dataset:
    """A user's own dataset: a class list and a map from the head's."""
    return describe_dataset("pets", DatasetSpec(classnames=str(files / "own.txt"), class_map=str(files / "pets.json")))


def test_the_map_of_a_file_is_used_for_the_head_that_it_is_from(pets):
    class_map = map_for(pets, HEAD)
    assert (class_map.name, class_map.num_source, class_map.groups) == ("pets", 5, ((0, 1), (2, 3)))
    assert class_map(LOGITS).tolist() == [[1.0, 3.0], [9.0, 7.0]]


def test_a_head_of_the_datasets_own_classes_needs_no_map(pets):
    assert map_for(pets, OWN) is None
    assert map_for(pets, ("Feline ", "CANINE")) is None


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (("cat", "lynx", "dog"), r"pets has 2 classes and the head 3: class 0 is 'feline' there and 'cat' here"),
        (("feline",), r"pets has 2 classes and the head 1: class 1 is 'canine' there and nothing here"),
        (("car", "wolf", "dog", "lynx", "cat"), r"its map pets takes the 5 classes of .*head.txt\. Evaluate it with"),
    ],
)
def test_another_head_is_refused_with_both_lengths_and_the_first_name_that_differs(pets, head, said):
    with pytest.raises(UserError, match=said):
        map_for(pets, head)


def test_a_dataset_of_which_nothing_is_known_takes_every_head():
    assert map_for(describe_dataset("mine", None), HEAD) is None


def test_a_map_without_a_class_list_takes_every_head_of_its_length(files):
    (files / "any.json").write_text('{"num_source": 5, "groups": [[4], [0]]}')
    dataset = describe_dataset("mine", DatasetSpec(class_map=str(files / "any.json")))
    assert map_for(dataset, HEAD).groups == ((4,), (0,))
    assert map_for(dataset, ("left", "right")) is None  # as many as the dataset has
    with pytest.raises(UserError, match="mine has 2 classes and the head 3; its map any takes the 5 classes"):
        map_for(dataset, HEAD[:3])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not readable as JSON"),
        ("[]", "holds no class map"),
        ('{"groups": [[0]]}', "num_source is None: give the number of the head's classes"),
        ('{"num_source": 3, "groups": [[0], [3]]}', "class 1 maps from 3, but the head has the classes 0 to 2"),
        ('{"num_source": 3, "groups": [[0, 0]]}', "class 0 maps from .0, 0.: give a list of different classes"),
        ('{"num_source": 3, "groups": [1]}', "class 0 maps from 1: give a list of different classes"),
        ('{"num_source": true, "groups": [[0]]}', "num_source is True: give the number of the head's classes"),
        ('{"num_source": 3, "groups": [[true]]}', "class 0 maps from .True.: give a list of different classes"),
        ('{"num_source": 3, "groups": [[], []]}', "holds no class map"),
        ('{"source": 7, "num_source": 3, "groups": [[0]]}', "source is 7: name the head's class list, or leave it"),
        ('{"source": ["imagenet"], "groups": [[0]]}', "source is .'imagenet'.: name the head's class list"),
        ("[" * 100_000, "is not readable as JSON"),
        ('{"num_source": ' + "9" * 5000 + "}", "is not readable as JSON"),
    ],
)
def test_a_map_that_cannot_be_used_is_refused(tmp_path, content, said):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(UserError, match=f"data.datasets.mine.class_map: .*wrong.json.*{said}"):
        load_class_map(str(tmp_path / "wrong.json"), "data.datasets.mine.class_map")


def test_names_may_differ_between_versions_of_a_list_but_not_many():
    names = list(read_classnames("imagenet", "data.classnames"))
    dataset = describe_dataset("objectnet", None)
    newer = [f"{name} (new)" if at < 100 else name for at, name in enumerate(names)]
    assert map_for(dataset, newer).name == "imagenet_to_objectnet"
    other = [f"{name} (new)" if at < 101 else name for at, name in enumerate(names)]
    with pytest.raises(UserError, match="objectnet has 113 classes and the head 1000: class 0 is 'alarm clock'"):
        map_for(dataset, other)


def test_repeated_names_do_not_confuse_the_comparison():
    imagenet = read_classnames("imagenet", "data.classnames")
    assert map_for(describe_dataset("imagenet", None), imagenet) is None
    shuffled = imagenet[500:] + imagenet[:500]
    with pytest.raises(UserError, match="imagenet has 1000 classes and the head 1000"):
        map_for(describe_dataset("imagenet", None), shuffled)


def test_two_names_that_changed_places_are_another_list():
    pacs = list(read_classnames("pacs", "test"))
    swapped = [pacs[0], pacs[4], *pacs[2:4], pacs[1], *pacs[5:]]
    said = f"pacs_photo has 7 classes and the head 7: class 1 is '{pacs[1]}' there and '{pacs[4]}' here"
    with pytest.raises(UserError, match=said):
        map_for(describe_dataset("pacs_photo", None), swapped)


def test_a_list_of_which_a_few_names_stand_elsewhere_is_refused_with_the_first_of_those():
    imagenet = list(read_classnames("imagenet", "test"))
    rotated = imagenet[1:50] + imagenet[:1] + imagenet[50:]
    with pytest.raises(UserError, match="class 0 is 'tench' there and 'goldfish' here"):
        map_for(describe_dataset("imagenet", None), rotated)
    respelled = ["tinca tinca", *imagenet[1:]]
    respelled[7], respelled[8] = respelled[8], respelled[7]
    with pytest.raises(UserError, match="class 7 is 'rooster' there and 'hen' here"):
        map_for(describe_dataset("imagenet", None), respelled)


def test_versions_of_imagenets_names_are_one_list():
    imagenet = read_classnames("imagenet", "test")
    open_clip = pytest.importorskip("open_clip").IMAGENET_CLASSNAMES
    older = list(imagenet)
    for at, name in {
        21: "kite",
        134: "crane",
        264: "Cardigan",
        517: "crane",
        744: "projectile",
        836: "sunglass",
    }.items():
        older[at] = name
    assert sum(map(str.__ne__, older, imagenet)) >= 5
    assert same_classes(open_clip, imagenet) and same_classes(older, imagenet) and same_classes(imagenet, older)


def test_clip_benchmarks_names_of_imagenet_are_open_clips():
    peer = pytest.importorskip("clip_benchmark")
    names = json.loads((Path(peer.__file__).parent / "datasets" / "en_classnames.json").read_text())["imagenet1k"]
    assert same_classes(pytest.importorskip("open_clip").IMAGENET_CLASSNAMES, names)
