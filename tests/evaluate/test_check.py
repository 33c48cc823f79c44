"""Comparing zero-shot accuracies with the published table."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from predictions_from_logits import predictions_from_logits

from wiseft_dist.config import DatasetSpec
from wiseft_dist.evaluate.standalone.check import Check, check_zero_shot, compare, model_and_tag

B32 = {"architecture": "ViT-B-32", "pretrained": "openai"}


def test_accuracies_within_the_tolerance_agree():
    # Published: ImageNet 63.32 %, V2 55.92 %.
    rows = compare("ViT-B-32:openai", {"imagenet": 0.6332, "imagenet_v2": 0.5622}, **B32)
    assert [row.published for row in rows] == [63.32, 55.92]
    assert [round(row.difference, 2) for row in rows] == [0.0, 0.3]
    assert Check(rows).agrees
    assert Check(rows).as_text().endswith("2 of 2 accuracies are as published.")


def test_what_differs_is_named_with_both_numbers():
    check = Check(compare("ViT-B-32:openai", {"imagenet": 0.6294, "cifar10": 0.8983}, **B32))
    assert not check.agrees
    assert [row.differs for row in check.rows] == [True, False]
    first, _, verdict = check.as_text().splitlines()
    assert first == "ViT-B-32:openai on imagenet: 62.94 %, published 63.32 % (-0.38): DIFFERS by more than 0.3"
    assert verdict.startswith("1 of 2 accuracies differ")


def test_what_is_not_in_the_table_is_said_and_is_no_difference():
    check = Check(compare("ViT-B-32:openai", {"imagenet": 0.6332, "mine": 0.1}, **B32))
    assert check.agrees
    assert "ViT-B-32:openai on mine: 10.00 %, not in the published table" in check.as_text()


def test_to_compare_nothing_is_no_agreement():
    check = Check(compare("model.pt", {"imagenet": 0.6332}, architecture=None, pretrained=None))
    assert not check.agrees
    assert "nothing to compare with" in check.as_text()


def test_the_json_has_every_number():
    check = Check(compare("m", {"imagenet": 0.6294}, **B32))
    told = json.loads(json.dumps(check.as_dict()))
    assert told["agrees"] is False
    (row,) = told["rows"]
    assert {name: row[name] for name in ("model", "dataset", "published", "differs")} == {
        "model": "m", "dataset": "imagenet", "published": 63.32, "differs": True,
    }  # fmt: skip
    assert row["measured"] == pytest.approx(62.94) and row["difference"] == pytest.approx(-0.38)


@pytest.mark.parametrize(
    ("source", "architecture", "found"),
    [
        ("ViT-B-32:openai", None, ("ViT-B-32", "openai")),
        ("weights.pt", "ViT-L/14:laion2b_s32b_b82k", ("ViT-L/14", "laion2b_s32b_b82k")),
        ("weights.pt", "ViT-B-32", (None, None)),
        ("s3://bucket/weights.pt", None, (None, None)),
    ],
)
def test_the_published_model_is_known_by_its_name(source, architecture, found):
    assert model_and_tag(source, architecture) == found


def test_two_datasets_of_one_entry_are_both_compared():
    rows = compare("m", {"mine": 0.6332, "copy": 0.5}, **B32, entries={"mine": "imagenet", "copy": "imagenet"})
    assert [(row.dataset, row.published, row.differs) for row in rows] == [
        ("mine", 63.32, False),
        ("copy", 63.32, True),
    ]


def test_every_dataset_of_an_evaluation_is_looked_up_by_its_entry():
    """Two copies of one test set, of which the second is read as if its labels were off by one."""
    labels = np.arange(4)
    right = predictions_from_logits(np.eye(4)[None], labels)
    wrong = predictions_from_logits(np.eye(4)[None], (labels + 1) % 4)
    cells = {"mine": right, "copy": wrong}
    datasets = [
        SimpleNamespace(name=name, dataset=SimpleNamespace(spec=DatasetSpec(catalog="imagenet"))) for name in cells
    ]
    scored = SimpleNamespace(
        sources=SimpleNamespace(zero_shot="ViT-B-32:openai", architecture=None),
        datasets=datasets,
        store=SimpleNamespace(read=lambda name, members, columns: cells[name]),
    )
    check = check_zero_shot(SimpleNamespace(scored=[scored]))
    assert [(row.dataset, row.measured, row.published) for row in check.rows] == [
        ("mine", 100.0, 63.32),
        ("copy", 0.0, 63.32),
    ]
