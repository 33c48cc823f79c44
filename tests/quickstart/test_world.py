"""The picture world: what is the same, what differs, and what a picture says about itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from wiseft_dist.quickstart.world import CLASSES, DOMAINS, TEMPLATES, Picture, caption, draw, pictures


def pixels(picture: Picture) -> NDArray[np.int16]:
    return np.asarray(picture.image).astype(np.int16)


def colourfulness(domain: str) -> float:
    """The mean spread between the channels of a pixel, 0..255."""
    return float(np.mean([np.ptp(pixels(p), axis=2).mean() for p in pictures(24, domain=domain, seed=3)]))


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_picture_depends_on_seed_domain_and_index_alone(domain: str) -> None:
    few, many = list(pictures(5, domain=domain, seed=7)), list(pictures(20, domain=domain, seed=7))
    for first, again in zip(few, many, strict=False):
        np.testing.assert_array_equal(pixels(first), pixels(again))
        assert (first.label, first.caption) == (again.label, again.caption)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_two_pictures_are_the_same(domain: str) -> None:
    drawn = [p.image.tobytes() for seed in (0, 1) for p in pictures(48, domain=domain, seed=seed)]
    assert len(set(drawn)) == len(drawn)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    np.random.seed(0)
    before = repr(np.random.get_state())
    list(pictures(12, domain="painting", seed=0))
    assert repr(np.random.get_state()) == before


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_run_of_twelve_pictures_holds_each_class_once_in_random_order(domain: str) -> None:
    labels = [p.label for p in pictures(36, domain=domain, seed=1)]
    runs = [labels[start : start + len(CLASSES)] for start in (0, 12, 24)]
    assert all(Counter(run) == Counter(range(len(CLASSES))) for run in runs)
    assert runs[0] != runs[1]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_every_class_is_drawn_in_every_domain(class_name: str, domain: str) -> None:
    image = draw(class_name, domain, rng=np.random.default_rng(0))
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert np.asarray(image).std() > 4


def test_the_size_is_the_callers() -> None:
    assert draw("cat", "cartoon", rng=np.random.default_rng(0), size=96).size == (96, 96)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_picture_is_labelled_and_its_caption_names_the_class(domain: str) -> None:
    for picture in pictures(24, domain=domain, seed=5):
        assert CLASSES[picture.label] == picture.class_name
        assert picture.domain == domain
        assert f" {picture.class_name}." in picture.caption


def test_each_template_is_what_a_caption_says_in_some_domain() -> None:
    rng = np.random.default_rng(0)
    said = {domain: {caption("cat", domain, rng=rng) for _ in range(60)} for domain in DOMAINS}
    prompts = {template.format(c="cat") for template in TEMPLATES}
    assert all(len(phrases) > 1 and phrases & prompts for phrases in said.values())
    assert prompts <= set().union(*said.values())


def test_a_sketch_is_nearly_grey_and_the_other_domains_are_not() -> None:
    assert colourfulness("sketch") < 8
    assert min(colourfulness(domain) for domain in DOMAINS if domain != "sketch") > 25


@pytest.mark.parametrize(("class_name", "domain"), [("unicorn", "photo"), ("cat", "fresco")])
def test_an_unknown_name_is_answered_with_the_names_there_are(class_name: str, domain: str) -> None:
    with pytest.raises(ValueError, match=r"is not a .* choose one of"):
        draw(class_name, domain, rng=np.random.default_rng(0))
