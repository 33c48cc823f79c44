"""The `wiseft merge` command: of a run, or of checkpoints of any kind; and what can be asked about checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_dist.errors import UserError

if TYPE_CHECKING:
    from wiseft_dist.config import MergeConfig
    from wiseft_dist.merge.writer import Written
    from wiseft_dist.run import Run

SOURCE_HELP = "file, folder, DeepSpeed checkpoint or open_clip ARCH:TAG, here or in a store"
RunDirectory = Annotated[Path | None, typer.Argument(help="Run directory.", metavar="[RUN]")]
ZeroShot = Annotated[str | None, typer.Option("--zero-shot", help=f"theta_0: {SOURCE_HELP}.")]
Finetuned = Annotated[list[str] | None, typer.Option("--finetuned", help="theta_1: the same; again for theta_2, ...")]
Output = Annotated[str | None, typer.Option("--output", help="Folder for the ensembles, or a store's.")]
Settings = Annotated[Path | None, typer.Option("--settings", help="YAML file with settings of `merge:`.")]
Alphas = Annotated[str | None, typer.Option("--alphas", help="Grid 0:1:0.1 or list 0,0.5,1.", show_default="0:1:0.1")]
MethodName = Annotated[str | None, typer.Option("--method", help="See docs/merging.md.", show_default="wise")]
Lines = Annotated[float | None, typer.Option("--lines", help="LiNeS: what alpha is multiplied by in the first layer.")]
Density = Annotated[float | None, typer.Option("--density", help="Of ties and dare: the share that is kept.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of dare.", show_default="0")]
Fisher = Annotated[list[str] | None, typer.Option("--fisher", help="Fisher information; theta_0's first.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="fp32, bf16 or fp16.", show_default="fp32")]
MaxShardSize = Annotated[str | None, typer.Option("--max-shard-size", help="Cut weights into files: 5GB.")]
Carry = Annotated[list[str] | None, typer.Option("--carry", help="Tensors only theta_0 has: a pattern.")]
MissingHead = Annotated[bool, typer.Option("--allow-missing-head", help="The head may be in one model only.")]
NonFinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Merge NaN and Inf instead of refusing them.")]
Average = Annotated[
    bool,
    typer.Option(
        "--average",
        help="theta_1 is the moving average that a run's checkpoint holds (finetune.ema), not its last weights.",
    ),
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Check the sources' checksums first, and read back what is written.")
]
Inspect = Annotated[str | None, typer.Option("--inspect", help="Only print what a checkpoint holds.")]
AsJson = Annotated[bool, typer.Option("--json", help="With --inspect: print JSON.")]


def merge(
    run_directory: RunDirectory = None,
    zero_shot: ZeroShot = None,
    finetuned: Finetuned = None,
    output: Output = None,
    settings: Settings = None,
    alphas: Alphas = None,
    method: MethodName = None,
    lines: Lines = None,
    density: Density = None,
    seed: Seed = None,
    fisher: Fisher = None,
    dtype: Dtype = None,
    max_shard_size: MaxShardSize = None,
    carry: Carry = None,
    allow_missing_head: MissingHead = False,
    allow_nonfinite: NonFinite = False,
    average: Average = False,
    verify: Verify = False,
    inspect: Inspect = None,
    as_json: AsJson = False,
) -> None:
    """Write an ensemble for each alpha: of a run, or of two or more checkpoints of any kind."""
    if inspect is not None:
        if run_directory or zero_shot or finetuned or output:
            raise UserError("wiseft merge --inspect looks at one checkpoint and merges nothing: leave the others out.")
        return _inspect(inspect, as_json=as_json)
    options = {
        "alphas": alphas, "method": method, "lines": lines, "density": density, "seed": seed, "fisher": fisher,
        "dtype": dtype, "max_shard_size": max_shard_size, "allow_nonfinite": allow_nonfinite or None,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if run_directory is not None:
        if zero_shot or finetuned or output:
            raise UserError("wiseft merge takes either RUN or --zero-shot, --finetuned and --output, not both.")
        if given or settings or carry or allow_missing_head or average:
            raise UserError("wiseft merge RUN merges as the run's configuration says: leave the other options out.")
        return _merge_run(run_directory, verify=verify)
    if verify and output is not None and zero_shot is None and not finetuned:
        return _verify(Path(output))
    if zero_shot is None or not finetuned or output is None:
        raise UserError("wiseft merge needs RUN, or all of --zero-shot, --finetuned and --output.")
    _merge_files(
        zero_shot,
        finetuned,
        output,
        settings_of("wiseft merge", settings, given),
        {"carry": carry or [], "allow_missing_head": allow_missing_head, "average": average, "check": verify},
        verify=verify,
    )


def _inspect(source: str, *, as_json: bool) -> None:
    from wiseft_dist.weights.inspect import inspect

    inspection = inspect(source)
    print(json.dumps(inspection.as_dict(), indent=1) if as_json else inspection.as_text())


def _merge_run(run_directory: Path, *, verify: bool) -> None:
    from wiseft_dist.pipeline import execute
    from wiseft_dist.ranks import discover_ranks
    from wiseft_dist.run import Run

    run = Run(run_directory.absolute())
    is_verified = verify and discover_ranks().is_main
    if is_verified:
        _check_models(run)
    execute("merge", run)
    if is_verified:
        _verify(run.merged)


def _check_models(run: Run) -> None:
    from wiseft_dist.weights.finetuned import open_models
    from wiseft_dist.weights.integrity import check_sources

    with open_models(run.load_config(), run) as models:
        for weights in (models.zero_shot, *models.finetuned, *models.fisher):
            check_sources(weights)


def settings_of(command: str, file: Path | None, given: dict[str, Any]) -> MergeConfig:
    """The settings of ``merge:`` in a YAML file, changed by a command's options.

    Raises:
        UserError: naming the setting that is wrong.
    """
    from wiseft_dist.config import MergeConfig, load_tree, parse_section

    written = {} if file is None else load_tree(file)
    if "models" in written:
        raise UserError(f"{file}: fine-tuned models are named by --finetuned here: take `models` out.")
    source = command if file is None else f"{command} --settings {file}"
    return parse_section(MergeConfig, written | given, source=source)


def _merge_files(
    zero_shot: str,
    finetuned: Sequence[str],
    output: str,
    settings: MergeConfig,
    options: dict[str, Any],
    *,
    verify: bool,
) -> None:
    from wiseft_dist.merge.files import merge_files, merge_to_store
    from wiseft_dist.ranks import discover_ranks
    from wiseft_dist.storage import is_remote

    if is_remote(output):
        if verify:
            raise UserError("--verify reads local files: merge into a folder, or leave it out.")
        urls, written = merge_to_store(zero_shot, finetuned, output, settings, **options)
        places = list(urls)
    else:
        folders, written = merge_files(zero_shot, finetuned, Path(output), settings, **options)
        places = list(map(str, folders))
    if not discover_ranks().is_main:
        return
    print(*places, sep="\n")
    print(_told(len(places), written), file=sys.stderr)
    if verify:
        _verify(Path(output))


def _told(num_ensembles: int, written: Written | None) -> str:
    if written is None:
        return f"{num_ensembles} ensembles: all of them were there already."
    read, wrote = written.num_bytes_read / 1e9, written.num_bytes_written / 1e9
    rate = (read + wrote) / max(written.seconds, 1e-9)
    kept = f"; {written.num_chunks_kept} of {written.num_chunks} chunks were there" if written.num_chunks_kept else ""
    return (
        f"{num_ensembles} ensembles: read {read:.2f} GB, wrote {wrote:.2f} GB in {written.seconds:.1f} s "
        f"({rate:.2f} GB/s){kept}."
    )


def _verify(folder: Path) -> None:
    from wiseft_dist.merge.files import verify_models

    models, num_bytes = verify_models(folder)
    print(f"{len(models)} models, {num_bytes / 1e9:.2f} GB: every byte is as it was written.", file=sys.stderr)
