"""Writing ensembles: any chunks and any ranks give the same bytes, in files that every reader of the format takes."""

import fcntl
import json
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import METHODS, learn, number_of_models
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.commits import COMMIT_FILE, is_committed, read_commit
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.merge.inputs import InputReader
from wiseft_dist.merge.layout import cut, lay_out
from wiseft_dist.merge.methods.fisher import Fisher
from wiseft_dist.merge.methods.method import Slices
from wiseft_dist.merge.methods.wise import Wise
from wiseft_dist.merge.ranks import RankGroup
from wiseft_dist.merge.share import Work, do_share
from wiseft_dist.merge.staging import LOCK_FILE, Staging
from wiseft_dist.merge.statistics import take_statistics_together
from wiseft_dist.merge.writer import Inputs, Written, write_ensembles
from wiseft_dist.models.files import HEAD_FILE, INDEX_FILE, WEIGHTS_FILE
from wiseft_dist.weights.pairing import Models, match
from wiseft_dist.weights.sources import open_weights

Model = Mapping[str, Tensor]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool)


def tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype == torch.bool else 100, tuple(shape), generator=generator).to(dtype)


@contextmanager
def opened(folder: Path, tensors: Sequence[Model], **options: Any) -> Iterator[Models]:
    """Models in files of their own, matched."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, model in enumerate(tensors):
        safetensors.torch.save_file(dict(model), folder / f"{index}.safetensors")
    weights = [open_weights(folder / f"{index}.safetensors") for index in range(len(tensors))]
    yield match(weights[0], weights[1:], **options)
    for each in weights:
        each.close()


def two_models(num_elements: int = 5000) -> list[dict[str, Tensor]]:
    return [
        {
            "visual.a": tensor((num_elements,), torch.float32, seed),
            "visual.b": tensor((3, num_elements // 3), torch.float32, seed + 10),
            "ids": tensor((77,), torch.int64, seed),
            "head.weight": tensor((5, 11), torch.float32, seed + 20),
        }
        for seed in (0, 1)
    ]


def write(
    models: Models, folder: Path, alphas: Sequence[float] = (0.0, 0.3, 1.0), method: Any = None, **options: Any
) -> Written:
    options = {"dtype": torch.float32, "side_files": lambda alpha, inputs: {}} | options
    folders = {alpha: folder / f"alpha_{alpha}" for alpha in alphas}
    return write_ensembles(models, method or Wise(), folders, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(models: Sequence[Model], case: str, alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """theta_alpha, computed whole and in memory."""
    base = models[0]
    mixed = [{name: model[name].float() for name in base if base[name].is_floating_point()} for model in models]
    method, ensemble = learn(METHODS[case](), mixed), {}
    for name, value in base.items():
        if not value.is_floating_point():
            ensemble[name] = models[1][name] if alpha == 1.0 else value
            continue
        ensemble[name] = torch.empty(value.shape, dtype=dtype)
        if value.numel():
            slices = Slices(name, 0, [model[name].flatten() for model in mixed])
            method.mix(slices, alpha, ensemble[name].view(-1))
    return ensemble


def written_by_ranks(
    models: Models, case: str, folder: Path, alphas: Sequence[float], world_size: int, chunk_bytes: int, **options: Any
) -> Staging:
    """What the ranks of a group write, one after the other, the last one first."""
    files = lay_out(models.records, **options)
    inputs, method, staging = InputReader(models, options["dtype"], False), METHODS[case](), Staging(folder)
    folder.mkdir()
    staging.prepare(alphas, files)
    take_statistics_together(method, inputs, RankGroup(), num_threads=2)
    chunks = cut(files, chunk_bytes)
    work = Work(inputs, method, alphas, chunks, chunk_bytes, staging, 1, {})
    done = [do_share(work, rank=r, world_size=world_size, num_threads=2) for r in reversed(range(world_size))]
    assert sorted(number for each in done for number in each.chunks) == [chunk.number for chunk in chunks]
    return staging


shapes = st.lists(st.integers(0, 70), max_size=2) | st.tuples(st.integers(1000, 6000))
layouts = st.lists(st.tuples(shapes, st.sampled_from(FLOATS), st.sampled_from(FLOATS)), min_size=1, max_size=5)
integers = st.lists(st.tuples(shapes, st.sampled_from(OTHERS)), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    floats=layouts,
    integers=integers,
    case=st.sampled_from(("wise", "slerp", "ties", "dare", "uniform_soup")),
    dtype=st.sampled_from(FLOATS),
    alphas=st.lists(st.sampled_from((0.0, 0.1, 0.5, 0.77, 1.0)), min_size=1, unique=True),
    chunk_bytes=st.sampled_from((4096, 3 * 4096, 2**20)),
    world_size=st.integers(1, 6),
    max_shard_bytes=st.none() | st.integers(100, 30_000),
)
def test_any_chunks_and_any_ranks_write_what_is_computed_whole_in_memory(
    floats: Any,
    integers: Any,
    case: str,
    dtype: torch.dtype,
    alphas: list[float],
    chunk_bytes: int,
    world_size: int,
    max_shard_bytes: int | None,
):
    count = 1 + number_of_models(case)
    tensors: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for model in range(count):
        for index, (shape, first, others) in enumerate(floats):
            tensors[model][f"{'head' if index == 2 else 'visual'}.{index}"] = tensor(
                shape, others if model else first, 10 * model + index
            )
        for index, (shape, kind) in enumerate(integers):
            tensors[model][f"ids.{index}"] = tensor(shape, kind, 20 * model + index)
    with TemporaryDirectory() as scratch, opened(Path(scratch) / "models", tensors) as models:
        options = {"dtype": dtype, "max_shard_bytes": max_shard_bytes}
        staging = written_by_ranks(models, case, Path(scratch) / "s", alphas, world_size, chunk_bytes, **options)
        write(models, Path(scratch) / "out", alphas, METHODS[case](), **options)
        for alpha in alphas:
            whole, wanted = Path(scratch) / "out" / f"alpha_{alpha}", expected(tensors, case, alpha, dtype)
            found: dict[str, Tensor] = {}
            for file in whole.glob("*.safetensors"):
                found |= safetensors.torch.load_file(file)
                assert (staging.ensemble(alpha) / file.name).read_bytes() == file.read_bytes()
            assert found.keys() == wanted.keys()
            assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []
            assert is_committed(whole)


def test_data_begins_at_a_page_and_the_safetensors_library_reads_it(tmp_path: Path):
    tensors = two_models()
    with opened(tmp_path / "models", tensors) as models:
        write(models, tmp_path / "out", [1.0])
    file = tmp_path / "out" / "alpha_1.0" / WEIGHTS_FILE
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % 4096 == 0
    with safetensors.safe_open(file, "pt") as read:
        assert set(read.keys()) == {"visual.a", "visual.b", "ids"}
        assert same_bits(read.get_tensor("visual.b"), tensors[1]["visual.b"])


def test_shards_hold_no_more_than_asked_for_and_an_index_names_their_tensors(tmp_path: Path):
    tensors = [
        {f"visual.{index}": tensor((1000,), torch.float32, seed + index) for index in range(7)} for seed in (0, 9)
    ]
    for model in tensors:
        model["visual.large"], model["head.bias"] = torch.ones(9000), torch.ones(3)
    with opened(tmp_path / "models", tensors) as models:
        write(models, tmp_path / "out", [1.0], max_shard_bytes=8000)
    folder = tmp_path / "out" / "alpha_1.0"
    index = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    shards = {file: safetensors.torch.load_file(folder / file) for file in set(index.values())}
    assert {name: file for file, held in shards.items() for name in held} == index
    assert sorted(shards) == [HEAD_FILE, *(f"model-0000{number}-of-00005.safetensors" for number in range(1, 6))]
    sizes = {file: sum(value.nbytes for value in held.values()) for file, held in shards.items()}
    assert [file for file in shards if sizes[file] > 8000] == [index["visual.large"]] and len(
        shards[index["visual.large"]]
    ) == 1
    with open_weights(folder) as read:
        assert read.keys() == tensors[1].keys()
        assert all(same_bits(read.tensor(name), value) for name, value in tensors[1].items())


def test_the_record_does_not_depend_on_when_or_by_how_many_threads_it_was_written(tmp_path: Path):
    with opened(tmp_path / "models", two_models()) as models:
        for threads in (1, 3):
            write(models, tmp_path / f"out_{threads}", threads=threads, chunk_bytes=4096)
    assert files_of(tmp_path / "out_1") == files_of(tmp_path / "out_3")


def test_the_digest_of_an_input_tells_its_content_and_not_its_files(tmp_path: Path):
    heard: list[Inputs] = []

    def listen(alpha: float, inputs: Inputs) -> dict[str, bytes]:
        heard.append(list(inputs))
        return {"model.json": json.dumps([alpha, *inputs]).encode()}

    tensors = two_models()
    changed = [tensors[0], tensors[1] | {"visual.a": tensors[1]["visual.a"].clone()}]
    changed[1]["visual.a"][4321] += 1.0
    with opened(tmp_path / "models", tensors) as models:
        write(models, tmp_path / "out", [0.0, 0.5], side_files=listen)
        write(models, tmp_path / "shards", [1.0], max_shard_bytes=10**6)
    torch.save(tensors[1], tmp_path / "1.pt")
    with open_weights(tmp_path / "models" / "0.safetensors") as first, open_weights(tmp_path / "1.pt") as second:
        write(match(first, [second]), tmp_path / "out_pt", [0.5], side_files=listen)
    with opened(tmp_path / "changed", changed) as models:
        write(models, tmp_path / "out_changed", [0.5], side_files=listen)
    assert heard[0] == heard[1] == heard[2] and len(set(heard[0])) == 2
    assert heard[3][0] == heard[0][0] and heard[3][1] != heard[0][1]
    assert read_commit(tmp_path / "out" / "alpha_0.5")["files"]["model.json"]["bytes"] > 60


def test_what_is_taken_is_the_fine_tuned_models_at_every_alpha(tmp_path: Path):
    first, second = two_models()
    del first["head.weight"]
    with opened(tmp_path / "models", [first, second], take=("head.*",)) as models:
        write(models, tmp_path / "out")
    for alpha in (0.0, 0.3, 1.0):
        head = safetensors.torch.load_file(tmp_path / "out" / f"alpha_{alpha}" / HEAD_FILE)
        assert same_bits(head["head.weight"], second["head.weight"])


def test_a_refused_input_leaves_nothing(tmp_path: Path):
    tensors = two_models()
    tensors[1]["visual.b"][2, 5] = float("nan")
    with opened(tmp_path / "models", tensors) as models:
        place = rf"1\.safetensors: tensor visual\.b .* holds nan at element {2 * 1666 + 5}\."
        with pytest.raises(UserError, match=place):
            write(models, tmp_path / "out", chunk_bytes=4096)
        assert files_of(tmp_path / "out") == {}
        write(models, tmp_path / "out", allow_nonfinite=True)
    assert safetensors.torch.load_file(tmp_path / "out" / "alpha_1.0" / WEIGHTS_FILE)["visual.b"][2, 5].isnan()


@pytest.mark.parametrize("case", ["wise", "slerp", "ties", "model_stock", "task_arithmetic", "uniform_soup"])
def test_a_mask_of_infinities_that_is_the_same_everywhere_stays_to_the_bit_and_leaves_the_rest_alone(
    tmp_path: Path, case: str
):
    count = 1 + number_of_models(case)
    plain = [{"w": tensor((3000,), torch.float32, seed), "mask": torch.zeros(40, 40)} for seed in range(count)]
    mask = torch.full((40, 40), float("-inf")).triu(1)
    mask[3, 0], mask[4, 0] = float("nan"), -0.0
    with opened(tmp_path / "models", [model | {"mask": mask} for model in plain]) as models:
        with pytest.raises(UserError, match=r"tensor mask .* holds -inf at .* of -inf, pass --allow-nonfinite"):
            write(models, tmp_path / "out", [0.3], METHODS[case]())
        write(models, tmp_path / "out", [0.3, 1.0], METHODS[case](), allow_nonfinite=True, chunk_bytes=4096)
    for alpha in (0.3, 1.0):
        found = safetensors.torch.load_file(tmp_path / "out" / f"alpha_{alpha}" / WEIGHTS_FILE)
        assert same_bits(found["mask"], mask)
        assert same_bits(found["w"], expected(plain, case, alpha, torch.float32)["w"])


@contextmanager
def with_information(folder: Path, information: Sequence[Model]) -> Iterator[Models]:
    """Two small models, and what their Fisher information is said to be."""
    with opened(folder / "models", [{"w": torch.ones(3)}, {"w": torch.zeros(3)}]) as models:
        for index, values in enumerate(information):
            safetensors.torch.save_file(dict(values), folder / f"fisher_{index}.safetensors")
        fisher = [open_weights(folder / f"fisher_{index}.safetensors") for index in range(2)]
        yield match(models.zero_shot, models.finetuned, fisher=fisher)
        for each in fisher:
            each.close()


def test_fisher_information_may_be_more_than_the_written_dtype_holds(tmp_path: Path):
    information = [{"w": torch.full((3,), value)} for value in (3e6, 1e6)]
    with with_information(tmp_path, information) as models:
        write(models, tmp_path / "out", [0.5], Fisher(), dtype=torch.float16)
    found = safetensors.torch.load_file(tmp_path / "out" / "alpha_0.5" / WEIGHTS_FILE)["w"]
    assert found.tolist() == [0.75] * 3


@pytest.mark.parametrize("allow_nonfinite", [False, True])
def test_negative_fisher_information_is_refused(tmp_path: Path, allow_nonfinite: bool):
    information = [{"w": torch.ones(3)}, {"w": torch.tensor([1.0, -0.0, -2.0])}]
    named = r"fisher_1\.safetensors: tensor w .* holds -2\.0 at element 2\. Fisher information is never negative"
    with with_information(tmp_path, information) as models, pytest.raises(UserError, match=named):
        write(models, tmp_path / "out", [0.5], Fisher(), allow_nonfinite=allow_nonfinite)
    assert files_of(tmp_path / "out") == {}


def test_a_tensor_whose_name_the_format_needs_is_refused(tmp_path: Path):
    torch.save({"__metadata__": torch.ones(2), "v": torch.ones(2)}, tmp_path / "0.pt")
    with open_weights(tmp_path / "0.pt") as weights, pytest.raises(UserError, match="tensor __metadata__: safetensors"):
        write(match(weights, [weights]), tmp_path / "out")
    assert files_of(tmp_path / "out") == {}


def test_a_mixture_that_the_written_dtype_cannot_hold_is_refused(tmp_path: Path):
    tensors = [{"w": torch.full((3,), value)} for value in (4e4, 6e4, 6e4)]
    with (
        opened(tmp_path / "models", tensors) as models,
        pytest.raises(UserError, match=r"tensor w becomes inf at .* 0\."),
    ):
        write(models, tmp_path / "out", [1.0], METHODS["task_arithmetic"](), dtype=torch.float16)
    assert files_of(tmp_path / "out") == {}


@contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """A lower limit of the system for this process."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


