"""The journal of finished chunks, however its writers ended."""

import resource
from pathlib import Path

import pytest

from wiseft_dist.errors import RunError
from wiseft_dist.merge.journal import DIGEST_BYTES, Finished, Journal, journals, next_attempt, read_journals

ALPHAS = (0.0, 0.5, 1.0)


def finished(mark: int) -> Finished:
    """Of two inputs and three alphas: recognisable digests."""
    return Finished(b"".join(bytes([mark, place]) * (DIGEST_BYTES // 2) for place in range(5)), 2)


def written(folder: Path, chunks: dict[int, int], *, attempt: int = 1, rank: int = 0) -> Path:
    journal = Journal(folder, attempt=attempt, rank=rank, alphas=ALPHAS)
    for number, mark in chunks.items():
        journal.add(number, finished(mark))
    journal.close()
    return journals(folder)[-1]


def test_what_every_rank_finished_is_read_back(tmp_path: Path):
    written(tmp_path, {0: 1, 4: 2})
    written(tmp_path, {2: 3}, rank=1)
    assert read_journals(tmp_path, alphas=ALPHAS, num_inputs=2) == {0: finished(1), 4: finished(2), 2: finished(3)}


def test_the_last_attempt_counts(tmp_path: Path):
    written(tmp_path, {0: 1, 1: 1}, rank=7)
    assert next_attempt(tmp_path) == 2
    written(tmp_path, {1: 9}, attempt=2)
    assert read_journals(tmp_path, alphas=ALPHAS, num_inputs=2) == {0: finished(1), 1: finished(9)}


@pytest.mark.parametrize("cut", [1, 2, 30, 150])
def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path, cut: int):
    path = written(tmp_path, {0: 1, 1: 2})
    path.write_bytes(path.read_bytes()[:-cut])
    found = read_journals(tmp_path, alphas=ALPHAS, num_inputs=2)
    assert found == ({0: finished(1), 1: finished(2)} if cut == 1 else {0: finished(1)})


@pytest.mark.parametrize(
    "junk", [b"", b"\0" * 50, b'{"alph', b"[1]\n[2]\n", b'{"alphas": [0.0, 0.5, 1.0]}\n{"chunk": 1}\n']
)
def test_a_journal_of_which_nothing_is_legible_says_nothing(tmp_path: Path, junk: bytes):
    written(tmp_path, {0: 1}).write_bytes(junk)
    assert read_journals(tmp_path, alphas=ALPHAS, num_inputs=2) == {}


def test_some_of_the_alphas_may_be_asked_for_and_none_that_were_not_written(tmp_path: Path):
    written(tmp_path, {3: 1})
    found = read_journals(tmp_path, alphas=(0.5, 1.0), num_inputs=2)[3]
    assert found.inputs() == finished(1).inputs() and found.outputs() == finished(1).outputs()[1:]
    assert read_journals(tmp_path, alphas=(0.5, 0.7), num_inputs=2) == {}


def test_a_journal_that_finds_no_room_is_named_and_its_whole_lines_count(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(RunError, match=r"journal-0001-00000\.jsonl: cannot be written: File too large"):
            written(tmp_path, dict.fromkeys(range(10), 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_journals(tmp_path, alphas=ALPHAS, num_inputs=2) == {0: finished(1), 1: finished(1)}
