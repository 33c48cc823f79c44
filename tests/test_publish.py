"""Ensembles and reports in a store: complete, once, and never over another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from swift_store import SwiftStore

from wiseft_dist import storage
from wiseft_dist.cli import app
from wiseft_dist.commits import COMMIT_FILE, committing
from wiseft_dist.config import MergeConfig, RunConfig, load_config
from wiseft_dist.errors import UserError
from wiseft_dist.merge.files import merge_to_store
from wiseft_dist.models.files import WEIGHTS_FILE
from wiseft_dist.pipeline import execute, remaining
from wiseft_dist.publish import (
    ensembles_are_published,
    publish_ensembles,
    publish_report,
    report_is_published,
)
from wiseft_dist.run import IDENTITY, Run, open_run
from wiseft_dist.tracking import read_events

ALPHAS = (0.0, 0.5)


@pytest.fixture(params=["folder", pytest.param("s3", id="swift")])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder of a file system, and one of a real store."""
    if request.param == "folder":
        return str(tmp_path / "store")
    swift: SwiftStore = request.getfixturevalue("swift")
    for name, value in swift.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"


def configured(tmp_path: Path, publish: str | None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "model": {"architecture": "A"},
            "data": {"train": "t"},
            "merge": {"alphas": ALPHAS},
            "publish": publish,
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with committed ensembles and a report, without the models' insides."""
    run = open_run(configured(tmp_path, None))
    for alpha in ALPHAS:
        with committing(run.ensemble(alpha), alpha=alpha) as aside:
            (aside / "weights").write_bytes(bytes([int(2 * alpha)]) * 1000)
            (aside / "model.json").write_text("{}")
    run.report.mkdir()
    for name in ("index.html", "results.csv", "selection.json", "curve.png"):
        (run.report / name).write_text(name)
    return run


def published(run: Run, store: str, folder: Path) -> dict[str, bytes]:
    """What the store has of each file of a local folder."""
    url = storage.join(store, str(folder.relative_to(run.path)))
    return {path.name: storage.read_bytes(storage.join(url, path.name)) for path in folder.iterdir()}


def local(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_ensembles_and_report_arrive_byte_for_byte(run: Run, tmp_path: Path, store: str):
    config = configured(tmp_path, store)
    publish_ensembles(config, run)
    publish_report(config, run)
    for folder in (run.ensemble(0.0), run.ensemble(0.5), run.report):
        assert published(run, store, folder) == local(folder)
    events = [(event["stage"], event["folder"]) for event in read_events(run) if event["event"] == "published"]
    assert events == [("merge", "merge/alpha_0.00"), ("merge", "merge/alpha_0.50"), ("report", "report")]


def test_what_is_in_the_store_is_not_sent_again_and_what_is_missing_is(run: Run, tmp_path: Path, store: str):
    config = configured(tmp_path, store)
    publish_ensembles(config, run)
    mark = storage.join(store, "merge/alpha_0.50/model.json")
    storage.write_text(mark, "a file that was sent again would replace this")
    (run.path / "published.json").unlink()  # even if the run forgot
    publish_ensembles(config, run)
    assert storage.read_text(mark).startswith("a file that was sent again")
    with committing(run.ensemble(1.0), alpha=1.0) as aside:
        (aside / "weights").write_bytes(b"1")
    wider = config.model_copy(update={"merge": MergeConfig(alphas=(0.0, 0.5, 1.0))})
    assert ensembles_are_published(config, run)
    assert not ensembles_are_published(wider, run)
    publish_ensembles(wider, run)
    assert published(run, store, run.ensemble(1.0)) == local(run.ensemble(1.0))


def test_an_ensemble_without_its_commit_record_is_sent_whole(run: Run, tmp_path: Path):
    store = tmp_path / "store"
    config = configured(tmp_path, str(store))
    half = store / "merge" / "alpha_0.50"
    half.mkdir(parents=True)
    (half / "weights").write_bytes(b"half")
    publish_ensembles(config, run)
    assert local(half) == local(run.ensemble(0.5))


def test_another_model_is_never_replaced(run: Run, tmp_path: Path, store: str):
    other = storage.join(store, "merge/alpha_0.50")
    storage.write_text(storage.join(other, COMMIT_FILE), '{"files": {}}')
    with pytest.raises(UserError, match=r"alpha_0\.50/COMMITTED\.json: another model is published there"):
        publish_ensembles(configured(tmp_path, store), run)
    assert storage.read_text(storage.join(other, COMMIT_FILE)) == '{"files": {}}'
    assert not storage.exists(storage.join(other, "weights"))


def test_a_report_that_was_written_again_replaces_the_one_in_the_store(run: Run, tmp_path: Path, store: str):
    config = configured(tmp_path, store)
    publish_report(config, run)
    assert report_is_published(config, run)
    (run.report / "selection.json").write_text("of other cells")
    assert not report_is_published(config, run)
    publish_report(config, run)
    assert published(run, store, run.report) == local(run.report)


def test_a_run_that_publishes_nothing_has_published_all(run: Run, tmp_path: Path):
    config = configured(tmp_path, None)
    publish_ensembles(config, run)
    publish_report(config, run)
    assert ensembles_are_published(config, run)
    assert report_is_published(config, run)
    assert not (run.path / "published.json").exists()


def test_publishing_elsewhere_is_still_the_same_run(run: Run, tmp_path: Path):
    config = configured(tmp_path, str(tmp_path / "a"))
    publish_ensembles(config, run)
    assert open_run(config).path == run.path
    assert "publish" not in IDENTITY
    assert not ensembles_are_published(configured(tmp_path, str(tmp_path / "b")), run)


def test_credentials_are_refused_and_not_repeated(run: Run, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("output: o\nmodel: {architecture: A}\ndata: {train: t}\n")
    for url in ("https://me:hunter2@host/runs", "https://host/runs?X-Amz-Signature=hunter2"):
        with pytest.raises(UserError, match="credentials") as refusal:
            load_config(file, [f"publish={url}"])
        assert "hunter2" not in str(refusal.value)


def test_a_web_server_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(ValueError, match="a web server takes no uploads"):
        configured(tmp_path, "https://host/runs")
    with pytest.raises(UserError, match="a web server takes no uploads"):
        merge_to_store(tmp_path / "none", [tmp_path / "none"], "https://host/runs", MergeConfig())


def test_a_relative_folder_is_that_of_the_one_who_started_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert configured(tmp_path, "store").publish == str(tmp_path / "store")
    assert configured(tmp_path, "s3://bucket/a").publish == "s3://bucket/a"


def test_a_finished_run_that_is_told_to_publish_has_just_that_left(copied: Run, tmp_path: Path):
    store = tmp_path / "store"
    config = copied.load_config().model_copy(update={"publish": str(store)})
    open_run(config)
    assert [step.stage for step in remaining(config, copied)] == ["merge", "report"]
    before = (copied.ensemble(0.5) / COMMIT_FILE).stat().st_ino
    for stage in ("merge", "report"):
        execute(stage, copied)
    assert remaining(config, copied) == []
    assert (copied.ensemble(0.5) / COMMIT_FILE).stat().st_ino == before
    for folder in (copied.ensemble(0.0), copied.ensemble(1.0), copied.report):
        assert published(copied, str(store), folder) == local(folder)


def test_two_checkpoints_are_merged_straight_into_a_store(
    swift: SwiftStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in (swift.environment | {"TMPDIR": str(tmp_path / "aside")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "aside").mkdir()
    for name, value in (("zero_shot", 1.0), ("finetuned", 3.0)):
        safetensors.torch.save_file({"visual.w": torch.full((3, 5), value)}, tmp_path / f"{name}.safetensors")
    url = f"s3://bucket/{tmp_path.name}/merged"
    models = [f"--{name.replace('_', '-')}={tmp_path / name}.safetensors" for name in ("zero_shot", "finetuned")]
    app(["merge", *models, f"--output={url}", "--alphas=0,0.5"], standalone_mode=False)
    assert capsys.readouterr().out.split() == [f"{url}/alpha_0.00", f"{url}/alpha_0.50"]
    weights = safetensors.torch.load(storage.read_bytes(f"{url}/alpha_0.50/{WEIGHTS_FILE}"))
    assert torch.equal(weights["visual.w"], torch.full((3, 5), 2.0))
    assert storage.exists(f"{url}/alpha_0.50/{COMMIT_FILE}")
    assert list((tmp_path / "aside").iterdir()) == []
    assert merge_to_store(*_both(tmp_path), url, MergeConfig(alphas=(0.0, 0.5)))[0] == [
        f"{url}/alpha_0.00",
        f"{url}/alpha_0.50",
    ]
    with pytest.raises(UserError, match=r"alpha_0\.50: another model is there already"):
        merge_to_store(*_both(tmp_path), url, MergeConfig(alphas=(0.5,), dtype="bf16"))


def _both(folder: Path) -> tuple[Path, list[Path]]:
    return folder / "zero_shot.safetensors", [folder / "finetuned.safetensors"]