def largest_file(num_bytes: int) -> AbstractContextManager[None]:
    """A disk that takes no longer files, as far as this process can tell."""
    return limited(resource.RLIMIT_FSIZE, num_bytes)


def test_where_there_is_no_room_nothing_is_left(tmp_path: Path):
    with opened(tmp_path / "models", two_models(50_000)) as models:
        before = files_of(tmp_path / "models")
        with largest_file(100_000), pytest.raises(RunError, match=rf"{WEIGHTS_FILE}: no room for .* too large"):
            write(models, tmp_path / "out")
    assert files_of(tmp_path / "out") == {} and files_of(tmp_path / "models") == before


def test_a_disk_that_fails_in_the_middle_loses_only_what_was_unfinished(tmp_path: Path):
    with opened(tmp_path / "models", two_models(50_000)) as models:
        write(models, tmp_path / "undisturbed", chunk_bytes=4096)

        def fail_at_last(alpha: float, inputs: Inputs) -> dict[str, bytes]:
            raise RunError("the disk failed")

        with pytest.raises(RunError, match="the disk failed"):
            write(models, tmp_path / "out", chunk_bytes=4096, side_files=fail_at_last)
        damaged = next((tmp_path / "out").glob(f".merge-*/alpha_0.30/{WEIGHTS_FILE}"))
        with damaged.open("r+b") as file:  # as after a power cut: the journal knows of a chunk that the disk does not
            file.seek(3 * 4096)
            file.write(b"\0" * 10)
        written = write(models, tmp_path / "out", chunk_bytes=4096)
    assert written.num_chunks_kept == written.num_chunks - 1 > 50
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


