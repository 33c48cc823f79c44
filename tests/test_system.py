"""The machine's own numbers in the events of a training: there, cheap, and never an error."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pynvml
import pytest

from wiseft_dist.tracking import system
from wiseft_dist.tracking.system import SystemSampler

MACHINE = ("cpu_percent", "host_memory_gb", "process_memory_gb")
GPU = ("utilization_percent", "memory_gb", "power_w", "temperature_c")


def has_gpu() -> bool:
    try:
        pynvml.nvmlInit()
        return bool(pynvml.nvmlDeviceGetCount() > 0)
    except pynvml.NVMLError:
        return False


def test_a_sample_is_of_this_process_and_machine() -> None:
    sampler = SystemSampler()
    ballast = b"x" * 50_000_000
    time.sleep(0.05)
    values = sampler.sample()
    assert {f"system/{name}" for name in MACHINE} <= set(values)
    assert 0 <= values["system/cpu_percent"] <= 100
    assert len(ballast) / 1e9 < values["system/process_memory_gb"] < values["system/host_memory_gb"]
    assert values["system/host_memory_gb"] < psutil.virtual_memory().total / 1e9
    assert all(isinstance(value, float) for value in values.values())


def test_bytes_that_were_read_since_the_last_sample_are_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = iter([1_000_000, 3_000_000])
    monkeypatch.setattr(system, "_counters", lambda: {"network_sent": next(sent)})
    seconds = iter([10.0, 12.0])
    monkeypatch.setattr(system.time, "monotonic", lambda: next(seconds))
    sampler = SystemSampler()
    assert sampler.sample()["system/network_sent_mb_s"] == 1.0


def test_what_the_machine_does_not_tell_is_left_out_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("not in this container")

    sampler = SystemSampler()
    for name in ("virtual_memory", "disk_io_counters", "net_io_counters", "cpu_percent"):
        monkeypatch.setattr(psutil, name, refuse)
    assert not [name for name in sampler.sample() if not name.startswith("system/gpu")]
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert SystemSampler().sample() == {}


@pytest.mark.skipif(not has_gpu(), reason="no NVIDIA driver here")
def test_each_gpu_tells_use_memory_power_and_temperature() -> None:
    values = SystemSampler().sample()
    assert {f"system/gpu0_{name}" for name in GPU} <= set(values)
