"""Any number of processes, at once or one after the other, leave the same tables behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_cells import FLOATS, MEMBERS, predictions
from tiny_run import SIZES, command

from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.stage import index
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.cells.store import CellStore, Content
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.reader import Reader
from wiseft_dist.evaluate.stage import evaluate, parts_of_reader, read
from wiseft_dist.ranks import Ranks
from wiseft_dist.run import Run
from wiseft_dist.tracking import Tracker, read_events

DATASETS = ("sketch", "id_val", "photo", "clipart")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def run(copied: Run) -> Run:
    """A merged run of which nothing was evaluated, whose parts have four samples."""
    shutil.rmtree(copied.cells)
    text = copied.config_file.read_text()
    assert "part_samples: 8192" in text
    copied.config_file.write_text(text.replace("part_samples: 8192", "part_samples: 4"))
    copied.events_file.unlink()
    return copied


def told(run: Run, name: str) -> list[Part]:
    """The parts that a kind of event is about, in their order."""
    events = [event for event in read_events(run) if event["event"] == name]
    return [Part(event["dataset"], event["start"], event["stop"]) for event in events]


def with_workers(run: Run, workers: int):
    config = run.load_config()
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"workers": workers})})


def same_tables(run: Run, finished, datasets=DATASETS) -> None:
    """The tables are those that one process wrote; floats may differ as far as sums in another order do."""
    store, expected = CellStore.of_run(run.load_config(), run), CellStore.of_run(finished.config, finished.run)
    for name in datasets:
        assert store.missing(name, MEMBERS) == []
        found, table = store.read(name, MEMBERS), expected.read(name, MEMBERS)
        assert found.keys == table.keys
        for field in ("positions", "labels", "classes", "top5"):
            np.testing.assert_array_equal(getattr(found, field), getattr(table, field))
        for field in FLOATS:
            np.testing.assert_allclose(getattr(found, field), getattr(table, field), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.features.xy, table.features.xy, rtol=1e-6, atol=1e-6)


def part_files(run: Run) -> dict[Path, int]:
    """Every committed file, and when it was written."""
    return {file: file.stat().st_mtime_ns for file in run.cells.glob("*/*/part-*.parquet")}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_ranks_in_any_order_leave_the_same_tables(run, finished, world_size):
    config = run.load_config()
    before: dict[Path, int] = {}
    for rank in reversed(range(world_size)):
        read(config, run, Ranks(rank, world_size))
        assert before.items() <= part_files(run).items()
        before = part_files(run)
    # 11, 13, 12 and 7 samples in parts of 4, for three alphas: nothing was scored twice.
    assert len(before) == (3 + 4 + 3 + 2) * 3
    same_tables(run, finished)
    evaluate(config, run)
    assert part_files(run) == before


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_leave_the_same_tables(run, finished, workers):
    evaluate(with_workers(run, workers), run, dataset="clipart")
    same_tables(run, finished, ["clipart"])


def test_more_readers_than_parts_leave_some_without_work(run, finished):
    config = run.load_config()
    shares = [parts_of_reader(config, run, Ranks(rank, 5), dataset="clipart") for rank in range(5)]
    assert shares == [[Part("clipart", 0, 4)], [Part("clipart", 4, 7)], [], [], []]
    for rank in range(5):
        read(config, run, Ranks(rank, 5), dataset="clipart")
    same_tables(run, finished, ["clipart"])


def test_a_job_scores_its_parts_and_no_others(run):
    config = run.load_config()
    jobs = [parts_of_reader(config, run, Ranks(), job=name) for name in ("1-of-2", "2-of-2")]
    assert sorted((part.dataset, part.start) for job in jobs for part in job) == [
        (name, start) for name, size in sorted((SIZES | {"id_val": 12}).items()) if name != "train"
        for start in range(0, size, 4)
    ]  # fmt: skip
    evaluate(config, run, job="2-of-2")
    assert told(run, "started") == told(run, "finished") == jobs[1]
    assert read_events(run)[0]["alphas"] == [0.0, 0.5, 1.0]
    with pytest.raises(UserError, match="3-of-2 is not a job of the evaluation"):
        evaluate(config, run, job="3-of-2")


def test_what_another_cut_has_left_behind_is_used(run, finished):
    evaluate(run.load_config(), run)
    before = part_files(run)
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("part_samples: 4", "part_samples: 5"))
    shutil.rmtree(next(run.cells.glob("sketch/alpha_0.50-*")))
    kept = part_files(run)
    evaluate(run.load_config(), run)
    assert kept.items() <= part_files(run).items()
    new = {file for file in part_files(run) if file not in before}
    assert sorted(file.name[5:22] for file in new) == ["00000000-00000005", "00000005-00000010", "00000010-00000013"]
    same_tables(run, finished)


def test_mixtures_of_logits_are_scored_beside_those_of_weights(run, finished):
    config = run.load_config()
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"output_space": True})})
    evaluate(config, run, dataset="clipart")
    same_tables(run, finished, ["clipart"])
    store = CellStore.of_run(config, run)
    both = store.read("clipart", (Member(0.5), Member(0.5, "output")))
    assert not np.array_equal(both.confidences[0], both.confidences[1])
    assert read_events(run)[0]["output_alphas"] == [0.5]


def with_columns(shard: Path) -> None:
    """Put a `.json` beside each sample: whether its number is odd."""
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
            if member.name.endswith(".cls"):
                about = json.dumps({"size": int(member.name[1:8]) % 2}).encode()
                beside = tarfile.TarInfo(f"{member.name[:8]}.json")
                beside.size = len(about)
                tar.addfile(beside, io.BytesIO(about))


def test_a_dataset_with_other_classes_and_columns_is_scored_through_its_map(run, finished, tmp_path):
    """Class 0 is the head's red or blue, class 1 its green, class 2 none of them: never predicted."""
    (tmp_path / "map.json").write_text(json.dumps({"num_source": 3, "groups": [[0, 2], [1], []]}))
    (tmp_path / "names.txt").write_text("warm\nleafy\nnone\n")
    names = {"classnames": str(tmp_path / "names.txt"), "class_map": str(tmp_path / "map.json")}
    spec = DatasetSpec.model_validate(names | {"metadata": {"size": "json:size"}})
    config = run.load_config()
    shards = shutil.copytree(Path(config.data.shifts["clipart"]), tmp_path / "clipart")
    for shard in shards.glob("*.tar"):
        with_columns(shard)
    data = config.data.model_copy(
        update={"shifts": config.data.shifts | {"clipart": str(shards)}, "datasets": {"clipart": spec}}
    )
    config = config.model_copy(update={"data": data})
    index(config, run)
    evaluate(config, run, dataset="clipart")
    mapped = CellStore.of_run(config, run).read("clipart", MEMBERS)
    plain = CellStore.of_run(finished.config, finished.run).read("clipart", MEMBERS)
    np.testing.assert_array_equal(mapped.classes, np.asarray([0, 1, 0])[plain.classes])
    np.testing.assert_array_equal(mapped.metadata["size"], [0, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(mapped.labels, plain.labels)


def rank_of_two(rank: int) -> dict[str, str]:
    """What torchrun tells a process."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    return os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def test_a_rank_that_is_killed_and_started_again_keeps_what_was_finished(run, finished):
    """Two real processes, side by side; one dies."""
    killed = [sys.executable, str(Path(__file__).with_name("killed_reader.py")), str(run.path), "7"]
    first = subprocess.Popen(command("evaluate", run.path), env=rank_of_two(0))
    second = subprocess.Popen(killed, env=rank_of_two(1))
    assert first.wait(120) == 0
    assert second.wait(120) == -signal.SIGKILL
    kept = part_files(run)
    config = run.load_config()
    others = [part for rank in (0,) for part in parts_of_reader(config, run, Ranks(rank, 2))]
    assert len(kept) == 3 * len(others) + 7
    assert len(list(run.cells.glob("*/*/.part-*"))) == 1
    read(config, run, Ranks(1, 2))
    assert kept.items() <= part_files(run).items()
    same_tables(run, finished)


class TestReader:
    """Of made-up predictions."""

    @pytest.fixture
    def parts(self):
        return [Part("photo", start, min(start + 4, 10)) for start in (0, 4, 8)]

    @pytest.fixture
    def made(self, tmp_path):
        def make(max_bad=0):
            store = CellStore(tmp_path / "cells", {}, lambda name: Content(10, {}))
            return Reader(store, MEMBERS, max_bad, Tracker(Run(tmp_path), "evaluate"))

        return make

    def test_only_what_is_missing_is_scored(self, made, parts):
        asked = []

        def score(part, members, on_progress):
            asked.append((part.start, members))
            return predictions(part.start, part.stop, len(members))

        reader = made()
        reader.store.write("photo", parts[1], MEMBERS[:2], predictions(4, 8, 2))
        reader.store.write("photo", parts[2], MEMBERS, predictions(8, 10))
        reader.score(parts, score)
        assert asked == [(0, list(MEMBERS)), (4, [MEMBERS[2]])]
        assert reader.left(parts) == []

    def test_a_part_that_another_reader_finishes_meanwhile_is_not_scored(self, made, parts):
        reader, asked = made(), []

        def score(part, members, on_progress):
            asked.append(part.start)
            for other in parts[1:]:
                reader.store.write("photo", other, MEMBERS, predictions(other.start, other.stop))
            return predictions(part.start, part.stop)

        reader.score(parts, score)
        assert asked == [0]

    def test_damaged_samples_are_counted_over_the_dataset_and_what_was_finished_stays(self, made, parts):
        def score(part, members, on_progress):
            return predictions(part.start, part.stop, bad=sorted({1, 5, 9} & set(range(part.start, part.stop))))

        reader = made(max_bad=2)
        with pytest.raises(RunError, match="sample 's9' is torn; 3 skipped so far, 2 may be"):
            reader.score(parts, score)
        assert reader.left(parts) == parts[2:]
        made(max_bad=3).score(parts, score)
        assert reader.store.missing("photo", MEMBERS) == []
        run = Run(reader.store.folder("photo", MEMBERS[0]).parents[2])
        skipped = [event["sample"] for event in read_events(run) if event["event"] == "skipped"]
        assert skipped[-1] == "0.tar: sample 's9' is torn"
