"""What a sweep prints at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from wiseft_dist.launch.sweep.directory import SOUP, Member, Sweep
from wiseft_dist.launch.sweep.results import Point, Results, Row
from wiseft_dist.launch.sweep.states import RunState
from wiseft_dist.launch.sweep.table import results_table


def results(settings: dict[str, object]) -> Results:
    name = ",".join(f"{key.split('.')[-1]}={value}" for key, value in settings.items())
    points = {each: Point(0.5, 0.8512, 0.7001) for each in ("zero_shot", "fixed", "chosen", "finetuned")}
    rows = (
        Row(name, settings, RunState(name, "finished"), 0.8765, points),
        Row("other", settings, RunState("other", "out_of_memory", "finetune"), None, None),
        Row(SOUP, {}, RunState(SOUP, "not_started"), None, None),
    )
    members = (Member(name, settings), Member("other", settings))
    return Results(Sweep(Path("sweep"), tuple(settings), members, "uniform", False), rows, is_at_work=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"finetune.optimizer.lr": 1e-5},
        {"finetune.optimizer.lr": 1e-5, "finetune.epochs": 5, "seed": 3},
        {"data.train": "s3://a-bucket/of/many/" + "pictures-" * 20 + "{0000..0146}.tar"},
        {f"finetune.setting_{number}": "値" * 30 for number in range(9)},
        {f"finetune.a_setting_with_quite_a_name_{number}": number for number in range(30)},
    ],
    ids=["one", "three", "long value", "wide values", "thirty"],
)
def test_a_sweep_s_table_fits_a_hundred_columns_and_a_run_is_a_line(settings):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(results_table(results(settings)))
    lines = capture.get().splitlines()
    assert max(map(cell_len, lines)) <= 100
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == 3
    assert "* 87.6" in rows[0] and rows[0].replace(" / ", "/").count("85.1/70.0") == 4
    assert "out of memory" in rows[1]
