from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_dist.config import MergeConfig, RunConfig, dump_config, load_config, parse_section
from wiseft_dist.errors import UserError

LEAST = "output: runs/mine\nmodel: {architecture: ViT-B-32}\ndata: {train: shards}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(LEAST)
    return path


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_the_least_configuration_has_the_papers_defaults(file):
    config = load_config(file)
    assert config.finetune.optimizer.lr == 3e-5
    assert config.merge.alphas == tuple(i / 10 for i in range(11))


def test_overrides_come_over_the_file(file):
    config = load_config(file, ["finetune.optimizer.lr=1e-4", "data.lanes=8", "data.shifts.a=x", "data.reference.b=y"])
    assert (config.finetune.optimizer.lr, config.data.lanes, config.data.evaluated) == (1e-4, 8, {"b": "y", "a": "x"})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("outptu", "output"),
        ("finetune.optimiser.lr", "finetune.optimizer"),
        ("finetune.optimizer.weight_decy", "finetune.optimizer.weight_decay"),
        ("finetune.lr", "finetune.optimizer.lr"),
        ("lr", "finetune.optimizer.lr"),
        ("finetune.alphas", "merge.alphas"),
        ("launch.finetune.node", "launch.finetune.nodes"),
        ("data.datasets.id_val.metrc", "data.datasets.id_val.metric"),
        ("data.datasets.id_val.class_maps", "data.datasets.id_val.class_map"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_right_one(file, key, nearest):
    wrong = key if "optimiser" not in key else "finetune.optimiser"
    assert refusal(file, f"{key}=1") == f"{file}: {wrong} is not a setting. Did you mean {nearest}?"


def test_a_key_like_no_other_is_answered_with_what_there_is(file):
    assert refusal(file, "wandb.zzz=1").endswith(
        "wandb.zzz is not a setting. Settings there: wandb.mode, wandb.project, wandb.entity, wandb.alerts, "
        "wandb.upload_model, wandb.finish_seconds."
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("finetune.epochs=many", "finetune.epochs is 'many': input should be a valid number"),
        ("finetune.global_batch_size=0", "finetune.global_batch_size is 0: input should be greater than 0"),
        ("finetune.precision=fp8", "finetune.precision is 'fp8': input should be 'fp32', 'bf16' or 'fp16'."),
        ("data=5", "data is 5: it is a section, with settings of its own under it."),
        ("data.train.x=1", "data.train is {'x': 1}: input should be a valid string."),
        ("seed=4294967296", "seed is 4294967296: input should be less than 4294967296"),
        ("finetune.checkpoint.keep_last=1", "finetune.checkpoint.keep_last is 1: the only checkpoint would be"),
        ("data.reference={a: x, b: y}", "data.reference names 2 datasets: give exactly one."),
        ("data.shifts={a: x}", "data.shifts needs a data.reference beside it"),
        ("data.reference={train: x}", "dataset name 'train'"),
        ("data.reference={id_val: x}", "dataset name 'id_val'"),
        ("data.reference={a/b: x}", "dataset name 'a/b'"),
        ("data.datasets={b: {metric: top1}}", "data.datasets describes 'b', but the run's datasets are id_val."),
        ("data.datasets.id_val.metric=top3", "data.datasets.id_val.metric is 'top3': input should be 'top1', "),
        ("data.datasets.id_val.metadata={x: csv:2}", "x stands at 'csv:2': write npy:INDEX or json:KEY."),
        ("data.datasets.id_val={group: g, metadata: {x: 'npy:2'}}", "group is 'g', but metadata has x."),
        ("data.datasets.id_val=5", "data.datasets.id_val is 5: it is a section, with settings of its own under it."),
        ("data.augment.crop_scale=[1.0, 0.5]", "data.augment.crop_scale is [1, 0.5]: give the smaller share first"),
        ("data.augment.crop_scale=[0.5, 1.5]", "neither above 1."),
        ("launch.report.nodes=2", "launch.report asks for 2 processes: this stage runs in one a job."),
        ("merge.density=0.5", "density is a setting of ties and dare, not of wise"),
        ("merge.models=[a]", "wise merges one fine-tuned model, not 2"),
        ("merge.method=model_stock", "model_stock needs two fine-tuned models or more"),
        ("merge.method=fisher", "fisher needs the Fisher information of 2 models"),
        ("merge.layers={a: {alpha: 1, scale: 1}}", "takes either alpha or scale"),
        ("merge.alphas=abc", "merge.alphas is 'abc': not a grid such as 0:1:0.1 nor a list such as 0,0.5,1."),
        ("merge.alphas=0:1:0", "not a grid"),
        ("merge.alphas=0:inf:1", "not a grid"),
        ("merge.alphas=0:1:0.3", "steps of 0.3 do not lead from 0 to 1."),
        ("merge.alphas=1:0:0.1", "steps of 0.1 do not lead from 1 to 0."),
        ("merge.alphas=0:1:1e-9", "steps of 1e-09 do not lead from 0 to 1."),
        ("merge.alphas=[0,1.5]", "alpha 1.5 is not between 0 (zero-shot) and 1 (fine-tuned)"),
        ("merge.alphas=-0.1", "alpha -0.1 is not between 0"),
        ("merge.alphas=0,0.5,0.5", "an alpha occurs twice"),
        ("merge.alphas=[]", "merge.alphas is []:"),
    ],
)
def test_a_wrong_value_is_answered_in_a_sentence_that_names_file_and_key(file, override, sentence):
    answer = refusal(file, override)
    assert answer.startswith(f"{file}: ")
    assert sentence in answer
    assert "\n" not in answer


