"""What W&B costs a training: samples a second without it, offline, and while its server refuses or stalls.

One small training on made-up pictures, by ``wiseft finetune``, on this machine's CPU. The limit is the training without
W&B: in neighbouring seconds of the same training the mirror is stopped and goes on (:mod:`benchmarks.tracking_pairs`);
``disabled`` has nothing to stop and shows what that method's 1.000 is worth. The peer is the usual way, in the
training's own process: ``wandb.init`` before and ``run.log`` at each line, offline (:mod:`benchmarks.tracking_peer`);
with a server that is out it would not begin to train. Ours and the peer are whole trainings, which take turns in
changing order; the medians of all readings count, those of the start left out.

    python -m benchmarks.tracking [--pairs N] [--rounds N] [--steps N]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.tracking_pairs import Segment, alternate, end, figures
from wiseft_dist.config import RunConfig
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.progress import progress_bar
from wiseft_dist.quickstart.world import CLASSES, TEMPLATES, pictures
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events

NUM_PICTURES, PICTURE_SIZE, BATCH = 192, 64, 32
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": PICTURE_SIZE, "patch_size": 16, "width": 192, "head_width": 64, "layers": 3},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
LOG_EVERY = 2
"""Steps between two lines of metrics: more often than anyone logs."""
FINISH_SECONDS = 3.0
MODES = {"disabled": "disabled", "offline": "offline", "refusing": "online", "stalling": "online", "peer": "disabled"}
"""W&B's mode of each contestant; the peer's own W&B run is offline."""
WHOLE = ("disabled", "offline", "peer")
PAIRED = ("disabled", "offline", "refusing", "stalling")
ENDLESS_STEPS = 1_000_000
SETTLE_SECONDS = 30.0
"""Of training, in which the mirror starts and finds out that its server is out."""
START_SECONDS = 300.0


@dataclass(frozen=True)
class Training:
    """A finished training."""

    run: Run
    lines: list[dict[str, Any]]
    """Its lines of metrics in the steady state."""
    end_seconds: float
    """From the last step to the end of the process."""


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    with tempfile.TemporaryDirectory() as temporary, _refusing() as refusing, _stalling() as stalling:
        folder = Path(temporary)
        _write_data(folder)
        paired = _measure_pairs(folder, options.pairs, {"refusing": refusing, "stalling": stalling})
        trainings = _measure_whole(folder, options.rounds, options.steps)
    print(json.dumps(_figures(paired, trainings)))


def _measure_pairs(folder: Path, num_pairs: int, urls: dict[str, str]) -> dict[str, Any]:
    paired = {}
    with progress_bar("measuring pairs", total=len(PAIRED), unit="cases") as bar:
        for name in PAIRED:
            bar.update(note=name)
            paired[name] = _train_in_pairs(folder, name, num_pairs, urls.get(name))
            bar.advance()
    return paired


def _measure_whole(folder: Path, rounds: int, steps: int) -> dict[str, list[Training]]:
    trainings: dict[str, list[Training]] = defaultdict(list)
    with progress_bar("measuring whole trainings", total=rounds * len(WHOLE), unit="trainings") as bar:
        for round_number in range(rounds):
            first = round_number % len(WHOLE)
            for name in WHOLE[first:] + WHOLE[:first]:
                bar.update(note=name)
                trainings[name].append(_train(folder, name, steps))
                bar.advance()
    return trainings


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=60, help="of seconds with the mirror and without, in each case")
    parser.add_argument("--rounds", type=int, default=3, help="of whole trainings")
    parser.add_argument("--steps", type=int, default=80, help="of each training")
    return parser.parse_args()


def _write_data(folder: Path) -> None:
    def samples() -> Iterator[EncodedSample]:
        for picture in pictures(NUM_PICTURES, domain="photo", seed=0, size=PICTURE_SIZE):
            stream = io.BytesIO()
            picture.image.save(stream, "jpeg", quality=90)
            yield EncodedSample(stream.getvalue(), "jpg", picture.label)

    write_split(samples(), folder / "shards", samples_per_shard=NUM_PICTURES // 4)
    write_vocabulary(folder / "shards", classnames=CLASSES, templates=TEMPLATES)
    (folder / "model.json").write_text(json.dumps({"model_cfg": MODEL}))


def _train_in_pairs(folder: Path, name: str, num_pairs: int, url: str | None) -> dict[str, Any]:
    """A training beside which the mirror is stopped and goes on."""
    run = _new_run(folder, name, ENDLESS_STEPS)
    with (folder / "log").open("w") as log:
        training = psutil.Popen(_command(run, name), env=_environment(folder, url), cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for_steps(run, training, folder / "log")
        time.sleep(SETTLE_SECONDS)
        alternated = alternate(training, num_pairs=num_pairs)
    finally:
        end(training)
    lines = [event for event in read_events(run) if "samples_per_second" in event]
    times, steps = ([line[key] for line in lines] for key in ("time", "step"))

    def rate_in(segment: Segment) -> float | None:
        first, last = bisect_left(times, segment.start), bisect_left(times, segment.end) - 1
        return BATCH * (steps[last] - steps[first]) / (times[last] - times[first]) if last > first else None

    return figures(alternated, rate_in)


def _wait_for_steps(run: Run, training: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not any("samples_per_second" in event for event in read_events(run)):
        if training.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"benchmarks.tracking: the training has not begun:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def _train(folder: Path, name: str, steps: int) -> Training:
    """Train with ``wiseft finetune``, in one process on all cores."""
    run = _new_run(folder, name, steps)
    command = _command(run, name)
    done = subprocess.run(command, env=_environment(folder, None), cwd=folder, capture_output=True, text=True)
    ended = time.time()
    if done.returncode:
        sys.exit(f"benchmarks.tracking: {' '.join(command)} failed:\n{done.stderr[-3000:]}")
    events = read_events(run)
    lines = [event for event in events if "samples_per_second" in event]
    (finished,) = [event["time"] for event in events if event["event"] == "finished"]
    return Training(run, list(islice(lines, len(lines) // 3, None)), ended - finished)


def _new_run(folder: Path, name: str, steps: int) -> Run:
    shutil.rmtree(folder / "run", ignore_errors=True)
    return open_run(_config(folder, name, steps))


def _command(run: Run, name: str) -> list[str]:
    module = "benchmarks.tracking_peer" if name == "peer" else "wiseft_dist"
    return [sys.executable, "-m", module, "finetune", str(run.path)]


def _environment(folder: Path, url: str | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT", "WANDB"))}
    server = {} if url is None else {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
    return clean | server | {"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(folder)}


def _config(folder: Path, name: str, steps: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": str(folder / "run"),
            "model": {"architecture": str(folder / "model.json")},
            "data": {"train": str(folder / "shards"), "id_val_fraction": 0.0, "lanes": 4, "workers": 0},
            "finetune": {
                "epochs": steps * BATCH / NUM_PICTURES,
                "global_batch_size": BATCH,
                "log_every": LOG_EVERY,
                "optimizer": {"lr": 1e-4},
                "schedule": {"warmup_steps": 10},
                "checkpoint": {"every_minutes": None},
                "validation": {"every_epochs": None},
            },
            "wandb": {"mode": MODES[name], "finish_seconds": FINISH_SECONDS},
        }
    )


def _figures(paired: dict[str, Any], trainings: dict[str, list[Training]]) -> dict[str, Any]:
    readings = {
        name: [line["samples_per_second"] for each in of for line in each.lines] for name, of in trainings.items()
    }
    rates = {name: median(values) for name, values in readings.items()}
    memory = [1000 * line["memory_gb"] for of in trainings.values() for each in of for line in each.lines]
    return {
        "benchmark": "tracking",
        "vs_peer": round(rates["offline"] / rates["peer"], 3),
        "vs_limit": round(min(case["ratio"] for name, case in paired.items() if name != "disabled"), 3),
        "paired": paired,
        "samples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "medians_by_round": {
            name: [round(median(line["samples_per_second"] for line in each.lines), 1) for each in of]
            for name, of in trainings.items()
        },
        "end_seconds": {name: round(median(each.end_seconds for each in of), 1) for name, of in trainings.items()},
        "peak_memory_mb": round(max(memory)),
        "readings_each": min(map(len, readings.values())),
    }


@contextmanager
def _refusing() -> Iterator[str]:
    """The address of a port that is taken, and at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def _stalling() -> Iterator[str]:
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:  # closed below
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
