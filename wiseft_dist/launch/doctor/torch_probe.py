"""What PyTorch can do with each device; a program of its own, so that a driver that hangs can be given up."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]


def probe(seconds: float) -> dict[str, Any] | str:
    """``{"nccl": "2.27.3" or None, "devices": [...]}``, found by another process; or what went wrong there.

    Args:
        seconds: How long that process may take.
    """
    command = [sys.executable, "-m", "wiseft_dist.launch.doctor.torch_probe"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s: a GPU or its driver hangs"
    if answer.returncode:
        return (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print what was found as one line of JSON."""
    has_gpus = torch.cuda.is_available()
    version: Any = torch.cuda.nccl.version  # without types
    nccl = ".".join(map(str, version())) if has_gpus else None
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    print(json.dumps({"nccl": nccl, "devices": [_describe(device) for device in devices]}))


def _describe(device: torch.device) -> dict[str, Any]:
    described: dict[str, Any] = {"name": str(device), "problem": ""}
    try:
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            free, total = torch.cuda.mem_get_info(device)
            described |= {
                "name": f"{device} {properties.name}",
                "capability": f"{properties.major}.{properties.minor}",
                "free_gib": free / 2**30,
                "total_gib": total / 2**30,
                "has_bf16": properties.major >= 8,  # in hardware, from Ampere on
            }
        _all_reduce(device)
    except Exception as error:  # what CUDA's and NCCL's layers raise has no common class
        described["problem"] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return described


def _all_reduce(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        ones = torch.ones(1 << 20, device=device)
        dist.all_reduce(ones)
        if float(ones.sum()) != ones.numel():
            raise RuntimeError("an all-reduce over one process changed its numbers")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
