"""`wiseft evaluate` without a run, as people call it."""

from __future__ import annotations

import csv
import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from tiny_run import MODEL, World, picture, wiseft
from typer.testing import CliRunner

from wiseft_dist.cli import app
from wiseft_dist.config import EvaluateConfig, MergeConfig, ModelConfig
from wiseft_dist.data.pack import EncodedSample, write_split
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.standalone.check import check_zero_shot
from wiseft_dist.evaluate.standalone.evaluation import Evaluation
from wiseft_dist.evaluate.standalone.files import evaluate_files
from wiseft_dist.evaluate.standalone.given_datasets import given_datasets, index_dataset
from wiseft_dist.evaluate.standalone.live_models import load_models
from wiseft_dist.evaluate.standalone.model_sources import ModelSources, opened
from wiseft_dist.merge.files import merge_files
from wiseft_dist.models.classifier import write_zero_shot
from wiseft_dist.models.clip import create_clip
from wiseft_dist.models.files import WEIGHTS_FILE

if TYPE_CHECKING:
    from conftest import FinishedRun

FIELDS = ("classes", "top5", "confidences", "margins", "log_probs", "briers")
SETTINGS = EvaluateConfig(workers=0, batch_size=4)
SIZES = {"photo": 11, "sketch": 13, "clipart": 7}