def test_a_write_that_fails_names_the_file_and_keeps_what_is_finished(tmp_path: Path):
    with opened(tmp_path / "models", two_models(50_000)) as models:
        files = lay_out(models.records, dtype=torch.float32)
        staging, chunks = Staging(tmp_path / "staging"), cut(files, 4096)
        staging.folder.mkdir()
        staging.prepare([0.5], files)
        inputs = InputReader(models, torch.float32, False)
        work = Work(inputs, Wise(), [0.5], chunks, 4096, staging, 1, {})
        with largest_file(100_000), pytest.raises(RunError, match=rf"{WEIGHTS_FILE}: writing failed at byte \d+: File"):
            do_share(work, rank=0, world_size=1, num_threads=2)
    lines = (staging.folder / "journal-0001-00000.jsonl").read_text().splitlines()
    assert 10 < len(lines) < len(chunks)


def test_an_input_that_is_gone_or_cut_short_is_named(tmp_path: Path):
    with opened(tmp_path / "models", two_models()) as models:
        os.truncate(tmp_path / "models" / "1.safetensors", 9000)
        with pytest.raises(UserError, match=r"1\.safetensors: ends at byte 9000"):
            write(models, tmp_path / "out")
        assert files_of(tmp_path / "out") == {}
    with opened(tmp_path / "models", two_models()) as models:
        (tmp_path / "models" / "1.safetensors").unlink()
        with pytest.raises(RunError, match=r"1\.safetensors: is no longer there"):
            write(models, tmp_path / "out")
        assert files_of(tmp_path / "out") == {}


