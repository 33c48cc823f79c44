"""Which errors of a store are tried again, how often, and what is said when they are not."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.storage.stores import Patience
from wiseft_dist.storage.urls import without_secrets

FIRST_WAIT = 0.1
LONGEST_WAIT = 10.0
"""Seconds between two tries: doubled from the first to the longest, each shortened at random by up to half."""
STATUS = re.compile(r"status code: ((\d{3})[ A-Za-z]*)")
FINAL = {
    "NotSupportedError": "the store does not support this request",
    "PermissionDeniedError": "access denied; check the credentials in the environment",
    "UnauthenticatedError": "no valid credentials; set them in the environment",
    "InvalidPathError": "this is no valid name of an object",
}
"""obstore's exceptions after which a second try would end the same, and what they mean."""

T = TypeVar("T")


class ReplacedError(Exception):
    """The object is not the one that was listed; the text says how one saw it."""


class ShortBodyError(Exception):
    """A body ended early, or went on for too long, though the connection says that all is well."""


class Cancelled(Exception):
    """Nobody waits for these bytes any more."""


class Tries:
    """Counts failures in a row of one piece of work, waits between them, and gives up in a sentence."""

    def __init__(self, url: str, patience: Patience, cancelled: threading.Event | None = None) -> None:
        self._url, self._patience = url, patience
        self._cancelled = cancelled or threading.Event()
        self.failures = 0

    def progressed(self) -> None:
        """Something new arrived: the count starts again."""
        self.failures = 0

    def failed(self, error: Exception, *, byte: int | None = None) -> None:
        """Wait before the next try.

        Args:
            error: What went wrong.
            byte: The first byte that is missing, if the work was reading.

        Raises:
            UserError: if another try would end the same.
            RunError: if the tries are used up.
            Cancelled: if the work was called off while it waited.
        """
        if is_final(error):
            refuse(self._url, error)
        self.failures += 1
        if self.failures >= self._patience.tries:
            place = "gave up" if byte is None else f"gave up at byte {byte:,}"
            tries = "1 try" if self.failures == 1 else f"{self.failures} tries"
            raise RunError(f"{self._url}: {place} after {tries}: {reason(error)}.") from error
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (self.failures - 1))
        if self._cancelled.wait(wait * random.uniform(0.5, 1.0)):
            raise Cancelled


def persist(url: str, work: Callable[[], T], *, verb: str = "read") -> T:
    """The result of a request that is made again from its start while that can help.

    Args:
        url: What it is about, for messages.
        work: The request.
        verb: What could not be done if it fails, as in "cannot be read".

    Raises:
        UserError: if another try would end the same; the error's cause is obstore's.
        RunError: if the tries are used up.
    """
    tries = Tries(url, Patience.from_environment())
    while True:
        try:
            return work()
        except (UserError, RunError):
            raise
        except Exception as error:  # obstore's errors share no public base class
            if is_final(error):
                refuse(url, error, verb=verb)
            tries.failed(error)


def is_final(error: Exception) -> bool:
    """Whether trying again is useless: the object is missing, forbidden or replaced, or the request is wrong."""
    if isinstance(error, (FileNotFoundError, PermissionError, ReplacedError)):
        return True
    if type(error).__name__ in (*FINAL, "PreconditionError") or "169.254.169.254" in str(error):
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def is_forbidden(error: BaseException | None) -> bool:
    """Whether the store knows the request but not the right to make it."""
    return isinstance(error, Exception) and _status(error) in (401, 403)


def refuse(url: str, error: Exception, *, verb: str = "read") -> NoReturn:
    """Raise the sentence for an error that no other try can mend."""
    if isinstance(error, ReplacedError) or type(error).__name__ == "PreconditionError":
        detail = str(error) if isinstance(error, ReplacedError) else "its ETag has changed"
        raise UserError(
            f"{url}: was replaced since it was listed: {detail}. Restore it, or start again from a new listing."
        ) from error
    raise UserError(f"{url}: cannot be {verb}: {reason(error)}.") from error


def reason(error: Exception) -> str:
    """One line for people: what the store answered, without URLs' queries, signatures and debug dumps."""
    text = str(error).strip()
    if "169.254.169.254" in text:
        return "no credentials; set AWS_ACCESS_KEY_ID, AWS_PROFILE or AWS_SKIP_SIGNATURE for s3, GOOGLE_* for gs"
    status = STATUS.search(text)
    answer = status[1].strip() if status else ""
    if status and (code := re.search(r"<Code>(\w+)</Code>", text)):
        answer += f", {code[1]}"
    if isinstance(error, FileNotFoundError):
        return "not found" + (f" ({answer})" if "," in answer else "")
    if meaning := FINAL.get("PermissionDeniedError" if is_forbidden(error) else type(error).__name__):
        return f"{meaning} ({answer})" if answer else meaning
    if answer:
        return f"the store answered {answer}"
    return without_secrets(text.split("\n")[0].split("<")[0])[:300].rstrip(".:, ") or type(error).__name__


def _status(error: Exception) -> int | None:
    found = STATUS.search(str(error))
    return int(found[2]) if found else None