@pytest.fixture(scope="module")
def models(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """theta_0, and a theta_1 of which every tensor is another; neither has a head."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("models") / f"theta_{seed}")
        folders[-1].mkdir()
        clip = create_clip(ModelConfig(architecture=str(world.folder / "model.json")), seed=seed)
        write_zero_shot(folders[-1], clip, None, None)
    return folders[0], folders[1]


def datasets(world: World, *names: str) -> list[str]:
    return [str(world.data / name) for name in names or SIZES]


def scored(sources: list[ModelSources], world: World, output: Path, settings: EvaluateConfig = SETTINGS) -> Evaluation:
    return evaluate_files(sources, given_datasets(datasets(world), None), output, settings, reference="photo")


def predictions_of(evaluation: Evaluation, number: int, member: Member, dataset: str = "sketch") -> Predictions:
    return evaluation.scored[number].store.read(dataset, [member])


def assert_same(first: Predictions, second: Predictions, fields: tuple[str, ...] = FIELDS) -> None:
    assert first.keys == second.keys
    for name in fields:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def assert_equal(first: Predictions, second: Predictions) -> None:
    """By another number of threads, which may change the last bit of a sum."""
    assert_same(first, second, ("positions", "labels", "classes", "top5"))
    for name in ("confidences", "margins", "log_probs", "briers", "divergences"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-5, err_msg=name)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_every_alpha_is_the_model_itself_sample_by_sample(models, world, tmp_path):
    zero_shot, finetuned = map(str, models)
    settings = MergeConfig(alphas=(0, 0.5, 1))
    (_, written, _), _ = merge_files(zero_shot, [finetuned], tmp_path / "written", settings)
    plain = [ModelSources(str(model)) for model in (zero_shot, written, finetuned)]
    evaluation = scored([ModelSources(zero_shot, (finetuned,), settings), *plain], world, tmp_path / "out")
    for dataset in SIZES:
        for number, alpha in enumerate((0.0, 0.5, 1.0), start=1):
            ensemble = predictions_of(evaluation, 0, Member(alpha), dataset)
            assert_same(ensemble, predictions_of(evaluation, number, Member(0.0), dataset))
            assert len(ensemble) == SIZES[dataset]
    log_probs = [predictions_of(evaluation, number, Member(0.0)).log_probs for number in (1, 2, 3)]
    assert not any(np.allclose(one, other) for one, other in itertools.pairwise(log_probs))


def test_an_ensemble_of_a_run_has_the_predictions_of_the_run(finished: FinishedRun, world, tmp_path):
    run, config = finished.run, finished.config
    sources = ModelSources(
        str(run.zero_shot), (str(run.finished_checkpoint()),), MergeConfig(alphas=config.merge.alphas)
    )
    written = ModelSources(str(run.ensemble(0.5)))
    evaluation = scored([sources, written], world, tmp_path / "out")
    ours = CellStore.of_run(config, run)
    for dataset in SIZES:
        for alpha in config.merge.alphas:
            assert_equal(ours.read(dataset, [Member(alpha)]), predictions_of(evaluation, 0, Member(alpha), dataset))
        plain = predictions_of(evaluation, 1, Member(0.0), dataset)
        assert_equal(replace(ours.read(dataset, [Member(0.5)]), divergences=plain.divergences), plain)


def test_a_finished_run_tells_its_numbers_as_json(finished: FinishedRun):
    done = call(finished.run.path, "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    assert (told["output"], told["missing"]) == (str(finished.run.path), [])
    counts = {(row["dataset"], row["alpha"]): row["num_correct"] for row in told["results"]}
    reader = csv.DictReader(finished.run.results_file.open())
    in_report = {(row["dataset"], float(row["alpha"])): int(row["num_correct"]) for row in reader}
    assert {place: counts[place] for place in in_report} == in_report


def test_started_again_only_what_is_missing_is_computed(models, world, tmp_path):
    arguments = ["--zero-shot", models[0], "--finetuned", models[1], "--workers", 0, "--output", tmp_path]
    arguments += [each for text in datasets(world) for each in ("--dataset", text)]
    first = call(*arguments, "--alphas", "0,1", "--json")
    assert first.exit_code == 0, first.exception
    assert parts_scored(tmp_path) == [(dataset, [0.0, 1.0]) for dataset in SIZES]
    cells = sorted(tmp_path.glob("evaluate/cells/*/*/*.parquet"))
    assert len(cells) == 6
    before = {cell: cell.stat().st_mtime_ns for cell in cells}
    again = call(*arguments, "--alphas", "0,1", "--json")
    assert again.stdout == first.stdout
    cells[0].unlink()
    call(*arguments, "--alphas", "0,0.5,1", "--output-space")
    after = sorted(tmp_path.glob("evaluate/cells/*/*/*.parquet"))
    assert len(after) == 12  # and alpha 0.5 in both spaces
    assert {cell for cell in cells if cell.stat().st_mtime_ns != before[cell]} == {cells[0]}


def parts_scored(output: Path) -> list[tuple[str, list[float]]]:
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return [(event["dataset"], event["alphas"]) for event in events if event["event"] == "started"]


def test_results_are_written_and_shown(models, world, tmp_path):
    arguments = ["--model", models[0], "--model", models[1], "--workers", 0, "--output", tmp_path]
    arguments += [each for text in datasets(world) for each in ("--dataset", text)]
    done = call(*arguments, "--reference", "clipart")
    assert done.exit_code == 0, done.exception
    lines = [line for line in done.stdout.splitlines() if "theta_" in line]
    assert len(lines) == 2 and max(map(len, done.stdout.splitlines())) <= 100
    told = json.loads((tmp_path / "statistics.json").read_text())["models"]
    assert [each["statistics"]["reference"] for each in told] == ["clipart", "clipart"]
    assert told[0]["heads"] == dict.fromkeys(SIZES, "zero-shot, 3 classes, 2 templates")
    header, *rows = (tmp_path / "results.csv").read_text().splitlines()
    assert header.startswith("model,dataset,role,alpha,num_samples,num_correct,top1")
    assert [row.split(",")[1:5] for row in rows[:3]] == [
        ["clipart", "reference", "0.0", "7"], ["photo", "shift", "0.0", "11"], ["sketch", "shift", "0.0", "13"],
    ]  # fmt: skip
    accuracies = [f"{100 * int(row.split(',')[5]) / int(row.split(',')[4]):.2f}" for row in rows[:3]]
    assert [lines[0].split()[position] for position in (1, 3, 4)] == accuracies


def test_what_an_earlier_call_wrote_is_gone_before_cells_are_computed(models, world, tmp_path, monkeypatch):
    arguments = ["--model", models[0], "--workers", 0, "--output", tmp_path, "--dataset"]
    assert call(*arguments, world.data / "photo").exit_code == 0
    first = json.loads((tmp_path / "statistics.json").read_text())["cells"]
    before = (tmp_path / "results.csv").stat().st_mtime_ns
    monkeypatch.setattr("wiseft_dist.evaluate.standalone.files.score_part", _killed)
    with pytest.raises(KeyboardInterrupt):
        scored([ModelSources(str(models[0]))], world, tmp_path)
    assert not list(tmp_path.glob("results.csv")) and not list(tmp_path.glob("statistics.json"))
    assert call(*arguments, world.data / "photo").exit_code == 0  # nothing of these is missing
    assert json.loads((tmp_path / "statistics.json").read_text())["cells"] == first
    assert (tmp_path / "results.csv").stat().st_mtime_ns > before
    monkeypatch.undo()
    assert call(*arguments, world.data / "sketch").exit_code == 0
    assert json.loads((tmp_path / "statistics.json").read_text())["cells"] != first


def _killed(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_what_is_missing_is_told_as_json(models, world, tmp_path, monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("wiseft_dist.evaluate.standalone.evaluation.PATIENCE", 0.0)
    arguments = ["--model", models[0], "--workers", 0, "--output", tmp_path, "--json"]
    done = call(*arguments, *(each for text in datasets(world) for each in ("--dataset", text)))
    told = json.loads(done.stdout)
    assert (done.exit_code, told["results"]) == (0, [])
    assert told["missing"] and all(line.endswith(f"1 of 1 cells of {models[0]}") for line in told["missing"])


def test_cells_that_show_late_are_waited_for(models, world, tmp_path):
    evaluation = scored([ModelSources(str(models[0]))], world, tmp_path)
    (cell,) = tmp_path.glob("evaluate/cells/photo/*/*.parquet")
    cell.rename(tmp_path / "late")
    assert [line.split(":")[0] for line in evaluation.missing] == ["photo"]
    threading.Timer(0.1, (tmp_path / "late").rename, [cell]).start()
    assert evaluation.still_missing() == []


def test_one_of_several_processes_warns_of_a_count(world, tmp_path, monkeypatch, capsys):
    samples = [EncodedSample(picture(number, number % 3), "png", number % 3) for number in range(6)]
    write_split(samples, tmp_path / "data", samples_per_shard=6)
    (given,) = given_datasets([f"CIFAR-10={tmp_path / 'data'}"], None)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        index_dataset(given, tmp_path / "shards")
        said.append(capsys.readouterr().err)
    assert "holds 6 samples, but CIFAR-10 has 10,000" in said[0] and said[1] == ""


def test_names_with_brackets_are_shown_as_they_are(models, world, tmp_path):
    for folder in ("a[b]", "a[/b]"):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        (tmp_path / "runs" / folder / "m").symlink_to(models[0])
    odd = [tmp_path / "runs" / folder / "m" for folder in ("a[b]", "a[/b]")]
    given = ["--dataset", f"photo={world.data / 'photo'}", "--output", tmp_path / "out", "--workers", 0]
    done = call("--model", odd[0], "--model", odd[1], *given)
    assert done.exit_code == 0, done.exception
    assert "runs/a[b]/m" in done.stdout and "runs/a[/b]/m" in done.stdout


def test_several_processes_share_the_datasets_and_the_last_one_finds_all_there(models, world, tmp_path, monkeypatch):
    sources = [ModelSources(str(models[0]))]
    alone = scored(sources, world, tmp_path / "alone")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    left = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        evaluation = scored(sources, world, tmp_path / "shared")
        left.append([line.split(":")[0] for line in evaluation.missing])
    assert 0 < len(left[0]) < 3 and left[1] == []
    for dataset in SIZES:
        assert_same(predictions_of(alone, 0, Member(0.0), dataset), predictions_of(evaluation, 0, Member(0.0), dataset))


def test_the_text_tower_is_asked_once_where_fine_tuning_left_it_alone(models, tmp_path):
    weights = load_file(models[1] / WEIGHTS_FILE)
    texts = {name: each for name, each in load_file(models[0] / WEIGHTS_FILE).items() if not name.startswith("visual.")}
    save_file(weights | texts, tmp_path / "finetuned.safetensors")
    vocabulary = Vocabulary(("red", "green"), ("a {c} picture",))
    varying = []
    for finetuned in (tmp_path / "finetuned.safetensors", models[1]):
        with opened(ModelSources(str(models[0]), (str(finetuned),), MergeConfig())) as both:
            live = load_models(both, device=torch.device("cpu"), dtype=torch.float32)
            varying.append(live.for_classes(vocabulary, {0.0, 0.5, 1.0}).varying)
    assert "head.weight" not in varying[0] and "visual.conv1.weight" in varying[0]
    assert "head.weight" in varying[1]


def test_a_head_for_other_classes_is_refused_and_a_class_map_helps(finished: FinishedRun, world, tmp_path):
    (tmp_path / "classes.txt").write_text("warm\ncold\n")
    (tmp_path / "map.json").write_text(json.dumps({"num_source": 3, "groups": [[0, 1], [2]]}))
    shards = tmp_path / "data"
    samples = (EncodedSample(picture(number, number % 3), "png", number % 3 // 2) for number in range(6))
    write_split(samples, shards, samples_per_shard=6)
    file = tmp_path / "warmth.yaml"
    file.write_text(f"shards: {shards}\nclassnames: {tmp_path / 'classes.txt'}\n")
    arguments = ["--model", finished.run.zero_shot, "--dataset", file, "--output", tmp_path / "out", "--workers", 0]
    with pytest.raises(UserError, match=r"warmth has 2 classes and the head 3.*name with warmth\.class_map the map"):
        raise call(*arguments).exception
    file.write_text(file.read_text() + f"class_map: {tmp_path / 'map.json'}\n")
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.exception
    (row,) = json.loads(done.stdout)["results"]
    assert (row["dataset"], row["num_samples"]) == ("warmth", 6)


def test_datasets_of_the_catalog_are_found_under_one_folder(models, world, tmp_path):
    for folder in ("wds_vtab-cifar10", "cifar10.1"):
        (tmp_path / "root" / folder).mkdir(parents=True)
        (tmp_path / "root" / folder / "test").symlink_to(world.data / "photo")
    found = given_datasets(["cifar10", "CIFAR-10.1"], str(tmp_path / "root"))
    assert [(each.name, Path(each.url).parent.name) for each in found] == [
        ("cifar10", "wds_vtab-cifar10"), ("cifar10.1", "cifar10.1"),
    ]  # fmt: skip
    hub = "https://huggingface.co/datasets/clip-benchmark/wds_imagenet-r/resolve/main/test/{0..2}.tar"
    assert [each.name for each in given_datasets([hub, f"{tmp_path}/root/cifar10.1"], None)] == [
        "imagenet_r", "cifar10.1",
    ]  # fmt: skip


def test_check_says_that_it_has_nothing_to_compare_with(models, world, tmp_path):
    done = call(
        "--check", "--model", models[0], "--dataset", world.data / "photo", "--output", tmp_path, "--workers", 0
    )
    assert done.exit_code == 1
    assert "on photo:" in done.stdout and "not in the published table" in done.stdout


def test_check_knows_datasets_and_models_by_their_published_names(models, tmp_path):
    samples = [EncodedSample(picture(number, number % 3), "png", number % 3) for number in range(6)]
    write_split(samples, tmp_path / "data", samples_per_shard=6)
    given = given_datasets([f"CIFAR-10={tmp_path / 'data'}"], None)
    evaluation = evaluate_files([ModelSources(str(models[0]))], given, tmp_path / "out", SETTINGS, reference="CIFAR-10")
    (known,) = evaluation.scored
    known = replace(known, sources=replace(known.sources, architecture="ViT-B/32:openai"))
    (row,) = check_zero_shot(replace(evaluation, scored=(known,))).rows
    assert (row.dataset, row.published, row.differs) == ("CIFAR-10", 89.83, True)
    assert row.measured == pytest.approx(
        100 * predictions_of(evaluation, 0, Member(0.0), "CIFAR-10").num_correct[0] / 6
    )


def test_the_catalog_is_listed():
    assert "imagenet_sketch" in call("--list").stdout
    assert json.loads(call("--list", "--json").stdout)


BOTH = ["--zero-shot", "{theta_0}", "--finetuned", "{theta_1}"]
PHOTO = ["--dataset", "{data}/photo", "--output", "{out}"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "needs RUN, or --zero-shot and --finetuned, or --model"),
        (["--model", "{theta_0}"], "needs --dataset and --output"),
        (["--model", "{theta_0}", *BOTH, *PHOTO], "scores models as they are"),
        (["--model", "{theta_0}", "--alphas", "0,1", *PHOTO], "scores models as they are"),
        (["--check", *BOTH, *PHOTO], "--check scores zero-shot models"),
        (["--model", "{theta_0}", "--output-space", *PHOTO], "scores models as they are"),
        (["--model", "{theta_0}", "--classnames", "imagenet", *PHOTO], "no head whose classes --classnames could name"),
        (["run", *PHOTO], "evaluates as the run's configuration says"),
        ([*BOTH, *PHOTO, "--precision", "fp8"], "precision is 'fp8'"),
        ([*BOTH, *PHOTO, "--alphas", "0,2"], "alpha 2 is not between 0"),
        ([*BOTH, *PHOTO, "--method", "model_stock"], "model_stock needs two fine-tuned models"),
        ([*BOTH, *PHOTO, "--reference", "sketch"], "--reference sketch is none of the datasets: photo"),
        ([*BOTH, "--dataset", "..={data}/photo", "--output", "{out}"], "'..' is no name for a dataset"),
        ([*BOTH, "--dataset", "={data}/photo", "--output", "{out}"], "'' is no name for a dataset"),
        ([*BOTH, "--dataset", "a\x07={data}/photo", "--output", "{out}"], r"'a.x07' is no name for a dataset"),
        ([*BOTH, *PHOTO, "--dataset", "photo={data}/sketch"], "two datasets are called photo"),
        ([*BOTH, "--dataset", "imagenet_sketc", "--output", "{out}"], r"near: imagenet_sketch"),
        ([*BOTH, "--dataset", "imagenet_r", "--output", "{out}"], "--shards with the folder that holds wds_imagenet-r"),
        ([*BOTH, "--dataset", "imagenet_r", "--shards", "{data}", "--output", "{out}"], "no nshards.txt in any of"),
        ([*BOTH, "--dataset", "none={data}/none", "--output", "{out}"], r"no shard|does not exist"),
        ([*BOTH, "--dataset", "{data}/photo", "--output", "s3://bucket/x"], "written to a local folder"),
        (["--model", "/none", *PHOTO], "/none: no such checkpoint"),
        ([*BOTH, "--dataset", "{data}/photo", "--output", "{run}"], "is a run, with manifests and cells of its own"),
    ],
)
def test_wrong_options_are_answered_with_what_is_right(arguments, answer, models, world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    names = {"theta_0": models[0], "theta_1": models[1], "data": world.data}
    names |= {"out": tmp_path / "out", "run": tmp_path / "run"}
    done = call(*(text.format_map(names) for text in arguments))
    with pytest.raises(UserError, match=answer):
        raise done.exception


def test_weights_without_an_architecture_are_asked_for_one(models, world, tmp_path):
    weights, rest = models[0] / WEIGHTS_FILE, ["--dataset", world.data / "photo", "--output", tmp_path / "out"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "weights.safetensors").symlink_to(weights)
    bare = ["--model", tmp_path / "bare" / "weights.safetensors", *rest, "--workers", 0]
    with pytest.raises(UserError, match="name it with --architecture ViT-B-16"):
        raise call(*bare).exception
    other = dict(MODEL, embed_dim=8)
    (tmp_path / "other.json").write_text(json.dumps({"model_cfg": other}))
    with pytest.raises(UserError, match=r"has shape \[.*its architecture asks for \[.*check --architecture"):
        raise call(*bare, "--architecture", tmp_path / "other.json").exception
    assert call(*bare, "--architecture", world.folder / "model.json").exit_code == 0


def test_a_mistake_ends_the_command_with_2_and_a_sentence():
    done = wiseft("evaluate", "--model", "a", "--output", "b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "wiseft: wiseft evaluate of models needs --dataset and --output.\n"