@pytest.mark.parametrize("what", ["overwritten", "gone"])
def test_an_input_that_changes_while_it_is_merged_gives_no_ensemble(tmp_path: Path, what: str):
    first, second = two_models()
    path = tmp_path / "models" / "1.safetensors"

    class Disturbed(Wise):
        """Somebody meddles with theta_1 as soon as the plan is made."""

        def begin(self, sizes: Mapping[str, int]) -> None:
            if what == "gone":
                path.rename(tmp_path / "elsewhere")
            else:
                safetensors.torch.save_file(first, path)

    said = {"overwritten": "changed while it was merged. Merge again", "gone": "is no longer there"}[what]
    with opened(tmp_path / "models", [first, second]) as models:
        models.finetuned[0].read("visual.a")
        with pytest.raises(RunError, match=rf"1\.safetensors: {said}"):
            write(models, tmp_path / "out", method=Disturbed())
    assert not list((tmp_path / "out").glob("alpha*"))
    assert what == "gone" or files_of(tmp_path / "out") == {}


def test_more_alphas_than_files_that_may_be_open_at_first_are_written(tmp_path: Path):
    alphas = [number / 99 for number in range(100)]
    few = 20 + len(list(Path("/proc/self/fd").iterdir()))
    with opened(tmp_path / "models", two_models(30)) as models, limited(resource.RLIMIT_NOFILE, few):
        write(models, tmp_path / "out", alphas)
    assert sum(is_committed(folder) for folder in (tmp_path / "out").iterdir()) == 100


