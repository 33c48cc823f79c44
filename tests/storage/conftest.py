"""Short patience for the tests of this folder."""

from __future__ import annotations

import pytest
from file_server import without_logins


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Faults are over in a second, and no login of whoever runs the tests is used."""
    without_logins(monkeypatch, tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("WISEFT_STORE_TRIES", "3")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "0.5")
