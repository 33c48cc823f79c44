"""K ensembles from any number of models in one pass: every input byte is read once, every alpha is written from it.

The work is cut into chunks of the outputs' bytes. Threads of any number of ranks take them one after the other: each
reads a chunk's inputs, mixes every alpha from them and writes it into its place in files that have their size already.
What is finished is written down, so that a merge that is interrupted goes on where it was. docs/merging.md has more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.merge.commit_record import commit_ensemble, contents, weights_entries
from wiseft_dist.merge.direct_io import allow_many_files
from wiseft_dist.merge.inputs import InputReader
from wiseft_dist.merge.journal import Finished, next_attempt, read_journals
from wiseft_dist.merge.layout import shard_index
from wiseft_dist.merge.methods.method import Method
from wiseft_dist.merge.plan import CHUNK_BYTES, NUM_THREADS, Plan, changed_file, make_plan
from wiseft_dist.merge.ranks import RankGroup
from wiseft_dist.merge.share import Done, Work, do_share
from wiseft_dist.merge.staging import Staging, opened, staging_of
from wiseft_dist.merge.statistics import take_statistics_together
from wiseft_dist.progress import BYTES, progress_bar
from wiseft_dist.weights.pairing import Models

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Inputs = Sequence[str]
"""Digests (XXH3-128) of the content of theta_0, theta_1, ..., then of the Fisher information of each, as merged."""
SideFiles = Callable[[float, Inputs], Mapping[str, bytes]]
"""The small files beside an ensemble's weights, by name."""


@dataclass(frozen=True)
class Written:
    """What a merge took, over all ranks."""

    num_bytes_read: int
    """Of inputs, without what statistics needed."""
    num_bytes_written: int
    seconds: float
    num_chunks: int
    num_chunks_kept: int
    """That an earlier attempt had finished."""


def write_ensembles(
    models: Models,
    method: Method,
    folders: Mapping[float, Path],
    *,
    dtype: torch.dtype,
    side_files: SideFiles,
    max_shard_bytes: int | None = None,
    allow_nonfinite: bool = False,
    settings: Mapping[str, Any] = {},
    chunk_bytes: int = CHUNK_BYTES,
    threads: int = NUM_THREADS,
) -> Written:
    """Write and commit theta_alpha as ``folders[alpha]``, for all alphas in one pass.

    In a process group every rank calls it alike and does its share. Called again with the same models, method and
    settings after it was interrupted, it keeps the chunks that were finished, whatever the number of ranks then.

    Args:
        models: What is merged.
        method: How.
        folders: By alpha, all in one folder. What is there already without being whole is replaced.
        dtype: Of written floating-point tensors; others keep their own.
        side_files: Gives what lies beside the weights; the same for the same arguments.
        max_shard_bytes: Cut the weights into files of at most so many bytes of tensors.
        allow_nonfinite: Merge NaN, Inf and numbers beyond ``dtype`` as they come.
        settings: What else decides the bytes, such as the method's settings; anything that JSON can hold.
        chunk_bytes: The most that a thread mixes at a time, of an output.
        threads: Of this rank.

    Raises:
        UserError: if an input holds NaN, Inf or a number beyond ``dtype``, naming tensor, element and file; or another
            process merges into the same folder. Nothing is left behind. Also if a whole ensemble has taken a folder.
        RunError: if reading or writing fails, or another rank is gone. What is finished is kept for the next call,
            unless an input changed meanwhile.
    """
    began = time.perf_counter()
    allow_many_files()
    inputs, group, alphas = InputReader(models, dtype, allow_nonfinite), RankGroup.current(), sorted(folders)
    plan = make_plan(inputs, method, max_shard_bytes=max_shard_bytes, chunk_bytes=chunk_bytes, settings=settings)
    staging = staging_of(folders[alphas[0]].parent, plan.identity)
    with ExitStack() as stack:
        attempt, finished = group.on_main(lambda: _begin(stack, staging, plan, alphas, len(inputs.sources)))
        work = Work(inputs, method, alphas, plan.chunks, plan.chunk_bytes, staging, attempt, finished)
        try:
            take_statistics_together(method, inputs, group, num_threads=threads)
            shares = group.everywhere(lambda: _do_share(work, group, threads))
        except UserError:
            group.on_main(staging.remove)
            raise
        finished = finished | {number: each for done in shares for number, each in done.chunks.items()}
        group.on_main(lambda: _finish(work, plan, finished, folders, side_files))
    return Written(
        num_bytes_read=sum(done.num_bytes_read for done in shares),
        num_bytes_written=sum(done.num_bytes_written for done in shares),
        seconds=time.perf_counter() - began,
        num_chunks=len(plan.chunks),
        num_chunks_kept=sum(done.num_kept for done in shares),
    )


def _begin(
    stack: ExitStack, staging: Staging, plan: Plan, alphas: Sequence[float], num_inputs: int
) -> tuple[int, dict[int, Finished]]:
    """This attempt's number, and what earlier ones have finished."""
    stack.enter_context(opened(staging, plan.identity))
    staging.prepare(alphas, plan.files)
    found = read_journals(staging.folder, alphas=alphas, num_inputs=num_inputs)
    return next_attempt(staging.folder), found


def _do_share(work: Work, group: RankGroup, num_threads: int) -> Done:
    total = sum(chunk.stop - chunk.start for chunk in work.chunks) * len(work.alphas) / group.world_size
    with progress_bar("merging", total=total, unit=BYTES, is_main=group.is_main) as bar:
        return do_share(
            work, rank=group.rank, world_size=group.world_size, num_threads=num_threads, on_progress=bar.advance
        )


def _finish(
    work: Work, plan: Plan, finished: Mapping[int, Finished], folders: Mapping[float, Path], side_files: SideFiles
) -> None:
    """Give every ensemble its name, if all that was read is of the same files."""
    changed = changed_file(plan, work.inputs)
    if changed is not None:
        work.staging.remove()
        raise RunError(f"{changed}: changed while it was merged. Merge again when nothing writes to it.")
    digests = contents(finished, len(work.inputs.sources))
    for index, alpha in enumerate(work.alphas):
        record = {"alpha": alpha, "method": work.method.name, "dtype": _name(work.inputs.dtype)}
        weights = weights_entries(plan, finished, index)
        small = {**shard_index(plan.files), **side_files(alpha, digests)}
        commit_ensemble(work.staging.ensemble(alpha), folders[alpha], record, weights, small)
    work.staging.remove()


def _name(dtype: torch.dtype) -> str:
    return next(name for name, each in DTYPES.items() if each == dtype)
