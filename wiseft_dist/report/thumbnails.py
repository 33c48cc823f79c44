"""Small pictures of single samples, out of their shards: read by a process of its own, which may hang or die.

A report must not wait for a store that does not answer, nor end with a decoder that does not survive a damaged file.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from wiseft_dist import storage
from wiseft_dist.data.manifest import Shard
from wiseft_dist.errors import RunError

SIDE = 160
"""Pixels of a thumbnail's longer side."""
QUALITY = 78
"""Of the JPEG: 4 to 8 kB."""
SECONDS = 60.0
"""For all pictures of a page together; those that are not there by then are left out."""
MAX_BYTES = 2**30
"""That a page may ask stores for; local files are only looked into."""
THREADS = 16
"""They wait for stores most of the time; a store that hangs must not keep the pictures of another."""
PATIENCE = {"WISEFT_STORE_TRIES": "3", "WISEFT_STORE_TIMEOUT": "15"}
"""For pictures nobody waits as long as for data."""


@dataclass(frozen=True)
class Place:
    """Where a sample is."""

    shard: Shard
    index: int
    """In its shard."""
    key: str

    @property
    def num_bytes(self) -> int:
        """Of the shard that are read for it, at most: from the mark before it to the one behind it."""
        if not self.shard.marks:
            return self.shard.num_bytes
        mark = min(self.index // self.shard.mark_step, len(self.shard.marks) - 1)
        ends = (*self.shard.marks[1:], self.shard.num_bytes)
        return ends[mark] - self.shard.marks[mark]


@dataclass(frozen=True)
class Thumbnails:
    """What came of it."""

    images: Mapping[Place, bytes]
    """JPEG files."""
    problems: Mapping[Place, str]
    """A sentence for each that has none."""


def thumbnails(
    places: Sequence[Place], *, seconds: float = SECONDS, on_progress: Callable[[int], None] = lambda _: None
) -> Thumbnails:
    """Read and shrink the pictures of some samples; whatever goes wrong is a sentence and no error.

    Args:
        places: Of the samples.
        seconds: After which the rest is given up.
        on_progress: Told how many more are done.
    """
    affordable, problems = _affordable(list(dict.fromkeys(places)))
    images: dict[Place, bytes] = {}
    began = time.monotonic()
    for answer in _answers(affordable, seconds) if affordable else ():
        place = affordable[answer["number"]]
        if "jpeg" in answer:
            images[place] = base64.b64decode(answer["jpeg"])
        else:
            problems[place] = str(answer["error"])
        on_progress(1)
    is_late = time.monotonic() - began >= seconds
    reason = f"it could not be read within {seconds:g} s." if is_late else "the process that reads pictures died."
    problems |= {place: reason for place in affordable if place not in images and place not in problems}
    return Thumbnails(images, problems)


def _affordable(places: Sequence[Place]) -> tuple[list[Place], dict[Place, str]]:
    """Those that are read, in their order, and a sentence for the rest."""
    chosen: list[Place] = []
    problems: dict[Place, str] = {}
    total = 0
    for place in places:
        cost = place.num_bytes if storage.is_remote(place.shard.url) else 0
        if total + cost > MAX_BYTES:
            problems[place] = f"reading all of them would take more than {MAX_BYTES / 1e9:.1f} GB."
        else:
            chosen.append(place)
            total += cost
    return chosen, problems


def _answers(places: Sequence[Place], seconds: float) -> Iterator[dict[str, Any]]:
    """What the other process tells of each place, in the order in which it is done."""
    try:
        process = subprocess.Popen(
            # -P: the working directory is no place to take modules from.
            [sys.executable, "-P", "-m", "wiseft_dist.report.thumbnails"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **PATIENCE},
        )
    except OSError as error:  # no memory, or too many processes
        reason = f"no process could be started to read it ({error})."
        yield from ({"number": number, "error": reason} for number in range(len(places)))
        return
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        with process.stdin as asked:
            asked.write(json.dumps([asdict(place) for place in places]).encode())
        for line in process.stdout:
            if line.endswith(b"\n"):
                yield json.loads(line)
    except BrokenPipeError:  # it died before it had read what to do
        return
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


def main() -> None:
    """The other process: places as JSON from standard input, a line for each to standard output."""
    asked = json.loads(sys.stdin.buffer.read())
    places = [Place(_shard(each["shard"]), each["index"], each["key"]) for each in asked]
    with ThreadPoolExecutor(THREADS) as pool:
        for answer in as_completed([pool.submit(_answer, *numbered) for numbered in enumerate(places)]):
            print(json.dumps(answer.result()), flush=True)


def _shard(given: dict[str, Any]) -> Shard:
    return Shard(**given | {"marks": tuple(given["marks"])})


def _answer(number: int, place: Place) -> dict[str, Any]:
    try:
        return {"number": number, "jpeg": base64.b64encode(thumbnail_of(place)).decode()}
    except Exception as error:  # a decoder fails in any way, or has no memory left: the other pictures are still told
        return {"number": number, "error": str(error) or type(error).__name__}


def thumbnail_of(place: Place) -> bytes:
    """A JPEG file of at most :data:`SIDE` pixels a side.

    Raises:
        RunError: if the shard cannot be read, is not the one that was indexed, or has another sample there.
        ValueError: if the picture does not decode.
    """
    from wiseft_dist.data.decode import pillow_image
    from wiseft_dist.data.shards import read_samples
    from wiseft_dist.data.tar import IMAGE_FIELDS

    sample = next(iter(read_samples(place.shard, [place.index])))
    if sample.key != place.key:
        raise RunError(f"{place.shard.url} has another sample at its place: it has changed.")
    image = pillow_image(sample.first(IMAGE_FIELDS))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main()
