from __future__ import annotations

import shutil

import pytest

from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells import Cell, CellStore
from wiseft_dist.report.results import gather, interval


@pytest.mark.parametrize(
    ("num_correct", "num_samples", "low", "high"),
    [
        (8, 10, 0.443904538, 0.974789274),
        (0, 10, 0.0, 0.308497106),  # 1 - 0.025 ** (1 / 10)
        (10, 10, 0.691502894, 1.0),
        (1, 2, 0.012579117, 0.987420883),  # 1 - sqrt(0.975)
    ],
)
def test_intervals_are_clopper_and_pearsons(num_correct, num_samples, low, high):
    assert interval(Cell("photo", 0.5, num_samples, num_correct)) == pytest.approx((low, high), abs=1e-8)


def test_missing_cells_are_named_with_the_command_that_makes_them(copied):
    config = copied.load_config()
    for alpha in (0.0, 1.0):
        shutil.rmtree(CellStore(config, copied).folder("clipart", alpha))
    with pytest.raises(
        RunError, match=r"clipart has no result for alpha 0\.0, 1\.0\. Run `wiseft evaluate .* clipart`"
    ):
        gather(config, copied)


def test_the_average_of_the_shifts_counts_every_shift_alike(finished):
    results = gather(finished.config, finished.run)
    for alpha in results.alphas:
        two = [results.cells[name, alpha].top1 for name in ("sketch", "clipart")]
        assert results.shift_average[alpha] == pytest.approx(sum(two) / 2)


def test_alphas_are_reported_in_rising_order_however_they_were_listed(finished):
    config = finished.config
    shuffled = config.model_copy(update={"merge": config.merge.model_copy(update={"alphas": (1.0, 0.0, 0.5)})})
    assert gather(shuffled, finished.run).alphas == (0.0, 0.5, 1.0)
