"""The `wiseft evaluate` command: of a run, or of models of any kind on any test sets; and what the catalog knows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.merge_command import (
    Alphas,
    Carry,
    Finetuned,
    MethodName,
    MissingHead,
    RunDirectory,
    Settings,
    ZeroShot,
)

if TYPE_CHECKING:
    from wiseft_dist.config import EvaluateConfig, MergeConfig
    from wiseft_dist.evaluate.standalone.evaluation import Evaluation
    from wiseft_dist.evaluate.standalone.model_sources import ModelSources
    from wiseft_dist.evaluate.statistics.statistics import Statistics
    from wiseft_dist.run import Run

Datasets = Annotated[
    list[str] | None,
    typer.Option("--dataset", help="NAME=URL, a folder or URL of shards, a .yaml that describes it, or a name of the "
                 "catalog (with --shards); again for more. Of RUN: only this one."),
]  # fmt: skip
PlainModels = Annotated[list[str] | None, typer.Option("--model", help="A model to evaluate as it is; again for more.")]
Output = Annotated[Path | None, typer.Option("--output", help="Folder for cells, results.csv and statistics.json.")]
Average = Annotated[bool, typer.Option("--average", help="theta_1 is the moving average that a checkpoint holds.")]
Architecture = Annotated[
    str | None, typer.Option("--architecture", help="Of weights without a configuration: ViT-B-16, ViT-B-16:openai.")
]
Classnames = Annotated[
    str | None, typer.Option("--classnames", help="Of the models' head: a file, or a list of the catalog (imagenet).")
]
Reference = Annotated[str | None, typer.Option("--reference", help="The reference dataset.", show_default="the first")]
Shards = Annotated[str | None, typer.Option("--shards", help="Folder with the catalog's datasets: wds_NAME/test.")]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="fp32")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a pass.", show_default="256")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Decoding processes.", show_default="2")]
PreprocessMode = Annotated[str | None, typer.Option("--preprocess", help="fast or exact.", show_default="fast")]
OutputSpace = Annotated[bool, typer.Option("--output-space", help="Also score ensembles of logits, for comparison.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the forward pass once for all alphas.")]
List = Annotated[bool, typer.Option("--list", help="Only show the catalog's datasets.")]
Check = Annotated[bool, typer.Option("--check", help="Compare zero-shot accuracies with the published ones.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    run_directory: RunDirectory = None,
    dataset: Datasets = None,
    zero_shot: ZeroShot = None,
    finetuned: Finetuned = None,
    model: PlainModels = None,
    output: Output = None,
    alphas: Alphas = None,
    method: MethodName = None,
    settings: Settings = None,
    carry: Carry = None,
    allow_missing_head: MissingHead = False,
    average: Average = False,
    architecture: Architecture = None,
    classnames: Classnames = None,
    reference: Reference = None,
    shards: Shards = None,
    precision: PrecisionName = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    preprocess: PreprocessMode = None,
    output_space: OutputSpace = False,
    compile_forward: Compile = False,
    list_catalog: List = False,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Score every ensemble on one decode pass: of a run, or of models of any kind on any test sets."""
    merging = {"alphas": alphas, "method": method}
    scoring = {
        "precision": precision, "batch_size": batch_size, "workers": workers, "preprocess": preprocess,
        "output_space": output_space or None, "compile": compile_forward or None,
    }  # fmt: skip
    models = {
        "carry": tuple(carry or ()), "allow_missing_head": allow_missing_head, "average": average,
        "architecture": architecture, "classnames": classnames,
    }  # fmt: skip
    if list_catalog:
        return _list(as_json=as_json)
    if run_directory is not None:
        others = [zero_shot, finetuned, model, output, settings, reference, shards, check]
        if any(others) or any(models.values()) or _given(merging) or _given(scoring):
            raise UserError(
                "wiseft evaluate RUN evaluates as the run's configuration says: only --dataset and --json go with it."
            )
        return _evaluate_run(run_directory, dataset or [None], as_json=as_json)
    plain = list(dict.fromkeys(model or ()) or ([zero_shot] if check and zero_shot and not finetuned else []))
    is_merging = any((settings, carry, allow_missing_head, average, output_space, *_given(merging)))
    _refuse_incomplete(plain, zero_shot, finetuned, output, dataset, given=is_merging, check=check)
    if plain:
        sources = [_plain(name, models) for name in plain]
    else:
        sources = [_ensemble(str(zero_shot), finetuned or [], _merge_settings(settings, _given(merging)), models)]
    _evaluate_files(
        sources,
        list(dataset or []),
        Path(str(output)),
        _evaluate_settings(_given(scoring)),
        shards=shards,
        reference=reference,
        check=check,
        as_json=as_json,
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _list(*, as_json: bool) -> None:
    from wiseft_dist.evaluate.catalog.listing import listing

    print(listing(as_json=as_json))


def _evaluate_run(run_directory: Path, datasets: list[str] | list[None], *, as_json: bool) -> None:
    from wiseft_dist.pipeline import execute
    from wiseft_dist.ranks import discover_ranks
    from wiseft_dist.run import Run

    run = Run(run_directory.absolute())
    for dataset in datasets:
        execute("evaluate", run, dataset=dataset)
    if as_json and discover_ranks().is_main:
        _print_json(run.path, *_results_of_run(run))


def _results_of_run(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """What is missing of a run's evaluation, in words; or a row for each dataset and member if nothing is."""
    from wiseft_dist.report.results import gather
    from wiseft_dist.report.without_run import json_rows

    try:
        return [], list(json_rows(str(run.path), gather(run.load_config(), run)))
    except RunError as error:
        return [str(error)], []


def _print_json(output: Path, missing: list[str], results: list[dict[str, Any]]) -> None:
    print(json.dumps({"output": str(output), "missing": missing, "results": results}, indent=1, allow_nan=False))


def _refuse_incomplete(
    plain: list[str],
    zero_shot: str | None,
    finetuned: list[str] | None,
    output: Path | None,
    datasets: list[str] | None,
    *,
    given: bool,
    check: bool,
) -> None:
    """Refuse what is neither an ensemble nor plain models, and what has no place to go."""
    if check and (finetuned or given):
        raise UserError("wiseft evaluate --check scores zero-shot models: leave out what mixes models.")
    if plain and (finetuned or given):
        raise UserError("wiseft evaluate --model scores models as they are: leave out what mixes models.")
    if not plain and (zero_shot is None or not finetuned):
        raise UserError("wiseft evaluate needs RUN, or --zero-shot and --finetuned, or --model.")
    if not datasets or output is None:
        raise UserError("wiseft evaluate of models needs --dataset and --output.")
    if "://" in str(output) or ":/" in str(output):
        raise UserError("--output: results are written to a local folder; copy it to a store afterwards.")


def _plain(name: str, options: dict[str, Any]) -> ModelSources:
    from wiseft_dist.evaluate.standalone.model_sources import ModelSources

    return ModelSources(name, **options)


def _ensemble(zero_shot: str, finetuned: list[str], merge: MergeConfig, options: dict[str, Any]) -> ModelSources:
    from wiseft_dist.evaluate.standalone.model_sources import ModelSources

    return ModelSources(zero_shot, tuple(finetuned), merge, **options)


def _merge_settings(file: Path | None, given: dict[str, Any]) -> MergeConfig:
    from wiseft_dist.merge_command import settings_of

    return settings_of("wiseft evaluate", file, given)


def _evaluate_settings(given: dict[str, Any]) -> EvaluateConfig:
    from wiseft_dist.config import EvaluateConfig, parse_section

    return parse_section(EvaluateConfig, given, source="wiseft evaluate")


def _evaluate_files(
    sources: list[ModelSources],
    datasets: list[str],
    output: Path,
    settings: EvaluateConfig,
    *,
    shards: str | None,
    reference: str | None,
    check: bool,
    as_json: bool,
) -> None:
    from wiseft_dist.evaluate.standalone.files import evaluate_files
    from wiseft_dist.evaluate.standalone.given_datasets import given_datasets
    from wiseft_dist.report.without_run import write_results

    given = given_datasets(datasets, shards)
    if reference is not None and reference not in [each.name for each in given]:
        raise UserError(f"--reference {reference} is none of the datasets: {', '.join(each.name for each in given)}.")
    evaluation = evaluate_files(sources, given, output, settings, reference=reference or given[0].name)
    if missing := evaluation.still_missing():
        return _tell_missing(evaluation, missing, as_json=as_json)
    found = write_results(evaluation)
    if check:
        return _check(evaluation, as_json=as_json)
    _tell_results(evaluation, found, as_json=as_json)


def _tell_missing(evaluation: Evaluation, missing: list[str], *, as_json: bool) -> None:
    """The processes that share the work do not wait for each other: whoever ends last finds everything there."""
    if as_json:
        _print_json(evaluation.output, missing, [])
    for line in missing:
        print(f"still missing: {line}", file=sys.stderr)
    print("Other processes are at it, or were stopped: the same command again does what is left.", file=sys.stderr)


def _tell_results(evaluation: Evaluation, found: Mapping[str, Statistics], *, as_json: bool) -> None:
    from rich.console import Console

    from wiseft_dist.report.without_run import json_rows, tables
    from wiseft_dist.terminal import TABLE_WIDTH

    if as_json:
        rows = [row for title, each in found.items() for row in json_rows(title, each)]
        return _print_json(evaluation.output, [], rows)
    for table in tables(evaluation, found):
        Console(width=TABLE_WIDTH).print(table)
    print(f"{evaluation.output}: results.csv and statistics.json have every number.", file=sys.stderr)


def _check(evaluation: Evaluation, *, as_json: bool) -> None:
    from wiseft_dist.evaluate.standalone.check import check_zero_shot

    check = check_zero_shot(evaluation)
    print(json.dumps(check.as_dict(), indent=1) if as_json else check.as_text())
    if not check.agrees:
        raise typer.Exit(1)
