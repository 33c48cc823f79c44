from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import ALPHAS, dataset, interval, statistics, without_held_out
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from wiseft_dist.evaluate.statistics.statistics import ShiftAverage, Statistics
from wiseft_dist.report.table import summary_table
from wiseft_dist.terminal import shortened

LONG = "a_dataset_whose_name_says_every_detail_of_how_it_was_made_and_of_whom_it_is_and_when_v2"
WIDE = "野生の動物の写真を夜に撮ったデータセット" * 3


def printed(table: Table, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def of_shifts(*names: str) -> Statistics:
    shifts = {name: dataset(name, (600, 650, 500)) for name in names}
    averages = tuple(ShiftAverage(alpha, 0.6, interval(0.5, 0.7)) for alpha in ALPHAS) if names else ()
    reference = {"photo": dataset("photo", (700, 800, 850), role="reference")}
    return replace(
        statistics(), datasets=reference | shifts, shifts=names, shift_average=averages, averaged_shifts=names
    )


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("sketch",),
        ("sketch", "cartoon", "painting"),
        tuple(f"imagenet_{number}" for number in range(16)),
        tuple(f"imagenet_c_gaussian_noise_severity_{number}" for number in range(30)),
        (LONG,),
        tuple(f"{LONG}_{number}" for number in range(16)),
        (WIDE,),
        tuple(f"{WIDE}{number}" for number in range(30)),
    ],
    ids=["none", "one", "few", "16", "30", "long", "16 long", "wide", "30 wide"],
)
def test_a_table_fits_a_hundred_columns_and_a_row_is_a_line(names):
    lines = printed(summary_table(of_shifts(*names)))
    assert max(map(cell_len, lines)) <= 100
    rows = [line for line in lines if line.startswith("│")]
    is_transposed = any("dataset" in line for line in lines)
    # alpha, reference, average and shifts; or one for each of five models
    assert len(rows) == (3 + len(names) if is_transposed else 5)
    assert sum("60.0" in row for row in rows) >= bool(names)


def test_few_datasets_are_columns():
    lines = printed(summary_table(without_held_out(of_shifts("painting", "cartoon", "sketch"))))
    assert lines[2].split("┃")[1:-1] == [
        " model                             ",
        " alpha ",
        " photo ",
        " shift avg ",
        " painting ",
        " cartoon ",
        " sketch ",
    ]
    assert lines[4].split("│")[1:4] == [" zero-shot                         ", "     0 ", "  70.0 "]


def test_many_datasets_are_rows_and_the_models_are_columns():
    names = tuple(f"shift_{number:02}" for number in range(16))
    lines = printed(summary_table(of_shifts(*names)))
    assert [cell.strip() for cell in lines[2].split("┃")[1:-1]] == [
        "dataset",
        "zero-shot",
        "fine-tuned",
        "fixed",
        "on ID-val",
        "oracle",
    ]
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert table[:4] == [
        ["alpha", "0", "1", "0.5", "0.5", "1"],
        ["photo", "70.0", "85.0", "80.0", "80.0", "85.0"],
        ["shift avg", "60.0", "60.0", "60.0", "60.0", "60.0"],
        ["shift_00", "60.0", "50.0", "65.0", "65.0", "50.0"],
    ]
    assert "the oracle saw the shifts" in " ".join(lines)


def test_a_narrow_terminal_gets_a_narrow_table():
    lines = printed(summary_table(of_shifts(LONG, WIDE), 80), width=80)
    assert max(map(cell_len, lines)) <= 80
    assert len([line for line in lines if line.startswith("│")]) == 5


def test_markup_in_a_name_is_shown_as_it_is():
    assert "[red]x[/red]" in "\n".join(printed(summary_table(of_shifts("[red]x[/red]"))))


@pytest.mark.parametrize(
    ("text", "width", "at", "expected"),
    [
        ("sketch", 6, 0.5, "sketch"),
        ("abcdefghij", 7, 0.5, "abc…hij"),
        ("abcdefghij", 6, 0, "…fghij"),
        ("写真写真写真", 7, 0.5, "写…真"),
        ("写真写真写真", 12, 0.5, "写真写真写真"),
    ],
)
def test_the_middle_of_a_long_name_is_left_out(text, width, at, expected):
    assert shortened(text, width, at=at) == expected
    assert cell_len(shortened(text, width, at=at)) <= width
