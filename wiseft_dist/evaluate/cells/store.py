"""A cell is one alpha on one dataset: what it said about each sample, committed part by part under a content key.

The key hashes everything that decides the numbers, so that nothing finished is computed twice and nothing stale is
taken for current. No accuracies are stored: they are computed from the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import wiseft_dist
from wiseft_dist import storage
from wiseft_dist.commits import digest
from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.data.stage import ID_VAL, load_manifest
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.catalog.entries import Dataset, describe_dataset
from wiseft_dist.evaluate.catalog.lists import list_names
from wiseft_dist.evaluate.cells import files as cell_files
from wiseft_dist.evaluate.cells.files import COLUMNS, METADATA, PartFile, cover, empty, matrix, part_files, read_columns
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.predictions import FeatureMoments, Member, Predictions, members_at
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.run import Run, alpha_name
from wiseft_dist.weights.finetuned import describe_models, without_places

if TYPE_CHECKING:
    import pyarrow

EVALUATION_CODE_VERSION = 1
"""Raised when the same weights on the same data give other numbers than before."""
REPORT_CODE_VERSION = 2
"""Raised when the same cells lead to another report than before."""
METHOD_SETTINGS = ("method", "layers", "lines", "density", "seed")
"""Of ``merge``: what decides the weights of an ensemble, beside the models and alpha."""
ARITHMETIC = ("precision", "preprocess", "compile")
"""Of ``evaluate``: what decides the numbers. ``compile`` does, because fused operations round once where others round
each time, and in bf16 that changes classes; the size of a batch only chooses between kernels of the same arithmetic."""
IDENTITY = ("key", "position", "label")
THETA_1 = Member(1.0)


@dataclass(frozen=True)
class Content:
    """What of a dataset decides the numbers."""

    num_samples: int
    """According to its manifest."""
    key: Mapping[str, Any]
    """Anything that JSON can hold."""


def members_of(config: RunConfig) -> list[Member]:
    """What a run scores."""
    return members_at(config.merge.alphas, output_space=config.evaluate.output_space)


class CellStore:
    """The cells of some models, in one folder.

    Args:
        root: The folder.
        weights: What decides the numbers beside the data, alpha and the code: models, head, preprocessing, precision.
            Anything that JSON can hold.
        content: What a dataset of this name holds; asked once.
    """

    def __init__(self, root: Path, weights: Mapping[str, Any], content: Callable[[str], Content]) -> None:
        self._root = root
        self._weights = {**weights, "code": [EVALUATION_CODE_VERSION, wiseft_dist.__version__]}
        self._content = lru_cache(maxsize=None)(content)

    @staticmethod
    def of_run(config: RunConfig, run: Run) -> CellStore:
        """The cells of a run, for the weights and settings it has now.

        Raises:
            RunError: if fine-tuning has not finished.
        """
        weights = {
            # theta_0's folder holds the head, the prompts and the model's preprocessing too.
            "models": without_places(describe_models(config, run)),
            "merge": config.merge.model_dump(mode="json", include=set(METHOD_SETTINGS)),
            "evaluate": config.evaluate.model_dump(mode="json", include=set(ARITHMETIC)),
        }
        return CellStore(run.cells, weights, lambda name: content_of(config, run, name))

    def folder(self, dataset: str, member: Member) -> Path:
        """Where the cell is, or will be."""
        suffix = "" if member.space == "weight" else f"-{member.space}"
        return self._root / dataset / f"{alpha_name(member.alpha)}{suffix}-{self._key(dataset, member)}"

    def num_samples(self, dataset: str) -> int:
        """How many samples the dataset has, skipped ones included."""
        return self._content(dataset).num_samples

    def missing(self, dataset: str, members: Iterable[Member], part: Part | None = None) -> list[Member]:
        """The members of which some position of the dataset, or of a part of it, is not committed."""
        start, stop = (0, self.num_samples(dataset)) if part is None else (part.start, part.stop)
        return [member for member in members if cover(self._files(dataset, member), start, stop) is None]

    def left(self, parts: Iterable[Part], members: Sequence[Member]) -> list[Part]:
        """Those of some parts that are not committed for every member; each cell's folder is listed once."""
        listed = lru_cache(maxsize=None)(self._files)
        return [
            part
            for part in parts
            if any(cover(listed(part.dataset, member), part.start, part.stop) is None for member in members)
        ]

    def skipped(self, dataset: str, member: Member) -> list[BadSample]:
        """The samples that no prediction was made for, as far as the cell is committed."""
        entries = (entry for file in self._files(dataset, member) for entry in file.bad)
        return list({entry.position: entry for entry in entries}.values())

    def write(self, dataset: str, part: Part, members: Sequence[Member], predictions: Predictions) -> None:
        """Commit what each of K members said about a part.

        Raises:
            RunError: if the predictions are not those of every position of the part.
        """
        for index, member in enumerate(members):
            cell_files.write_part_file(
                self.folder(dataset, member),
                part,
                predictions,
                index,
                key=self._key(dataset, member),
                with_features=member == THETA_1,
            )

    def read(self, dataset: str, members: Sequence[Member], columns: Collection[str] | None = None) -> Predictions:
        """What K members said about every sample of a dataset, in the order of their positions.

        Args:
            dataset: Its name.
            members: K of them.
            columns: Fields of :class:`Predictions` that are wanted beside keys, positions, labels and metadata, among
                them ``features``; others come without samples, ``[K, 0]``. Left out: all.

        Raises:
            RunError: if a sample is missing or comes twice, two share a key, the cells do not agree about keys and
                labels, or a file is damaged.
        """
        wanted = [name for name in COLUMNS if columns is None or name in columns]
        covers = [self._cover(dataset, member) for member in members]
        identity = _Identity(dataset, self.num_samples(dataset), covers[0])
        arrays: dict[str, Any] = {
            name: empty(name, len(members), len(identity) if name in wanted else 0) for name in COLUMNS
        }
        for index, chosen in enumerate(covers):
            table = _read_cell(chosen, [*IDENTITY, *map(COLUMNS.__getitem__, wanted)])
            identity.refuse_other(table, chosen, self.folder(dataset, members[index]))
            for name in wanted:
                arrays[name][index] = matrix(table, COLUMNS[name])
        is_wanted = THETA_1 in members and (columns is None or "features" in columns)
        features = _features(covers[members.index(THETA_1)]) if is_wanted else None
        return Predictions(**identity.fields(), **arrays, features=features)

    def _cover(self, dataset: str, member: Member) -> list[tuple[PartFile, int]]:
        chosen = cover(self._files(dataset, member), 0, self.num_samples(dataset))
        if chosen is None:
            raise RunError(f"{self.folder(dataset, member)} is not complete: evaluate {dataset} first.")
        return chosen

    def _files(self, dataset: str, member: Member) -> list[PartFile]:
        return part_files(self.folder(dataset, member), self._key(dataset, member))

    def _key(self, dataset: str, member: Member) -> str:
        content = {"data": dict(self._content(dataset).key), "alpha": float(member.alpha), "space": member.space}
        return digest(self._weights | content)


