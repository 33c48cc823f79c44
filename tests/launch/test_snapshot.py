"""A copy of the code is whole, made once for the same content, and knows what it is a copy of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wiseft_dist.code_identity import package_digest, package_files
from wiseft_dist.launch.snapshot import snapshot

PRINT = "import wiseft_dist.launch.snapshot as s, sys, pathlib; print(s.snapshot(pathlib.Path(sys.argv[1])))"
IDENTITY = "from wiseft_dist.code_identity import code_identity as c; print(c().to_json())"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the package that may be edited."""
    return snapshot(tmp_path / "mine")


def run_with(code: Path, program: str, *arguments: object) -> str:
    """What a Python that imports the package from ``code`` prints."""
    environment = os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.strip()


def test_a_copy_holds_python_and_data_files_and_nothing_that_python_left(package: Path) -> None:
    copied = {str(path.relative_to(package / "wiseft_dist")) for path in (package / "wiseft_dist").rglob("*.*")}
    assert {"cli.py", "report/page/page.html.j2", "py.typed", "evaluate/catalog/data/classes/imagenet.txt"} <= copied
    assert not [name for name in copied if "__pycache__" in name or name.endswith(".pyc")]
    assert package.name == package_digest(package / "wiseft_dist")
    assert len(package_files(package / "wiseft_dist")) > 200


def test_the_same_content_is_copied_once_and_other_content_beside_it(package: Path, tmp_path: Path) -> None:
    first = Path(run_with(package, PRINT, tmp_path / "jobs"))
    inode = (first / "code.json").stat().st_ino
    assert Path(run_with(package, PRINT, tmp_path / "jobs")) == first
    assert (first / "code.json").stat().st_ino == inode
    (package / "wiseft_dist" / "report" / "page.html.j2").write_text("edited")
    second = Path(run_with(package, PRINT, tmp_path / "jobs"))
    assert sorted(path.name for path in (tmp_path / "jobs" / "code").iterdir()) == sorted([first.name, second.name])
    assert (second / "wiseft_dist" / "report" / "page.html.j2").read_text() == "edited"


def test_a_copy_says_which_revision_it_is_of_wherever_it_lies(package: Path) -> None:
    recorded = json.loads((package / "code.json").read_text())
    assert recorded["digest"] == package.name
    assert json.loads(run_with(package, IDENTITY)) == recorded


def test_the_revision_is_that_of_the_checkout_and_changes_are_seen(package: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (package / "wiseft_dist").rename(checkout / "wiseft_dist")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    untracked = json.loads(run_with(checkout, IDENTITY))
    assert (untracked["revision"], untracked["is_dirty"]) == (None, None)
    git("add", "wiseft_dist")
    git("commit", "-qm", "all")
    clean = json.loads(run_with(checkout, IDENTITY))
    assert (clean["revision"], clean["is_dirty"]) == (git("rev-parse", "HEAD"), False)
    (checkout / "wiseft_dist" / "cli.py").write_text("# edited\n")
    edited = json.loads(run_with(checkout, IDENTITY))
    assert (edited["revision"], edited["is_dirty"]) == (clean["revision"], True)
    assert edited["digest"] != clean["digest"]
