"""One stretch of a remote object as a stream that survives a store's faults.

obstore's own retries begin a request again from its start, and not at all once a body has begun. Here every byte that
arrived is kept: the next request asks for the first byte that is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any

from wiseft_dist.storage.faults import Cancelled, ShortBodyError, Tries
from wiseft_dist.storage.objects import StoredObject, check_same, strong_etag
from wiseft_dist.storage.stores import Patience, open_store


class RangesNotServed(Exception):
    """The server sends objects from their start or not at all."""


def stream(
    source: StoredObject, start: int, stop: int, *, ranged: bool = True, cancelled: threading.Event | None = None
) -> Generator[bytes, None, None]:
    """The bytes ``start`` to ``stop`` (exclusive) of an object, in pieces as they arrive.

    Args:
        source: The object as it was listed; another one under its URL is refused.
        start: The first byte.
        stop: The byte behind the last, at most the object's length.
        ranged: Whether to ask for ranges; if not, every request starts at byte 0 and discards what is known.
        cancelled: Ends the work at its next piece or wait.

    Raises:
        UserError: if the object is missing, forbidden or replaced.
        RunError: if the tries are used up: URL, byte and number of tries.
        RangesNotServed: if ``ranged`` and the server does not serve ranges.
        Cancelled: if ``cancelled`` is set.
    """
    tries = Tries(source.url, Patience.from_environment(), cancelled)
    position = start
    while position < stop:
        pieces = _request(source, position, stop) if ranged else _request_from_start(source, position, stop)
        while True:
            try:
                piece = next(pieces, None)
            except RangesNotServed:
                raise
            except Exception as error:  # obstore's errors share no public base class
                tries.failed(error, byte=position)
                break
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            if piece is None:
                break
            position += len(piece)
            tries.progressed()
            yield piece


def _request(source: StoredObject, start: int, stop: int) -> Iterator[bytes]:
    """One ranged GET; what it yields is in order and inside the range."""
    from obstore.exceptions import NotSupportedError

    try:
        result = _get(source, {"range": (start, stop)})
    except NotSupportedError as error:
        raise RangesNotServed from error
    if tuple(result.range) != (start, stop):
        raise ShortBodyError(f"asked for bytes {start:,} to {stop:,}, the store sends {result.range}")
    yield from _exactly(result, stop - start)


def _request_from_start(source: StoredObject, start: int, stop: int) -> Iterator[bytes]:
    """One plain GET whose bytes before ``start`` are discarded."""
    position = 0
    for piece in _exactly(_get(source, {}), source.num_bytes):
        wanted = piece[max(0, start - position) : max(0, stop - position)]
        position += len(piece)
        if wanted:
            yield wanted
        if position >= stop:
            return


def _get(source: StoredObject, options: dict[str, Any]) -> Any:
    import obstore

    store, name = open_store(source.url)
    etag = strong_etag(source.version)
    result = obstore.get(store, name, options=options | ({"if_match": etag} if etag else {}))
    check_same(source, result.meta)
    return result


def _exactly(result: Any, num_bytes: int) -> Iterator[bytes]:
    """The body, as long as it is as long as promised."""
    received = 0
    for piece in result.stream(min_chunk_size=1):
        received += len(piece)
        if received > num_bytes:
            raise ShortBodyError(f"the body has more than the {num_bytes:,} bytes asked for")
        yield bytes(piece)
    if received < num_bytes:
        raise ShortBodyError(f"the body ended after {received:,} of {num_bytes:,} bytes")