def report_digest(config: RunConfig, store: CellStore, datasets: Iterable[str]) -> str:
    """A report is current while this hash stays: of its cells and settings, of roles, of what is known of datasets."""
    datasets = list(datasets)
    cells = [store.folder(name, member).name for name in datasets for member in members_of(config)]
    known = [_known(describe_dataset(name, config.data.datasets.get(name))) for name in datasets]
    settings = config.report.model_dump(mode="json")
    return digest([REPORT_CODE_VERSION, list(config.data.reference), list(config.data.shifts), cells, known, settings])


def _known(dataset: Dataset) -> list[Any]:
    """What a report takes from a dataset's description, and from the files that it names."""
    spec = dataset.spec
    axis = spec.reference_classes and load_class_map(spec.reference_classes, "reference_classes").groups
    is_file = spec.robustness_fit is not None and spec.robustness_fit not in list_names("robustness_fit")
    models = storage.read_text(str(spec.robustness_fit)) if is_file else None
    return [spec.model_dump(mode="json"), dataset.classnames, axis, models]


def content_of(config: RunConfig, run: Run, name: str) -> Content:
    """What a dataset of a run holds, and how it is read."""
    manifest, described = load_manifest(run, name), dataset_of_run(config, run, name)
    key = {
        # The digest is of names, sizes and labels. Pixels and metadata can change without it, but not without the
        # file's version; and two test sets at two places can have the same names.
        "content": manifest.content_digest,
        "shards": shards_digest(manifest),
        "held_out": name == ID_VAL,
        "class_map": None if described.class_map is None else digest(described.class_map.groups),
        "crop_border": described.spec.crop_border,
        "labels": described.spec.labels,
        "metadata": described.spec.metadata,
    }
    return Content(manifest.num_held_out if name == ID_VAL else manifest.num_samples, key)


