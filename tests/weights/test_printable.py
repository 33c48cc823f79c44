"""Names in a checkpoint that would steer a terminal."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from wiseft_dist.printable import printable
from wiseft_dist.weights.inspect import inspect

NAME = "x\x1b[31mred\nfake  line\x9b\u202e"
SHOWN = r"x\x1b[31mred\nfake  line\x9b\u202e"


def test_what_does_not_show_is_escaped():
    assert printable(NAME) == SHOWN
    assert printable("a\nb\t\udcff", keep="\n") == "a\nb\\t\\udcff"
    assert printable("Gewicht für ViT-L/14 \\n") == "Gewicht für ViT-L/14 \\n"


def test_the_table_of_tensors_has_their_names_escaped(tmp_path: Path):
    save_file({NAME: torch.ones(2)}, tmp_path / "m.safetensors")
    said = inspect(tmp_path / "m.safetensors").as_text()
    assert said.splitlines()[-1].startswith(f"{SHOWN}  [2]") and printable(said, keep="\n") == said


def test_the_command_says_a_name_escaped_when_it_stops(tmp_path: Path):
    save_file({NAME: torch.ones(2).to(torch.uint16)}, tmp_path / "m.safetensors")
    command = [sys.executable, "-m", "wiseft_dist", "merge", "--inspect", str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert r"dtype U16 of tensor x\x1b[31mred" in done.stderr and "\x1b" not in done.stderr + done.stdout
