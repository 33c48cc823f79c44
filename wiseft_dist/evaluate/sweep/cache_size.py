"""How many images may wait while alpha changes: chosen from the memory that is free."""

from __future__ import annotations

import psutil
import torch

DEVICE_SHARE = 0.4
"""Of a GPU's free memory; the rest is for the activations of the forward passes."""
HOST_SHARE = 0.2
"""Of the host's available memory, of which other processes and a job's own limit want their part."""
MOST_HOST_BYTES = 2**31
MOST_IMAGES = 4096
"""With more, setting alpha becomes no cheaper: it is done once for as many images."""


def images_that_fit(bytes_per_image: int, device: torch.device) -> int:
    """How many cached items of so many bytes a device should hold; at least one.

    Args:
        bytes_per_image: Of the image itself, or of the activations that all alphas share.
        device: Where they lie.
    """
    return max(1, min(MOST_IMAGES, _budget(device) // max(1, bytes_per_image)))


def _budget(device: torch.device) -> int:
    """Bytes."""
    if device.type != "cuda":
        return min(MOST_HOST_BYTES, int(HOST_SHARE * psutil.virtual_memory().available))
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(DEVICE_SHARE * (free + unused))
