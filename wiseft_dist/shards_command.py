"""`wiseft shards`: look at a dataset's shards before a run does. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_dist.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from wiseft_dist.data.manifest import Manifest, Shard
    from wiseft_dist.data.verify import Verification

SHOWN_SHARDS = 6
"""Rows at the head and at the foot of a long table."""
WIDE = 10_000
SHOWN_PROBLEMS = 20
"""Lines of each kind."""

app = typer.Typer(
    name="shards",
    help="Write, count and check the shards of a dataset.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Shards = Annotated[
    str, typer.Argument(help="Folder, glob, brace range or manifest (.json), local or in a store.", metavar="URL")
]
Captions = Annotated[bool, typer.Option("--captions", help="Samples have captions (.txt) and need no label (.cls).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of class folders, a .csv, .tsv or .parquet of paths and labels, or a folder of the "
            "`datasets` library.",
            metavar="SOURCE",
        ),
    ],
    output: Annotated[str, typer.Argument(help="Local folder that gets SPLIT/{n}.tar.", metavar="OUTPUT")],
    split: Annotated[
        str | None, typer.Option("--split", help="Name of the split; default: train, or every one that SOURCE has.")
    ] = None,
    samples_per_shard: Annotated[
        int | None, typer.Option("--samples-per-shard", min=1, help="Default: 1000.", show_default=False)
    ] = None,
    shard_mb: Annotated[
        float | None, typer.Option("--shard-mb", min=0.001, help="Instead: largest shard, in 10^6 bytes.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the shuffle.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Mix the classes in every shard.")] = True,
    path_column: Annotated[
        str | None, typer.Option("--path-column", help="Default: path, or the image column.")
    ] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Default: label.")] = None,
    caption_column: Annotated[str | None, typer.Option("--caption-column", help="Also write captions.")] = None,
    classnames: Annotated[
        str | None, typer.Option("--classnames", help="File with one readable class name a line.")
    ] = None,
    templates: Annotated[str | None, typer.Option("--templates", help="File with one prompt a line, {c}.")] = None,
    root: Annotated[str | None, typer.Option("--root", help="Folder that a table's paths are relative to.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a core.")] = None,
) -> None:
    """Write shards from pictures, bytes unchanged. Interrupted, the same command goes on where it was."""
    from wiseft_dist.data.packing.parallel import PackSettings
    from wiseft_dist.data.packing.parallel import pack as pack_splits
    from wiseft_dist.data.packing.plan import Layout
    from wiseft_dist.data.packing.sources import Columns

    if samples_per_shard is not None and shard_mb is not None:
        raise UserError("wiseft shards pack takes either --samples-per-shard or --shard-mb, not both.")
    layout = Layout(
        samples_per_shard=None if shard_mb is not None else samples_per_shard or 1000,
        bytes_per_shard=None if shard_mb is None else int(shard_mb * 1e6),
        seed=seed if shuffle else None,
    )
    columns = Columns(path=path_column, label=label_column, caption=caption_column)
    settings = PackSettings(source, output, split, layout, columns, classnames, templates, root, workers)
    for packed in pack_splits(settings):
        for note in packed.notes:
            print(note)
        print(
            f"{packed.folder}: {packed.num_samples} samples of {packed.num_classes} classes in {packed.num_shards} "
            f"shards, {packed.num_bytes / 1e6:.1f} MB ({packed.num_written} written now)."
        )


@app.command()
def index(
    url: Shards,
    output: Annotated[
        str | None, typer.Option("--output", help="Write the manifest there: a .json that data.* can name.")
    ] = None,
    captions: Captions = False,
    read: Annotated[
        bool, typer.Option("--read", help="Read every shard, whatever sizes.json and the like say.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count the samples of every shard, check what they are made of, and write it down."""
    from wiseft_dist import storage
    from wiseft_dist.data.manifest import index_shards

    _check_output(output)
    manifest = index_shards(storage.absolute(url), target=_target(captions), trust_counts=not read)
    if output is not None:
        _save(manifest, output)
    if as_json:
        print(json.dumps(_described(manifest), indent=1))
        return
    from rich.console import Console

    # A table in a file or a pipe is as wide as it needs to be: URLs must not be shortened.
    Console(width=None if sys.stdout.isatty() else WIDE).print(_table(manifest))
    print(_totals(manifest))


@app.command()
def verify(
    url: Shards,
    num_classes: Annotated[int | None, typer.Option("--num-classes", min=1, help="Labels must be below it.")] = None,
    classnames: Annotated[str | None, typer.Option("--classnames", help="The class list that labels must fit.")] = None,
    captions: Captions = False,
    as_json: AsJson = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: one a core.")] = None,
) -> None:
    """Read every byte and decode every image; tell everything that is wrong. Exit code 1 if anything is."""
    from wiseft_dist import storage
    from wiseft_dist.data.verify import verify_shards

    verification = verify_shards(
        storage.absolute(url),
        target=_target(captions),
        num_classes=_num_classes(num_classes, classnames),
        num_workers=workers or len(os.sched_getaffinity(0)),
    )
    print(_verification_json(verification) if as_json else _verification_text(verification))
    if verification.problems:
        raise typer.Exit(1)


