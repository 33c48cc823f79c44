from __future__ import annotations

import os
import pty
import subprocess
import sys

PROGRAM = """
from wiseft_dist.progress import progress_bar
with progress_bar("counting a[/b]", total=3, unit="sheep") as bar:
    for _ in range(3):
        bar.advance()
    bar.update(completed=3, note="asleep [/b]")
"""


def test_nobody_is_told_anything_where_standard_error_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_person_at_a_terminal_sees_a_bar():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=theirs, env=environment) as p:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # how Linux says that the other side has hung up
            pass
        assert p.stdout is not None
        assert p.stdout.read() == b""
    os.close(ours)
    assert p.returncode == 0
    for word in (b"counting a[/b]", b"3/3", b"sheep", b"asleep [/b]"):
        assert word in shown
