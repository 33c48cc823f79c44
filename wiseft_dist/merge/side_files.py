"""What lies beside the weights of theta_0 and goes beside those of every ensemble: configuration and class names."""

from __future__ import annotations

import json
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE
from wiseft_dist.weights.places import find_file, open_folder, read_bytes
from wiseft_dist.weights.pretrained_tags import is_tag


def side_files(zero_shot: str | Path) -> dict[str, bytes]:
    """The small files of a model, by name; those that it has.

    Args:
        zero_shot: As ``open_weights`` takes it, and opened before.
    """
    source = str(zero_shot)
    file = find_file(source)
    if file is None and not storage.is_remote(source) and not Path(source).exists() and is_tag(source):
        from wiseft_dist.models.clip import config_of_tag

        name, tag = source.replace("/", "-").split(":")
        return {CONFIG_FILE: json.dumps(config_of_tag(name, tag), indent=1).encode()}
    folder = open_folder(source if file is None else storage.parent(str(file)))
    return {name: read_bytes(found) for name, found in folder.look_up([CONFIG_FILE, CLASSES_FILE]).items()}
