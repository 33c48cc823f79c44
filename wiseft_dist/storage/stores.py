"""Clients of object stores, made once per process, with the credentials that the environment holds."""

from __future__ import annotations

import base64
import configparser
import functools
import netrc
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.errors import UserError
from wiseft_dist.storage import urls

DEFAULT_TRIES = 10
DEFAULT_TIMEOUT = 60.0
RELEVANT = ("AWS_", "AZURE_", "GOOGLE_", "HF_TOKEN", "NETRC", "HOME", "WISEFT_STORE_")
"""Prefixes of environment variables that a client is made of."""
LOGINS_OF_MACHINES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""With any of these set, no profile is looked up."""


@dataclass(frozen=True)
class Patience:
    """How long to bear with a store that does not deliver."""

    tries: int = DEFAULT_TRIES
    """Requests in a row without a single new byte before giving up: WISEFT_STORE_TRIES."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds without a single byte after which a request counts as stalled: WISEFT_STORE_TIMEOUT."""

    @classmethod
    def from_environment(cls) -> Patience:
        """What the environment says now.

        Raises:
            UserError: if a variable is not a positive number.
        """
        return cls(
            tries=int(_positive("WISEFT_STORE_TRIES", DEFAULT_TRIES)),
            timeout=_positive("WISEFT_STORE_TIMEOUT", DEFAULT_TIMEOUT),
        )


def open_store(url: str) -> tuple[Any, str]:
    """The obstore client of a URL's bucket or host, and the object's name in it.

    Raises:
        UserError: if the URL carries credentials, or the client cannot be made from what the environment says.
    """
    urls.refuse_credentials(url)
    scheme, host, name = urls.split(url)
    relevant = tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith(RELEVANT)))
    return _client(scheme, host, relevant, os.getpid()), name


def fork_is_safe() -> bool:
    """Whether a forked child could still read remote objects: the threads of a used obstore stay with the parent."""
    return "obstore" not in sys.modules


@functools.lru_cache(maxsize=64)
def _client(scheme: str, host: str, environment: tuple[tuple[str, str], ...], pid: int) -> Any:
    """One client with its connections. ``pid`` is in the key because connections do not survive a fork."""
    import obstore.store

    variables = dict(environment)
    timeout = Patience.from_environment().timeout
    # The time-out is of a silence, not of a request: a slow store that delivers is not a broken one.
    client: dict[str, Any] = {"read_timeout": f"{timeout:.3f}s", "connect_timeout": f"{timeout:.3f}s", "timeout": "1h"}
    config: dict[str, Any] = {}
    if scheme == "s3":
        config = _s3_config(variables)
        client["allow_http"] = config.get("endpoint", "").startswith("http://")
    elif scheme in ("http", "https"):
        client["allow_http"] = scheme == "http"
        client["default_headers"] = _login(scheme, host, variables)
    elif "AWS_ALLOW_HTTP" in variables:
        client["allow_http"] = True
    try:
        return obstore.store.from_url(
            f"{scheme}://{host}", client_options=client, retry_config={"max_retries": 0}, **config
        )
    except Exception as error:  # obstore's errors share no public base class
        reason = urls.without_secrets(str(error).strip().split("\n")[0])
        raise UserError(f"{scheme}://{host}: cannot be reached with what the environment says: {reason}") from None


def _s3_config(environment: Mapping[str, str]) -> dict[str, str]:
    """What obstore does not read from the environment by itself: other names of the endpoint, and profiles."""
    profile = _profile(environment)
    endpoint = (
        environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    )
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or profile.get("region")
    config = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint.rstrip("/")
    if not any(environment.get(name) for name in LOGINS_OF_MACHINES) and "aws_access_key_id" in profile:
        config["access_key_id"] = profile["aws_access_key_id"]
        config["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if "aws_session_token" in profile:
            config["session_token"] = profile["aws_session_token"]
    return config


def _profile(environment: Mapping[str, str]) -> dict[str, str]:
    """The keys of AWS_PROFILE, or of ``default``, from the files that the AWS command line writes.

    Raises:
        UserError: if AWS_PROFILE names a profile that neither file has, or a file cannot be parsed.
    """
    name = environment.get("AWS_PROFILE", "default")
    credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    settings = Path(environment.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    section = name if name == "default" else f"profile {name}"
    found = _section(settings, section) | _section(credentials, name)
    if not found and "AWS_PROFILE" in environment:
        raise UserError(f"AWS_PROFILE={name}: neither {credentials} nor {settings} has such a profile.")
    return found


def _section(file: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):  # their text quotes the line, which may be a secret
        raise UserError(f"{file}: cannot be parsed. Write it as `aws configure` does.") from None
    return dict(parser[name]) if parser.has_section(name) else {}


def _login(scheme: str, host: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The Authorization header for a web server: HF_TOKEN for the Hugging Face Hub, else ``~/.netrc``."""
    if scheme == "https" and host == "huggingface.co" and environment.get("HF_TOKEN"):
        return {"Authorization": f"Bearer {environment['HF_TOKEN']}"}
    file = Path(environment.get("NETRC", "~/.netrc")).expanduser()
    if not file.is_file():
        return {}
    try:
        entry = netrc.netrc(file).authenticators(host.partition(":")[0])
    except netrc.NetrcParseError as error:
        raise UserError(f"{file}: line {error.lineno} cannot be parsed.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
    if entry is None:
        return {}
    login, _, password = entry
    return {"Authorization": "Basic " + base64.b64encode(f"{login}:{password or ''}".encode()).decode()}


def _positive(name: str, default: float) -> float:
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (name.endswith("TRIES") and value < 1):
        raise UserError(f"{name}={text}: must be a number above 0.")
    return value
