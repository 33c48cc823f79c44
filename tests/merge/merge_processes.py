"""Merges in processes that die: a program for the tests. It imports torch once; every merge is a fork of it.

    python merge_processes.py kills|renames|ranks|lost_rank FOLDER [NUMBER]

It prints one JSON object for each process that has come to its end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from wiseft_dist.commits import is_committed
from wiseft_dist.config import MergeConfig
from wiseft_dist.distributed import process_group
from wiseft_dist.errors import RunError
from wiseft_dist.merge.journal import journals
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.writer import write_ensembles
from wiseft_dist.ranks import discover_ranks
from wiseft_dist.run import alpha_name
from wiseft_dist.weights.pairing import match
from wiseft_dist.weights.sources import open_weights

ALPHAS = (0.0, 0.25, 0.5, 1.0)
CHUNK_BYTES = 4096


def make_models(folder: Path, num_elements: int) -> None:
    """theta_0 and three fine-tuned models."""
    generator = torch.Generator().manual_seed(0)
    for index in range(4):
        weights = {f"visual.{name}": torch.randn(num_elements // 4, generator=generator) for name in "abcd"}
        weights |= {"ids": torch.arange(77) + index, "head.weight": torch.randn(3, 5, generator=generator)}
        safetensors.torch.save_file(weights, folder / f"{index}.safetensors")


def merge(folder: Path, output: Path, alphas: tuple[float, ...] = ALPHAS, method: str = "wise") -> dict[str, Any]:
    """Merge the models of a folder; in two threads."""
    sources = [open_weights(folder / f"{index}.safetensors") for index in range(2 if method == "wise" else 4)]
    done = write_ensembles(
        match(sources[0], sources[1:]),
        make_method(MergeConfig(method=method)),
        {alpha: output / alpha_name(alpha) for alpha in alphas},
        dtype=torch.float32,
        side_files=lambda alpha, inputs: {"model.json": json.dumps([alpha, *inputs]).encode()},
        chunk_bytes=CHUNK_BYTES,
        threads=2,
    )
    return {"chunks": done.num_chunks, "kept": done.num_chunks_kept}


def forked(action: Callable[[], dict[str, Any]], report: Path) -> int:
    """Start a process that does something and writes down what came of it."""
    process = os.fork()
    if process == 0:
        try:
            result = action()
        except RunError as error:
            result = {"error": str(error)}
        report.write_text(json.dumps(result))
        os._exit(0)
    return process


def finished_chunks(output: Path) -> Counter[int]:
    """How often the journals below a folder name each chunk."""
    lines = (line for folder in output.glob(".merge-*") for path in journals(folder) for line in whole_lines(path))
    return Counter(json.loads(line)["chunk"] for line in lines if b"chunk" in line)


def whole_lines(path: Path) -> list[bytes]:
    """Without one that was cut off."""
    return path.read_bytes().split(b"\n")[:-1]


def content(output: Path) -> dict[str, bytes]:
    """Every byte below a folder."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def say(**result: Any) -> None:
    print(json.dumps(result), flush=True)


def kills(folder: Path, number: int) -> None:
    """SIGKILL at random moments, each followed by another attempt; where one gets to its end, a new merge is begun."""
    make_models(folder, 300_000)
    began = time.monotonic()
    os.waitpid(forked(lambda: merge(folder, folder / "undisturbed"), folder / "report"), 0)
    duration, wanted = time.monotonic() - began, content(folder / "undisturbed")
    chance, left, merges = random.Random(number), number, 0
    output, missing = folder, ()
    while left or missing:
        if not missing:
            output, missing, merges = folder / f"out_{merges}", ALPHAS, merges + 1
        before = len(finished_chunks(output))
        attempt = forked(lambda: merge(folder, output, missing), folder / "report")  # noqa: B023, it runs at once
        if left:
            time.sleep(chance.uniform(0, duration))
            os.kill(attempt, signal.SIGKILL)
        _, status = os.waitpid(attempt, 0)
        left -= os.WIFSIGNALED(status)
        named = {} if not output.exists() else {name: here for name, here in content(output).items() if name[0] != "."}
        missing = tuple(alpha for alpha in ALPHAS if not is_committed(output / alpha_name(alpha)))
        say(
            was_killed=os.WIFSIGNALED(status),
            finished_before=before,
            most_often=max(finished_chunks(output).values(), default=0),
            report=None if os.WIFSIGNALED(status) else json.loads((folder / "report").read_text()),
            is_same=all(wanted.get(name) == here for name, here in named.items()),
            is_whole=named.keys() == wanted.keys(),
            is_committed=not missing,
        )


