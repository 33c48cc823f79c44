"""Arithmetic on URLs; nothing here opens anything."""

from __future__ import annotations

import re
from pathlib import Path

from wiseft_dist.errors import UserError

REMOTE_SCHEMES = ("s3://", "gs://", "az://", "http://", "https://")
SIGNED = re.compile(
    r"(?i)[?&](x-(amz|goog|ms)-[a-z-]*|awsaccesskeyid|(access_?)?token|signature|sig|(api_?)?key|password|secret)="
)
"""Names of query values that are secrets."""


def is_remote(url: str) -> bool:
    """Whether the URL lives in an object store or on a web server."""
    return url.startswith(REMOTE_SCHEMES)


def local_path(url: str) -> Path:
    """The path behind a plain path or a ``file://`` URL."""
    return Path(url.removeprefix("file://")).expanduser()


def absolute(url: str) -> str:
    """The URL in a form that does not depend on the working directory."""
    if is_remote(url) or url.startswith("hf-hub:"):
        return url
    return str(local_path(url).absolute())


def join(folder: str, name: str) -> str:
    """A name inside a folder of any kind."""
    return f"{folder.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder that holds the URL."""
    return url.rstrip("/").rsplit("/", 1)[0]


def split(url: str) -> tuple[str, str, str]:
    """Scheme, host (or bucket) and the object's name: ``s3://bucket/a/b`` is ``("s3", "bucket", "a/b")``."""
    scheme, rest = url.split("://", 1)
    host, _, name = rest.partition("/")
    return scheme, host, name


def refuse_credentials(url: str) -> None:
    """Refuse a URL that carries a password or a signature: URLs are written into files and logs.

    Raises:
        UserError: naming the URL without its secret.
    """
    if not is_remote(url):
        return
    _, host, name = split(url)
    if "@" in host or SIGNED.search(f"?{url.partition('?')[2]}"):
        raise UserError(
            f"{without_secrets(url)}: this URL carries credentials, which would end up in files and logs. Take them "
            "out of it: s3 reads AWS_* from the environment, gs GOOGLE_*, az AZURE_*, and http(s) ~/.netrc."
        )
    if "?" in name and url.startswith("http") and "=" in name:
        raise UserError(f"{without_secrets(url)}: queries in URLs are not supported. Name the object without one.")


def without_secrets(text: str) -> str:
    """The text with every ``user:password@`` and every query taken out of the URLs in it."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(r"(://[^\s?\"'<>]*)\?[^\s\"'<>]*", r"\1", text)
