"""Whether what a run reads and writes can be reached: its shards, its model, where it publishes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.findings import Finding, Level
from wiseft_dist.launch.model_files import check_merged_models, check_model_files
from wiseft_dist.node_checks import check_disk, check_store
from wiseft_dist.ranks import node_name
from wiseft_dist.storage.urls import split, without_secrets

LOGINS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_PROFILE"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_TOKEN"),
    "https": ("HF_TOKEN", "NETRC"),
    "http": ("NETRC",),
}
"""Variables that carry a login, or say where one is."""
LOGIN_FILES = {"s3": "~/.aws/credentials", "https": "~/.netrc", "http": "~/.netrc"}


def check_sources(config: RunConfig) -> list[Finding]:
    """Lists every dataset and reads its first byte, looks at the model's files and at the target of publications."""
    data = config.data
    named = {"data.train": data.train, **{f"test set {name}": url for name, url in data.evaluated.items()}}
    found = [finding for name, url in named.items() for finding in _check_shards(name, url)]
    found += _check_model(config)
    if config.publish:
        found.append(_check_target(config.publish))
    schemes = {split(url)[0] for url in [*named.values(), config.publish or ""] if storage.is_remote(url)}
    return found + [_finding("credentials", "ok", f"{scheme}: {kind_of_login(scheme)}") for scheme in sorted(schemes)]


def kind_of_login(scheme: str, environment: Mapping[str, str] | None = None) -> str:
    """Where credentials for a kind of store come from; never what they are."""
    env = os.environ if environment is None else environment
    found = [name for name in LOGINS.get(scheme, ()) if env.get(name)]
    file = LOGIN_FILES.get(scheme)
    if file and Path(file).expanduser().is_file():
        found.append(file)
    return ", ".join(found) or "none found; only what is public, or open to this machine, can be read"


def _check_shards(name: str, url: str) -> Iterator[Finding]:
    try:
        shards = storage.list_shards(url)
    except (UserError, RunError, OSError) as error:
        yield _finding("data", "error", f"{name}: {error}")
        return
    size = sum(shard.num_bytes or 0 for shard in shards)
    yield _finding("data", "ok", f"{name}: {len(shards)} shards, {size / 1e9:.3g} GB, in {without_secrets(url)}")
    if shards:
        yield from check_store([shards[0].url])


def _check_model(config: RunConfig) -> Iterator[Finding]:
    try:
        check_model_files(config.model)
        check_merged_models(config.merge)
    except (UserError, OSError) as error:
        yield _finding("model", "error", str(error))
    else:
        named = config.model.pretrained or "no pretrained weights named"
        yield _finding("model", "ok", f"{config.model.architecture}, {without_secrets(named)}")
    if config.model.pretrained and storage.is_remote(config.model.pretrained):
        yield from check_store([config.model.pretrained])


def _check_target(url: str) -> Finding:
    if not storage.is_remote(url):
        return replace(check_disk({"folder of publications": Path(url)}, 0.0)[0], check="publish")
    try:
        num_objects = len(storage.list_folder(url))
    except (UserError, RunError, OSError) as error:
        return _finding("publish", "error", f"{without_secrets(url)}: {error}")
    return _finding("publish", "ok", f"{without_secrets(url)} can be listed: {num_objects} objects")


def _finding(check: str, level: Level, text: str) -> Finding:
    return Finding(check, level, without_secrets(text), node_name())
