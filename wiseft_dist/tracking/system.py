"""What the machine does while a stage computes: processor, memory, disks, network, and GPUs where there are any."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

MOST_GPUS = 8
"""Of a node; asking for more would cost more than a step may."""
BYTES_A_GB, BYTES_A_MB = 1e9, 1e6


class SystemSampler:
    """Samples the machine between two steps. What is not there is left out, and nothing ever raises.

    Rates are means since the sample before; the first sample has none.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._gpus: list[tuple[int, Any]] = []
        with suppress(Exception):
            self._process = psutil.Process()
            psutil.cpu_percent(None)
        with suppress(Exception):
            self._gpus = _gpus()
        self._counted_at, self._counters = time.monotonic(), _counters()

    def sample(self) -> dict[str, float]:
        """The numbers of this moment: ``system/...``, GB of 10^9 bytes, MB of 10^6."""
        values: dict[str, float] = {}
        for source in (self._machine, self._rates, *(_of_gpu(number, handle) for number, handle in self._gpus)):
            with suppress(Exception):
                values |= source()
        return {f"system/{name}": round(value, 3) for name, value in values.items()}

    def _machine(self) -> dict[str, float]:
        used = psutil.virtual_memory()
        return {
            "cpu_percent": psutil.cpu_percent(None),
            "host_memory_gb": (used.total - used.available) / BYTES_A_GB,
            "process_memory_gb": self._process.memory_info().rss / BYTES_A_GB,
        }

    def _rates(self) -> dict[str, float]:
        """Of the whole machine; containers see their own network only."""
        now, counters = time.monotonic(), _counters()
        seconds, before = now - self._counted_at, self._counters
        self._counted_at, self._counters = now, counters
        if seconds <= 0:
            return {}
        return {
            f"{name}_mb_s": max(0, count - before[name]) / BYTES_A_MB / seconds
            for name, count in counters.items()
            if name in before
        }


def _counters() -> dict[str, int]:
    """Bytes since the machine was started, by what they count."""
    counters: dict[str, int] = {}
    with suppress(Exception):
        disk = psutil.disk_io_counters()
        if disk is not None:
            counters |= {"disk_read": disk.read_bytes, "disk_write": disk.write_bytes}
    with suppress(Exception):
        network = psutil.net_io_counters()
        counters |= {"network_received": network.bytes_recv, "network_sent": network.bytes_sent}
    return counters


def _gpus() -> list[tuple[int, Any]]:
    """NVML's handles of the GPUs that this process may use, by CUDA's numbers; raises where there is no driver."""
    import pynvml

    pynvml.nvmlInit()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        names = [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    return [(number, _handle(pynvml, name)) for number, name in enumerate(names[:MOST_GPUS])]


def _handle(pynvml: Any, name: str) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)


def _of_gpu(number: int, handle: Any) -> Callable[[], dict[str, float]]:
    """What reads one GPU; of a part of a GPU (MIG) NVML knows the memory alone."""

    def read() -> dict[str, float]:
        import pynvml

        reads: dict[str, Callable[[], float]] = {
            "utilization_percent": lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "memory_gb": lambda: float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / BYTES_A_GB,
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        }
        values: dict[str, float] = {}
        for name, value in reads.items():
            with suppress(Exception):
                values[f"gpu{number}_{name}"] = value()
        return values

    return read
