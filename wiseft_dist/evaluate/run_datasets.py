"""What is known of the datasets of a run, and how the classes of its head become theirs."""

from __future__ import annotations

import json
from dataclasses import replace

from wiseft_dist.config import RunConfig
from wiseft_dist.evaluate.catalog.entries import Dataset, describe_dataset
from wiseft_dist.evaluate.class_map import map_for
from wiseft_dist.models.files import CLASSES_FILE
from wiseft_dist.run import Run


def dataset_of_run(config: RunConfig, run: Run, name: str) -> Dataset:
    """What is known of a dataset of a run; its class map is the one from the run's head, None where none is needed.

    Raises:
        UserError: if the run's classes cannot become the dataset's.
    """
    dataset = describe_dataset(name, config.data.datasets.get(name))
    if dataset.classnames is None and dataset.class_map is None:
        return dataset  # the run's classes are its own, as was checked when it was indexed
    classnames = json.loads((run.zero_shot / CLASSES_FILE).read_text())["classnames"]
    return replace(dataset, class_map=map_for(dataset, classnames))