def renames(folder: Path, number: int) -> None:
    """SIGKILL after so many ensembles have got their names; then the rest is asked for."""
    make_models(folder, 100_000)
    os.waitpid(forked(lambda: merge(folder, folder / "undisturbed"), folder / "report"), 0)

    def killed_merge() -> dict[str, Any]:
        remaining = iter(range(number))

        def watch(event: str, arguments: Any) -> None:
            if event == "os.rename" and next(remaining, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        return merge(folder, folder / "out")

    _, status = os.waitpid(forked(killed_merge, folder / "killed"), 0)
    missing = tuple(alpha for alpha in ALPHAS if not is_committed(folder / "out" / alpha_name(alpha)))
    os.waitpid(forked(lambda: merge(folder, folder / "out", missing), folder / "report"), 0)
    is_same = content(folder / "out") == content(folder / "undisturbed")
    say(
        was_killed=os.WIFSIGNALED(status),
        missing=missing,
        is_same=is_same,
        **json.loads((folder / "report").read_text()),
    )


def start_ranks(folder: Path, output: Path, doomed: int | None = None) -> list[dict[str, Any]]:
    """Two ranks of a gloo group; one may be doomed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def as_rank(rank: int) -> dict[str, Any]:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ.update(place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with process_group(discover_ranks(), timeout_minutes=1, on_host=True):
            if rank == doomed:
                die_at_first_write()
            return merge(folder, output, method="slerp" if doomed is None else "wise")

    reports = [folder / f"rank_{rank}" for rank in range(2)]
    for process in [forked(lambda rank=rank: as_rank(rank), reports[rank]) for rank in range(2)]:  # type: ignore[misc]
        os.waitpid(process, 0)
    return [json.loads(report.read_text()) if report.exists() else {"died": True} for report in reports]


def die_at_first_write() -> None:
    """This process is killed as it opens an output: it has begun its share and finished none of it."""

    def watch(event: str, arguments: Any) -> None:
        if event == "open" and "alpha_1.00" in str(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def ranks(folder: Path, _: int) -> None:
    """Two ranks, and one process."""
    make_models(folder, 100_000)
    os.waitpid(forked(lambda: merge(folder, folder / "alone", method="slerp"), folder / "report"), 0)
    reports = start_ranks(folder, folder / "out")
    say(reports=reports, is_same=content(folder / "out") == content(folder / "alone"))


def lost_rank(folder: Path, _: int) -> None:
    """A rank is killed; then one process finishes."""
    make_models(folder, 100_000)
    os.waitpid(forked(lambda: merge(folder, folder / "alone"), folder / "report"), 0)
    reports = start_ranks(folder, folder / "out", doomed=1)
    named = [path.name for path in (folder / "out").glob("alpha_*")]
    finished = len(finished_chunks(folder / "out"))
    os.waitpid(forked(lambda: merge(folder, folder / "out"), folder / "report"), 0)
    is_same = content(folder / "out") == content(folder / "alone")
    after = json.loads((folder / "report").read_text())
    say(reports=reports, named=named, finished=finished, is_same=is_same, **after)


if __name__ == "__main__":
    {"kills": kills, "renames": renames, "ranks": ranks, "lost_rank": lost_rank}[sys.argv[1]](
        Path(sys.argv[2]), int(sys.argv[3])
    )
