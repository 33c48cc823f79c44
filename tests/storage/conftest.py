"""A store, a web server and short patience for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import serve


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Faults are over in a second, and no login of whoever runs the tests is used."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_TOKEN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WISEFT_STORE_TRIES", "3")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "0.5")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder whose files :func:`web` serves."""
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def web(served: Path) -> Iterator[str]:
    with serve(served) as url:
        yield url