def test_a_shift_named_like_the_reference_is_refused(file):
    answer = refusal(file, "data.reference.photo=x", "data.shifts.photo=y")
    assert answer == f"{file}: dataset 'photo' is both the reference and a shift."


def test_a_contrastive_run_with_a_reference_is_refused(file):
    assert "needs a classification head" in refusal(file, "finetune.recipe=contrastive", "data.reference.a=x")


def test_every_missing_key_is_named(file):
    file.write_text("model: {}\n")
    assert refusal(file).split("\n") == [
        f"{file}: output is missing.",
        f"{file}: model.architecture is missing.",
        f"{file}: data is missing.",
    ]


@pytest.mark.parametrize("override", ["finetune.epochs", "=5", "--lr"])
def test_a_malformed_override_is_refused(file, override):
    assert refusal(file, override).startswith(f"{override!r} is not of the form KEY=VALUE")


def test_an_environment_variable_that_is_not_set_is_named_with_file_and_key(file, monkeypatch):
    file.write_text(LEAST.replace("{train: shards}", "\n  train: ${oc.env:WISEFT_NO_SUCH}/train"))
    monkeypatch.delenv("WISEFT_NO_SUCH", raising=False)
    answer = refusal(file)
    assert answer.startswith(f"{file}: data.train needs the environment variable WISEFT_NO_SUCH, which is not set.")
    assert "KeyError" not in answer
    monkeypatch.setenv("WISEFT_NO_SUCH", "/data")
    assert load_config(file).data.train == "/data/train"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [\n", "not readable as YAML: line 2: "),
        ("a:\n\tb: 1\n", "not readable as YAML: line 2: "),
        (LEAST + "output: other\n", "not readable as YAML: line 4: output occurs twice"),
        ("- a\n", "expected settings such as `output: runs/mine`, found a list"),
        ("output: ${oc.env:HOME\n", "not readable as YAML: "),
        ("output: ${nowhere}\n", "output: Interpolation key 'nowhere' not found"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(file, text, reason):
    file.write_text(text)
    assert f"{file}: {reason}" in refusal(file)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert refusal(tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such configuration file."


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("0:1:0.5", [0.0, 0.5, 1.0]),  # in YAML 1.1 this is the number 60.5
        ("1:0:-0.25", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("0,0.5,1", [0.0, 0.5, 1.0]),
        ("0.5", [0.5]),
        ("[0, 0.125]", [0.0, 0.125]),
    ],
)
def test_alphas_are_a_grid_or_a_list(file, text, alphas):
    assert list(load_config(file, [f"merge.alphas={text}"]).merge.alphas) == alphas
    file.write_text(f"{LEAST}merge:\n  alphas: {text}\n")
    assert list(load_config(file).merge.alphas) == alphas


def test_a_section_alone_is_checked_with_its_source_in_the_sentence():
    with pytest.raises(UserError, match="wiseft merge: dtype is 'fp8'"):
        parse_section(MergeConfig, {"dtype": "fp8"}, source="wiseft merge")


TRICKY = ["a${b}c", "\\${x}", "\\\\${y}", "$", "{", "{0..3}.tar", "0:1:0.5", "1e-5", "no", "null", "12:30", "007", "~",
          "true", "é: #x", "1_000", ".5", "2020-01-01", "0x1F", "- a", "'", "???"]  # fmt: skip


@pytest.mark.parametrize("value", TRICKY)
def test_a_dumped_configuration_is_read_back_the_same_whatever_its_values_hold(tmp_path, value):
    settings = {"output": value, "model": {"architecture": value}, "data": {"train": value, "reference": {"a": value}}}
    config = RunConfig.model_validate(settings | {"merge": {"alphas": "0:1:0.1"}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_brace_range_can_be_given_as_an_override(file):
    assert load_config(file, ["data.train={a,b}/{0..3}.tar"]).data.train == "{a,b}/{0..3}.tar"


def test_the_pacs_example_is_a_right_configuration(monkeypatch):
    monkeypatch.setenv("WISEFT_TEST_DATA", "/data")
    config = load_config(Path(__file__).parents[1] / "configs" / "pacs.yaml")
    assert config.data.train == "/data/data/pacs/photo/train"