def test_another_plan_does_not_go_on_from_the_chunks_of_this(tmp_path: Path):
    def fail(alpha: float, inputs: Inputs) -> dict[str, bytes]:
        raise RunError("interrupted")

    first, second = two_models()
    with opened(tmp_path / "models", [first, second]) as models:
        for settings_ in ({"seed": 1}, {"seed": 2}):
            with pytest.raises(RunError, match="interrupted"):
                write(models, tmp_path / "out", side_files=fail, settings=settings_)
            assert len(list((tmp_path / "out").glob(".merge-*"))) == 1
        assert write(models, tmp_path / "out", settings={"seed": 1}).num_chunks_kept == 0
        assert not list((tmp_path / "out").glob(".merge-*"))


def test_a_folder_that_another_process_merges_into_is_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    lock = tmp_path / "out" / LOCK_FILE
    lock.touch()
    holder = os.open(lock, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with opened(tmp_path / "models", two_models()) as models:
        with pytest.raises(UserError, match="another merge is writing here"):
            write(models, tmp_path / "out")
        os.close(holder)
        write(models, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"alpha_0.0", "alpha_0.3", "alpha_1.0"}


def test_an_uncommitted_folder_in_the_place_of_an_ensemble_is_replaced(tmp_path: Path):
    (tmp_path / "out" / "alpha_0.3").mkdir(parents=True)
    (tmp_path / "out" / "alpha_0.3" / "junk").touch()
    with opened(tmp_path / "models", two_models()) as models:
        write(models, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "alpha_0.3").iterdir()} == {WEIGHTS_FILE, HEAD_FILE, COMMIT_FILE}


