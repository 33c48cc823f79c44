"""mergekit (https://github.com/arcee-ai/mergekit), one run for each alpha, in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.merge_peer import run_program

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def install_mergekit(folder: Path) -> Path | None:
    """Make a virtual environment with mergekit, unless it is there.

    It looks for packages in itself first, then in this environment, so that both sides have the same torch.

    Returns:
        The program, or None if mergekit cannot be installed; the reason is printed.
    """
    program = folder / "bin" / "mergekit-pytorch"
    if program.is_file():
        return program
    venv.create(folder, with_pip=True)
    own = next((folder / "lib").glob("python*/site-packages"))
    (own / "after.pth").write_text(sysconfig.get_path("purelib"))
    done = subprocess.run([folder / "bin" / "pip", "install", "mergekit"], capture_output=True, text=True)
    if done.returncode or not program.is_file():
        print(f"benchmarks.merge: mergekit cannot be installed: {done.stderr[-1000:]}", file=sys.stderr)
        return None
    return program


def mergekit_version(program: Path) -> str:
    """The version that an environment has."""
    question = "from importlib.metadata import version; print(version('mergekit'))"
    return subprocess.check_output([program.with_name("python"), "-c", question], text=True).strip()


def start_seconds(program: Path, folder: Path) -> float:
    """What a run takes that merges nothing."""
    folder.mkdir()
    return run_program([program, "--help"], folder)


def merge_with_mergekit(
    program: Path, models: Sequence[Path], output: Path, dtype: str, alphas: Sequence[float]
) -> float:
    """Method ``linear`` on two safetensors files, once for each alpha; what a run wrote is deleted after it.

    Returns:
        Seconds of all runs.
    """
    seconds = 0.0
    for alpha in alphas:
        output.mkdir()
        settings = {
            "merge_method": "linear",
            "models": [
                {"model": str(model), "parameters": {"weight": weight}}
                for model, weight in zip(models, (1 - alpha, alpha), strict=True)
            ],
            "dtype": "float32",
            "out_dtype": DTYPES[dtype],
        }
        file = output.with_suffix(".yaml")
        file.write_text(json.dumps(settings))  # JSON is YAML
        seconds += run_program([program, file, output, "--quiet"], output)
        shutil.rmtree(output)
    return seconds