def shards_digest(manifest: Manifest) -> str:
    """One hash for where the shards lie and which versions of the files they are."""
    return digest([[shard.url, shard.version] for shard in manifest.shards])


class _Identity:
    """Which samples a cell is of: read from one, held against the others."""

    def __init__(self, dataset: str, num_samples: int, chosen: Sequence[tuple[PartFile, int]]) -> None:
        self._metadata = chosen[0][0].metadata if chosen else ()
        self._table = _read_cell(chosen, [*IDENTITY, *(METADATA + name for name in self._metadata)])
        self._bad = _bad(chosen)
        self._refuse_gaps(dataset, num_samples)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def fields(self) -> dict[str, Any]:
        """Those of :class:`Predictions`."""
        return {
            "keys": tuple(self._table["key"].to_pylist()),
            "positions": matrix(self._table, "position"),
            "labels": matrix(self._table, "label"),
            "metadata": {name: matrix(self._table, METADATA + name) for name in self._metadata},
            "bad": self._bad,
        }

    def refuse_other(self, table: pyarrow.Table, chosen: Sequence[tuple[PartFile, int]], folder: Path) -> None:
        """Compare with another cell.

        Raises:
            RunError: naming its folder.
        """
        differing = [name for name in IDENTITY if not table[name].equals(self._table[name])]
        if differing or [entry.position for entry in _bad(chosen)] != [entry.position for entry in self._bad]:
            raise RunError(
                f"{folder} is of other samples than the cells beside it ({', '.join(differing) or 'skipped'}): delete "
                "it and evaluate again."
            )

    def _refuse_gaps(self, dataset: str, num_samples: int) -> None:
        import pyarrow.compute

        seen = np.zeros(num_samples, dtype=np.int64)
        np.add.at(seen, matrix(self._table, "position"), 1)
        np.add.at(seen, [entry.position for entry in self._bad], 1)
        if (seen != 1).any():
            raise RunError(f"{dataset}: {seen.sum()} samples were scored or skipped, of {num_samples}: evaluate again.")
        num_keys = pyarrow.compute.count_distinct(self._table["key"]).as_py()
        if num_keys != len(self):
            raise RunError(f"{dataset}: {len(self)} samples have {num_keys} different keys, and each needs its own.")


def _read_cell(chosen: Sequence[tuple[PartFile, int]], columns: Sequence[str]) -> pyarrow.Table:
    """The rows of some files, of each from a position on, in one piece."""
    import pyarrow

    tables = []
    for file, start in chosen:
        table = read_columns(file.path, columns)
        if start > file.start:
            table = table.filter(pyarrow.array(matrix(table, "position") >= start))
        tables.append(table)
    # A part without a single usable sample does not know how many labels the others' have.
    filled = [table for table in tables if table.num_rows] or tables[:1]
    return pyarrow.concat_tables(filled).combine_chunks()


def _bad(chosen: Sequence[tuple[PartFile, int]]) -> tuple[BadSample, ...]:
    bad = (entry for file, start in chosen for entry in file.bad if entry.position >= start)
    return tuple(sorted(bad, key=lambda entry: entry.position))


def _features(chosen: Sequence[tuple[PartFile, int]]) -> FeatureMoments | None:
    """The sums over all files, if each has them and is taken whole: nothing can be taken out of a sum."""
    total: FeatureMoments | None = None
    for file, start in chosen:
        if not file.has_features or start != file.start:
            return None
        moments = cell_files.read_features(file.path)
        total = moments if total is None else total + moments
    return total
