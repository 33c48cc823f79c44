from __future__ import annotations

import pytest

from wiseft_dist.config import DataConfig
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.pack import CLASSNAMES_FILE, TEMPLATES_FILE, write_vocabulary
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.vocabulary import check_labels, check_own_labels, load_vocabulary, prompt
from wiseft_dist.errors import UserError

CLASSNAMES = ("cat", "dog", "great white shark")


@pytest.fixture
def shards(make_shards, tmp_path):
    """Shards in ``tmp_path/shards``, their vocabulary above them."""
    write_vocabulary(tmp_path, classnames=CLASSNAMES, templates=["a photo of a {c}.", "a {c}."])
    return make_shards(6)


@pytest.mark.parametrize("pattern", ["{}", "{}/", "{}/{{0..1}}.tar", "{}/*.tar", "file://{}"])
def test_the_vocabulary_lies_beside_or_above_the_shards(shards, pattern):
    vocabulary = load_vocabulary(DataConfig(train=pattern.format(shards)))
    assert vocabulary.classnames == CLASSNAMES
    assert vocabulary.templates == ("a photo of a {c}.", "a {c}.")


@pytest.mark.parametrize("pattern", ["shards", "./shards", "shards/{0..1}.tar"])
def test_the_vocabulary_is_found_from_a_relative_path(shards, monkeypatch, pattern):
    monkeypatch.chdir(shards.parent)
    assert load_vocabulary(DataConfig(train=pattern)).classnames == CLASSNAMES


def test_named_files_come_before_those_beside_the_shards(shards, tmp_path):
    (tmp_path / "mine.txt").write_text("eins\r\n\nzwei\n")
    config = DataConfig(train=str(shards), classnames=str(tmp_path / "mine.txt"))
    assert load_vocabulary(config).classnames == ("eins", "zwei")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TEMPLATES_FILE, "a photo of a {}.", "has no {c} where the class name goes"),
        (CLASSNAMES_FILE, "\n \n", "holds no line of text"),
        (CLASSNAMES_FILE, None, "data.classnames: no classnames.txt in"),
        (TEMPLATES_FILE, None, "data.templates: no zeroshot_classification_templates.txt in"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(shards, tmp_path, file, content, message):
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_vocabulary(DataConfig(train=str(shards)))


def test_a_label_outside_the_class_list_is_refused(shards):
    manifest = index_shards(str(shards), target=LABEL_FIELDS)
    check_labels("train", str(shards), manifest, CLASSNAMES)
    with pytest.raises(UserError, match=r"photo: .*\.tar has label 2, but the class list has 2 names \(0 to 1\)"):
        check_labels("photo", str(shards), manifest, CLASSNAMES[:2])


@pytest.mark.parametrize(
    ("classnames", "pair"),
    [
        (("cat", "wolf", "great white shark"), "'dog' for label 1, the run's says 'wolf'"),
        ((*CLASSNAMES, "owl"), "'nothing' for label 3, the run's says 'owl'"),
    ],
)
def test_a_class_list_that_differs_from_the_datasets_own_is_refused(shards, classnames, pair):
    with pytest.raises(UserError, match=pair):
        check_labels("sketch", str(shards), index_shards(str(shards), target=LABEL_FIELDS), classnames)


def test_the_labels_of_a_test_set_are_held_against_its_own_class_list(shards, tmp_path):
    manifest = index_shards(str(shards), target=LABEL_FIELDS)
    check_own_labels("photo", str(shards), manifest)
    (tmp_path / CLASSNAMES_FILE).write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"photo: .*\.tar has label 2, but the class list has 2 names \(0 to 1\)"):
        check_own_labels("photo", str(shards), manifest)
    (tmp_path / CLASSNAMES_FILE).unlink()
    check_own_labels("photo", str(shards), manifest)  # nothing is known of its classes


@pytest.mark.parametrize(
    ("template", "classname", "expected"),
    [
        ("a photo of a {c}.", "ice_cream", "a photo of a ice_cream."),
        ("a photo of {a c}.", "ice_cream", "a photo of an ice cream."),
        ("{c}: {a c}", "Zoo", "Zoo: a Zoo"),
    ],
)
def test_a_prompt_takes_the_class_name_as_it_is_or_with_its_article(template, classname, expected):
    assert prompt(template, classname) == expected
