"""One door to bytes: local paths and ``file://`` by the operating system; s3, gs, az and http(s) by obstore.

``urls`` is arithmetic on URLs, ``stores`` finds clients and credentials, ``faults`` says which errors are tried
again, ``listing`` finds shards, ``reading``, ``ranges`` and ``writing`` move bytes.

Credentials come from the environment and are never written down: ``AWS_*`` (with ``AWS_ENDPOINT_URL``,
``AWS_ENDPOINT_URL_S3`` and ``AWS_PROFILE``), ``GOOGLE_*``, ``AZURE_*``, ``~/.netrc`` and ``HF_TOKEN``.
``WISEFT_STORE_TRIES`` and ``WISEFT_STORE_TIMEOUT`` say how long to bear with a store (:class:`stores.Patience`).
"""

from wiseft_dist.storage.listing import expand_shards, list_folder, list_shards, list_tree
from wiseft_dist.storage.objects import StoredObject, exists, stat
from wiseft_dist.storage.ranges import open_ranged, read_range
from wiseft_dist.storage.reading import download, open_bytes, read_bytes, read_text
from wiseft_dist.storage.stores import fork_is_safe
from wiseft_dist.storage.urls import REMOTE_SCHEMES, absolute, is_remote, join, local_path, parent, refuse_credentials
from wiseft_dist.storage.writing import refuse_as_target, upload_folder, write_bytes, write_text

__all__ = [
    "REMOTE_SCHEMES",
    "StoredObject",
    "absolute",
    "download",
    "exists",
    "expand_shards",
    "fork_is_safe",
    "is_remote",
    "join",
    "list_folder",
    "list_shards",
    "list_tree",
    "local_path",
    "open_bytes",
    "open_ranged",
    "parent",
    "read_bytes",
    "read_range",
    "read_text",
    "refuse_as_target",
    "refuse_credentials",
    "stat",
    "upload_folder",
    "write_bytes",
    "write_text",
]
