"""Reading samples out of tar shards, counted against the manifest."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from webdataset.tariterators import group_by_keys, tar_file_expander

from wiseft_dist import storage
from wiseft_dist.data.manifest import Shard, split_name
from wiseft_dist.errors import RunError, UserError


@dataclass(frozen=True)
class Sample:
    """The raw bytes of one sample."""

    key: str
    index: int
    """Position in its shard."""
    fields: dict[str, bytes]
    shard: str
    """URL of its shard."""

    def first(self, names: tuple[str, ...]) -> bytes:
        """The first field present of those named."""
        for name in names:
            if name in self.fields:
                return self.fields[name]
        raise RunError(
            f"{self.shard}: sample {self.key!r} has none of .{', .'.join(names)}; the shard has changed since indexing."
        )


def read_shard(shard: Shard, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """The samples ``[start, stop)`` of a shard in their stored order.

    Raises:
        RunError: if the shard ends before its manifest says, or goes on after it, naming the shard.
    """
    stop = shard.num_samples if stop is None else stop
    seen = 0
    try:
        with storage.open_bytes(shard.url) as stream:
            files = tar_file_expander([{"url": shard.url, "stream": stream}], handler=_raise)
            for raw in group_by_keys(files, keys=split_name, handler=_raise):
                if start <= seen < stop:
                    fields = {name: data for name, data in raw.items() if not name.startswith("__")}
                    yield Sample(raw["__key__"], seen, fields, shard.url)
                seen += 1
                if seen == stop < shard.num_samples:
                    return
    except UserError as error:
        raise RunError(str(error)) from error
    except (OSError, ValueError, tarfile.TarError) as error:
        raise RunError(f"{shard.url}: reading broke off at sample {seen}: {error}") from error
    if seen != shard.num_samples:
        raise RunError(
            f"{shard.url} holds {seen} samples, its manifest says {shard.num_samples}. "
            "Copy this shard again, or delete the run's `shards` folder if the data was changed on purpose."
        )


def _raise(error: Exception) -> bool:
    """Webdataset's handlers decide whether to go on after an error; ours never does."""
    raise error