def test_an_ensemble_that_was_committed_meanwhile_is_not_replaced(tmp_path: Path):
    with opened(tmp_path / "models", two_models()) as models:
        write(models, tmp_path / "out", [0.3])
        before = files_of(tmp_path / "out" / "alpha_0.3")
        with pytest.raises(UserError, match=r"alpha_0\.3: is there already"):
            write(models, tmp_path / "out", [0.3], dtype=torch.bfloat16)
    assert files_of(tmp_path / "out" / "alpha_0.3") == before


def test_hidden_folders_of_others_stay(tmp_path: Path):
    (tmp_path / "out" / ".merge-notes").mkdir(parents=True)
    (tmp_path / "out" / ".merge-notes" / "mine.txt").touch()
    with opened(tmp_path / "models", two_models()) as models:
        write(models, tmp_path / "out")
    assert (tmp_path / "out" / ".merge-notes" / "mine.txt").is_file()


def test_small_files_that_find_no_room_are_named_and_the_next_attempt_goes_on(tmp_path: Path):
    with opened(tmp_path / "models", two_models()) as models:
        large = {"notes.txt": b"x" * 200_000}
        with (
            largest_file(100_000),
            pytest.raises(RunError, match=r"alpha_0\.00: cannot be written: File too large\. Free space"),
        ):
            write(models, tmp_path / "out", side_files=lambda alpha, inputs: large)
        written = write(models, tmp_path / "out", side_files=lambda alpha, inputs: large)
    assert written.num_chunks_kept == written.num_chunks and is_committed(tmp_path / "out" / "alpha_0.3")


def test_a_plan_that_finds_no_room_is_named(tmp_path: Path):
    with (
        opened(tmp_path / "models", two_models()) as models,
        largest_file(100),
        pytest.raises(RunError, match=r"\.merge-\w+: cannot be written: File too large"),
    ):
        write(models, tmp_path / "out")
    assert not list((tmp_path / "out").glob("alpha*"))
