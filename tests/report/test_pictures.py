"""The pictures of a page: which samples, and what happens where they cannot be read."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tiny_run import World

from wiseft_dist.data.manifest import Manifest, Shard, index_shards
from wiseft_dist.data.pack import EncodedSample, write_split
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.evaluate.predictions import Predictions
from wiseft_dist.evaluate.stage import evaluate
from wiseft_dist.report.changed import changed_most
from wiseft_dist.report.compare.comparison import write_comparison
from wiseft_dist.report.results import gather
from wiseft_dist.report.sections.pictures import picture_sections
from wiseft_dist.report.stage import report
from wiseft_dist.report.thumbnails import MAX_BYTES, PATIENCE, SIDE, Place, _answer, thumbnails
from wiseft_dist.run import CARD_FILE, Run

MODELS = {"zero-shot": 0, "chosen": 1, "fine-tuned": 2}
NAMES = dict.fromkeys(("photo", "sketch", "clipart"), ("red", "green", "blue"))


def predictions(right: list[list[float]]) -> Predictions:
    """Of two classes; the right class is 0, and has these probabilities, ``[models][samples]``."""
    probabilities = np.array(right, dtype=np.float32)
    num_models, num_samples = probabilities.shape
    classes = (probabilities < 0.5).astype(np.int32)
    empty = np.zeros((num_models, 0), dtype=np.float32)
    return Predictions(
        keys=tuple(f"s{index}" for index in range(num_samples)),
        positions=np.arange(num_samples),
        labels=np.zeros((num_samples, 1), dtype=np.int64),
        classes=classes,
        top5=empty,
        confidences=np.where(classes == 0, probabilities, 1 - probabilities),
        margins=empty,
        log_probs=np.log(probabilities),
        briers=empty,
        divergences=empty,
    )


def keys(right: list[list[float]], count: int) -> list[tuple[str, bool]]:
    return [(each.key, each.is_gained) for each in changed_most(predictions(right), MODELS, "chosen", count)]


def test_half_are_gained_and_half_are_lost_and_what_changed_most_comes_first() -> None:
    right = [
        [0.4, 0.1, 0.9, 0.8, 0.9, 0.1, 0.3],  # zero-shot
        [0.6, 0.6, 0.4, 0.2, 0.9, 0.1, 0.7],  # chosen
        [0.9, 0.9, 0.3, 0.6, 0.9, 0.1, 0.7],  # fine-tuned
    ]
    # Gained: s1 (0.8 between the models), s0 (0.5), s6 (0.4); lost: s2 (0.6), s3 (0.6); s4 and s5 are the same to all.
    assert keys(right, 4) == [("s1", True), ("s0", True), ("s2", False), ("s3", False)]
    assert keys(right, 5) == [("s1", True), ("s0", True), ("s6", True), ("s2", False), ("s3", False)]
    assert keys(right, 1) == [("s1", True)]
    assert len(keys(right, 100)) == 5


def test_where_nothing_was_lost_more_of_what_was_gained_is_shown() -> None:
    right = [[0.4, 0.3, 0.2], [0.6, 0.6, 0.6], [0.6, 0.6, 0.6]]
    assert keys(right, 2) == [("s2", True), ("s1", True)]
    assert keys([[0.9], [0.8], [0.7]], 6) == []


def test_what_each_model_said_is_kept_with_the_right_class_s_probability() -> None:
    (found,) = changed_most(predictions([[0.25], [0.75], [0.5]]), MODELS, "chosen", 6)
    assert [(said.model, said.label, round(said.confidence, 4), said.is_right) for said in found.said] == [
        ("zero-shot", 1, 0.75, False),
        ("chosen", 0, 0.75, True),
        ("fine-tuned", 0, 0.5, True),
    ]
    assert found.said[0].right == pytest.approx(0.25)
    assert (found.position, found.labels) == (0, (0,))


def test_the_page_of_a_run_shows_pictures_out_of_its_shards(finished) -> None:
    given = gather(finished.config, finished.run)
    sections, problems = picture_sections(finished.config, finished.run, given, NAMES)
    assert problems == []
    assert sections and all(0 < len(section.pictures) <= 6 for section in sections)
    picture = sections[0].pictures[0]
    with Image.open(io.BytesIO(picture.image)) as image:
        assert (image.format, image.size) == ("JPEG", (20, 16))  # small ones are not made larger
    assert picture.caption[0].split(":")[0] in ("gained", "lost")
    assert any(line.startswith("zero-shot: ") and "\u00a0%" in line for line in picture.caption)
    assert "MB of the shards" in sections[0].note
    again, _ = picture_sections(finished.config, finished.run, given, NAMES)
    assert again == sections


def test_pictures_of_the_held_out_piece_come_from_the_training_shards(finished) -> None:
    given = replace(gather(finished.config, finished.run), reference="id_val", shifts=())
    (section,), problems = picture_sections(finished.config, finished.run, given, {})
    assert problems == []  # a place is only taken for the sample's if its key is
    assert section.pictures and section.pictures[0].caption[0].split(": ")[1].startswith("class ")


def test_a_run_that_wants_none_has_none(finished) -> None:
    config = finished.config
    without = config.model_copy(update={"report": config.report.model_copy(update={"pictures": 0})})
    assert picture_sections(without, finished.run, gather(config, finished.run), NAMES) == ([], [])


def test_shards_that_are_gone_are_a_sentence_without_homes_and_secrets(
    world: World, finished, copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.data, tmp_path / "data")
    for file in (copied.config_file, *copied.manifests.iterdir()):
        file.write_text(file.read_text().replace(str(world.data), str(tmp_path / "data")))
    config = copied.load_config()
    evaluate(config, copied)
    shutil.rmtree(tmp_path / "data" / "sketch")
    tell_of_homes_and_secrets(copied)
    matplotlib.get_cachedir()  # is not looked for in the home that is nobody's
    monkeypatch.setenv("HOME", str(tmp_path))
    report(config, copied)
    text = html.unescape((copied.report / "index.html").read_text())
    assert re.search(r"<li>sketch: (\d) of \1 pictures are not shown: ~/data/sketch/\S+: cannot be read", text)
    assert "<li>~/data/0.tar was slow: https://host/x</li>" in text
    assert "could not be used, such as ~/data/1.tar: sample 's1' does not decode." in text
    assert "The last session: Bottleneck: https://host/y" in text
    assert "photo: pictures whose prediction changed most" in text
    assert "sketch: pictures whose prediction changed most" not in text
    (copied.manifests / "photo.json").write_text("damaged")
    comparison = tmp_path / "comparison.html"
    write_comparison([str(finished.run.path), str(copied.path)], comparison, notes=["no /home/alice/run."])
    assert "its cells cannot be read (~/run/" in comparison.read_text()
    assert "<li>no ~/run.</li>" in comparison.read_text()
    cards = [copied.ensemble(alpha) / CARD_FILE for alpha in config.merge.alphas]
    for file in (copied.report / "index.html", comparison, *cards):
        shown = file.read_text()
        assert not [each for each in ("alice", "bob", "deadbeef", "s3cr3t", str(tmp_path)) if each in shown], file


def tell_of_homes_and_secrets(run: Run) -> None:
    slow = "/home/alice/data/0.tar was slow: https://bob:s3cr3t@host/x?X-Amz-Signature=deadbeef"
    told = {"time": time.time(), "stage": "finetune"}
    events = (
        {"event": "warning", "warning": slow},
        {"event": "epoch", "skipped": ["/home/alice/data/1.tar: sample 's1' does not decode"]},
        {"event": "bottleneck", "summary": "Bottleneck: https://bob:s3cr3t@host/y"},
    )
    with run.events_file.open("a") as file:
        file.writelines(json.dumps(told | event) + "\n" for event in events)


@pytest.fixture
def places(tmp_path: Path) -> list[Place]:
    """Of five samples in a shard; the third is no picture."""
    stream = io.BytesIO()
    Image.new("RGB", (400, 300), (200, 30, 30)).save(stream, "jpeg")
    samples = [EncodedSample(b"no picture" if index == 2 else stream.getvalue(), "jpg", 0) for index in range(5)]
    write_split(iter(samples), tmp_path / "shards", samples_per_shard=5)
    manifest = index_shards(str(tmp_path / "shards"), target=LABEL_FIELDS)
    return of(manifest)


def of(manifest: Manifest) -> list[Place]:
    (shard,) = manifest.shards
    return [Place(shard, index, f"s{index:07d}") for index in range(shard.num_samples)]


def test_large_pictures_become_small_ones_and_a_damaged_one_a_sentence(places: list[Place]) -> None:
    found = thumbnails(places)
    assert sorted(place.index for place in found.images) == [0, 1, 3, 4]
    with Image.open(io.BytesIO(found.images[places[0]])) as image:
        assert image.size == (SIDE, 120)
    assert "no picture" in found.problems[places[2]]


def test_another_sample_at_its_place_is_not_shown(places: list[Place]) -> None:
    other = replace(places[0], key="s0000001")
    assert "has another sample at its place" in thumbnails([other]).problems[other]


def test_a_shard_that_is_gone_is_a_sentence(places: list[Place]) -> None:
    Path(places[0].shard.url).unlink()
    found = thumbnails(places)
    assert not found.images and len(found.problems) == 5
    assert "cannot be read" in found.problems[places[0]]


def test_pictures_come_from_a_web_server_too(places: list[Place], served: Path, web: str) -> None:
    shutil.copy(places[0].shard.url, served / "0.tar")
    manifest = index_shards(f"{web}/0.tar", target=LABEL_FIELDS)
    assert sorted(place.index for place in thumbnails(of(manifest)).images) == [0, 1, 3, 4]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_never_answers_holds_nothing_up(
    places: list[Place], silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PATIENCE, "WISEFT_STORE_TIMEOUT", "3600")  # not the store gives up
    hanging = [replace(place, shard=replace(place.shard, url=f"{silent}/0.tar")) for place in places]
    before = threading.active_count()
    for seconds in (4, 16, 64, 256):  # on a machine with much else to do the process needs longer to start
        found = thumbnails([*places, *hanging], seconds=seconds)
        assert found.problems[hanging[0]] == f"it could not be read within {seconds} s."
        if len(found.images) == 4:
            break
    assert len(found.images) == 4
    assert threading.active_count() <= before


def test_a_process_that_dies_takes_no_report_with_it(places: list[Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    found = thumbnails(places)
    assert not found.images
    assert set(found.problems.values()) == {"the process that reads pictures died."}


def test_where_no_process_can_be_started_there_are_no_pictures(
    places: list[Place], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    found = thumbnails(places)
    assert not found.images
    assert all(each.startswith("no process could be started to read it (") for each in found.problems.values())
    assert len(found.problems) == 5


def test_a_picture_that_fails_in_a_way_nobody_thought_of_costs_no_other(
    places: list[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Place) -> bytes:
        raise MemoryError

    monkeypatch.setattr("wiseft_dist.report.thumbnails.thumbnail_of", failing)
    assert _answer(3, places[0]) == {"number": 3, "error": "MemoryError"}


def test_the_process_takes_no_module_from_the_working_directory(
    places: list[Place], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    assert len(thumbnails(places[:1]).images) == 1


def test_more_than_a_page_may_ask_of_stores_is_not_read(places: list[Place]) -> None:
    large = Shard("http://127.0.0.1:9/0.tar", 5, 2 * MAX_BYTES, "", None, None, (), 1)
    found = thumbnails([replace(places[0], shard=large)])
    assert list(found.problems.values()) == ["reading all of them would take more than 1.1 GB."]


def test_what_a_picture_costs_is_the_stretch_between_two_marks(places: list[Place]) -> None:
    shard = replace(places[0].shard, num_bytes=1000, marks=(0, 300, 700), mark_step=2)
    assert [replace(place, shard=shard).num_bytes for place in places] == [300, 300, 400, 400, 300]
    assert replace(places[0], shard=replace(shard, marks=())).num_bytes == 1000
