from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from made_up import alpha_statistics, interval, statistics, with_dataset
from PIL import Image

from wiseft_dist.commits import COMMIT_FILE, is_committed
from wiseft_dist.config import ModelConfig, RunConfig, load_config
from wiseft_dist.data.stage import TRAIN, load_manifest
from wiseft_dist.publish import publish_report
from wiseft_dist.report.card_metadata import base_model
from wiseft_dist.report.card_texts import loading
from wiseft_dist.report.markdown import escaped
from wiseft_dist.report.model_card import Card, write_cards
from wiseft_dist.report.results import read_statistics
from wiseft_dist.run import CARD_FILE, Run

HOSTILE = "a: [b] | <script>alert(1)</script> `c` $d$ \n---\nlicense: mit"


def metadata(text: str) -> dict[str, object]:
    """The front matter."""
    found = re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)
    assert found is not None
    content: dict[str, object] = yaml.safe_load(found[1])
    return content


def card_of(finished, **changes) -> str:
    """Of alpha 0.5, with made-up statistics."""
    run, config = finished.run, finished.config
    given = changes.pop("statistics", statistics())
    name = changes.pop("name", "mine")
    return Card(config, name, 0.5, run.ensemble(0.5), given, load_manifest(run, TRAIN)).text()


def test_every_ensemble_of_a_run_has_a_card_that_the_hub_s_own_client_reads(finished):
    run = finished.run
    for alpha in finished.config.merge.alphas:
        card = ModelCard((run.ensemble(alpha) / CARD_FILE).read_text(encoding="utf-8"))
        assert card.data.library_name == "open_clip"
        assert card.data.pipeline_tag == "image-classification"
        assert card.data.license is None
        assert card.data.model_name == f"run-{run.ensemble(alpha).name}"
        results = {each.dataset_name: each for each in card.data.eval_results}
        assert list(results) == ["photo", "sketch", "clipart"]
        numbers = read_statistics(run.statistics_file).datasets["sketch"].at(alpha)
        assert results["sketch"].metric_type == "accuracy"
        assert results["sketch"].metric_value == pytest.approx(numbers.top1, abs=1e-6)


def test_a_card_names_no_path_of_this_machine_and_leaves_the_commit_whole(finished):
    folder = finished.run.ensemble(0.5)
    text = (folder / CARD_FILE).read_text()
    assert str(finished.run.path) not in text and str(Path.home()) not in text and "/tmp" not in text
    assert CARD_FILE not in json.loads((folder / COMMIT_FILE).read_text())["files"]
    assert is_committed(folder)


def test_the_program_on_a_card_runs_as_it_stands(finished, tmp_path):
    text = (finished.run.ensemble(0.5) / CARD_FILE).read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "picture.jpg")
    (tmp_path / "alpha_0.50").symlink_to(finished.run.ensemble(0.5))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() in ("red", "green", "blue"), done.stderr


@pytest.mark.matrix
@pytest.mark.parametrize("has_head", [True, False])
def test_the_program_of_weights_in_several_files_runs_too(copied, tmp_path, has_head):
    from wiseft_dist.cli import app

    source = copied.ensemble(0.5)
    zero_shot, output = copied.zero_shot, tmp_path / "cut"
    arguments = ["merge", "--zero-shot", str(zero_shot), "--finetuned", str(source), "--output", str(output)]
    app([*arguments, "--alphas", "0.5", "--max-shard-size", "1MB"], standalone_mode=False)
    text = loading("cut/alpha_0.50", has_head=has_head, is_in_one_file=False)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "picture.jpg")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_names_from_data_stay_names(finished):
    given = with_dataset(statistics(), "sketch", title=HOSTILE)
    text = card_of(finished, statistics=given, name=HOSTILE)
    found = metadata(text)
    assert "license" not in found
    printed = HOSTILE.replace("\n", "\\n")
    (index,) = found["model-index"]
    assert index["name"] == f"{printed}-alpha_0.50"
    assert [each["dataset"]["name"] for each in index["results"]] == ["photo", printed, "fmow"]
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert ModelCard(text).data.eval_results[1].dataset_name == printed


def test_a_card_has_the_results_with_their_intervals(finished):
    text = card_of(finished)
    assert "| photo \\[reference\\] | 1,000 | 80.00 | 78.00 to 82.00 | 70.00 | 85.00 |" in text
    assert "| fmow (worst region) | 1,000 | 22.22 | 10.00 to 30.00 | 11.11 | 17.77 |" in text
    assert "| **average of the shifts** |  | 43.61 | 30.00 to 45.00 | 35.55 | 33.88 |" in text
    assert "held-out piece of the training set was chosen: this one" in text
    (index,) = metadata(text)["model-index"]
    assert [each["metrics"] for each in index["results"]] == [
        [{"type": "accuracy", "name": "top-1", "value": 0.8}],
        [{"type": "accuracy", "name": "top-1", "value": 0.65}],
        [{"type": "worst_group", "name": "worst region", "value": 0.2222}],
    ]


def test_what_is_no_number_is_no_result(finished):
    nan = float("nan")
    alphas = tuple(
        alpha_statistics(alpha, 600, value=nan, interval=interval(nan, nan)) for alpha in statistics().alphas
    )
    given = with_dataset(statistics(), "sketch", alphas=alphas)
    text = card_of(finished, statistics=given)
    (index,) = metadata(text)["model-index"]
    assert [each["dataset"]["type"] for each in index["results"]] == ["photo", "fmow"]
    assert "| sketch | 1,000 | – | – to – | – | – |" in text.replace("Sketches", "sketch")


def test_a_card_without_shifts_or_choices_is_a_card(finished):
    given = replace(statistics(), shifts=(), averaged_shifts=(), shift_average=(), choices=(), chosen=None)
    text = card_of(finished, statistics=given)
    assert "average of the shifts" not in text
    assert "It was not chosen: it is one of the alphas of a curve." in text


@pytest.mark.parametrize(
    ("architecture", "pretrained", "expected"),
    [
        ("ViT-B-32", "openai", "timm/vit_base_patch32_clip_224.openai"),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None, "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-32", "/home/somebody/weights.pt", None),
        ("/home/somebody/model.json", None, None),
        ("ViT-B-32", "no_such_tag", None),
    ],
)
def test_the_base_model_is_named_where_the_hub_knows_it(architecture, pretrained, expected):
    assert base_model(ModelConfig(architecture=architecture, pretrained=pretrained)) == expected


def test_a_card_reaches_a_store_that_has_the_ensemble_already(copied: Run, tmp_path):
    config = load_config(copied.config_file).model_dump(mode="json") | {"publish": str(tmp_path / "store")}
    configured = RunConfig.model_validate(config)
    write_cards(configured, copied, read_statistics(copied.statistics_file))
    publish_report(configured, copied)
    sent = tmp_path / "store" / "merge" / "alpha_0.50" / CARD_FILE
    assert sent.read_bytes() == (copied.ensemble(0.5) / CARD_FILE).read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet_v2", "imagenet_v2"),
        ("_x_ *y* `z`", "\\_x\\_ \\*y\\* \\`z\\`"),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("[a](https://b)", "\\[a\\](https:&#47;/b)"),
        ("two\nlines", "two\\\\nlines"),
        ("写真", "写真"),
    ],
)
def test_markdown_in_a_name_is_shown_as_it_is(text, expected):
    assert escaped(text) == expected