def _target(captions: bool) -> tuple[str, ...]:
    from wiseft_dist.data.tar import CAPTION_FIELDS, LABEL_FIELDS

    return CAPTION_FIELDS if captions else LABEL_FIELDS


def _check_output(output: str | None) -> None:
    """Refuse a place where the manifest could not be found again, before hours are spent on it."""
    from wiseft_dist import storage

    if output is None:
        return
    storage.refuse_credentials(output)
    if not output.endswith(".json"):
        raise UserError(
            f"--output: {output} does not end in .json, by which a manifest is told from a folder of shards."
        )


def _save(manifest: Manifest, output: str) -> None:
    from wiseft_dist import storage

    if storage.is_remote(output):
        storage.write_text(output, manifest.to_text())
        return
    path = Path(storage.absolute(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.save(path)


def _described(manifest: Manifest) -> dict[str, object]:
    shards = [
        {
            "url": shard.url,
            "num_samples": shard.num_samples,
            "num_bytes": shard.num_bytes,
            "max_label": shard.max_label,
            "read": shard.content_digest is not None,
        }
        for shard in manifest.shards
    ]
    return {
        "source": manifest.source,
        "num_shards": len(shards),
        "num_samples": manifest.num_samples,
        "num_bytes": _num_bytes(manifest),
        "max_label": manifest.max_label,
        "shards": shards,
    }


def _table(manifest: Manifest) -> Table:
    """The first and the last shards of the manifest, or all of a few."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("shard", overflow="fold")
    for column in ("samples", "bytes", "largest label"):
        table.add_column(column, justify="right")
    shards = manifest.shards
    if len(shards) <= 2 * SHOWN_SHARDS + 1:
        head, tail = shards, shards[:0]
    else:
        head, tail = shards[:SHOWN_SHARDS], shards[-SHOWN_SHARDS:]
    for shard in head:
        table.add_row(*_row(shard))
    if tail:
        table.add_row("...")
    for shard in tail:
        table.add_row(*_row(shard))
    return table


def _row(shard: Shard) -> tuple[str, str, str, str]:
    label = {None: "not read", -1: "none"}.get(shard.max_label, str(shard.max_label))
    return shard.url, f"{shard.num_samples:,}", f"{shard.num_bytes:,}", label


def _totals(manifest: Manifest) -> str:
    num_trusted = sum(shard.content_digest is None for shard in manifest.shards)
    trusted = f"; {num_trusted:,} shards not read, their samples as written beside them" if num_trusted else ""
    return (
        f"{len(manifest.shards):,} shards, {manifest.num_samples:,} samples, {_num_bytes(manifest):,} bytes, "
        f"largest label {manifest.max_label if manifest.max_label >= 0 else 'none'}{trusted}"
    )


def _num_bytes(manifest: Manifest) -> int:
    return sum(shard.num_bytes for shard in manifest.shards)


def _num_classes(num_classes: int | None, classnames: str | None) -> int | None:
    """How many classes there are, by number or by list.

    Raises:
        UserError: if both are given, or the list is empty.
    """
    from wiseft_dist import storage

    if classnames is None:
        return num_classes
    if num_classes is not None:
        raise UserError("wiseft shards verify takes either --num-classes or --classnames, not both.")
    lines = sum(bool(line.strip()) for line in storage.read_text(classnames).splitlines())
    if not lines:
        raise UserError(f"--classnames: {classnames} holds no line of text.")
    return lines


def _verification_json(verification: Verification) -> str:
    problems = [
        {"kind": problem.kind.value, "shard": problem.shard, "key": problem.key, "problem": problem.text}
        for problem in verification.problems
    ]
    counts = {name: getattr(verification, name) for name in ("num_shards", "num_samples", "num_bytes")}
    return json.dumps(counts | {"is_clean": not problems, "problems": problems}, indent=1)


def _verification_text(verification: Verification) -> str:
    kinds = defaultdict(list)
    for problem in verification.problems:
        kinds[problem.kind].append(problem)
    lines = []
    for kind, problems in kinds.items():
        lines.append(f"{kind.value}: {len(problems):,}")
        lines += [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"  and {len(problems) - SHOWN_PROBLEMS:,} more; --json has all of them")
    found = f"{len(verification.problems):,} problems" if verification.problems else "nothing wrong"
    read = f"{verification.num_shards:,} shards, {verification.num_samples:,} samples, {verification.num_bytes:,} bytes"
    return "\n".join([*lines, f"{read}: {found}"])
