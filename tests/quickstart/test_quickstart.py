"""The first command of the README, for real."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from wiseft_dist.quickstart.road import REFERENCE, SIZES
from wiseft_dist.quickstart.world import DOMAINS

SHIFTS = [domain for domain in DOMAINS if domain != REFERENCE]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the quickstart wrote, and what it printed."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    command = [sys.executable, "-m", "wiseft_dist", "quickstart", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


@pytest.fixture(scope="module")
def top1(finished: tuple[Path, str]) -> dict[tuple[str, float], float]:
    with (finished[0] / "finetune" / "report" / "results.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {int(row["num_samples"]) for row in rows} == {SIZES["test"]}
    return {(row["dataset"], float(row["alpha"])): float(row["top1"]) for row in rows}


def test_the_quickstart_scores_eleven_alphas_on_every_domain(top1: dict[tuple[str, float], float]) -> None:
    assert sorted(top1) == sorted((domain, index / 10) for domain in DOMAINS for index in range(11))


def test_fine_tuning_gains_on_the_reference_and_loses_on_the_shifts(top1: dict[tuple[str, float], float]) -> None:
    assert top1[REFERENCE, 1.0] > top1[REFERENCE, 0.0]
    assert sum(top1[shift, 1.0] for shift in SHIFTS) < sum(top1[shift, 0.0] for shift in SHIFTS)


def test_an_ensemble_beats_the_fine_tuned_model_on_the_shifts_without_losing_on_the_reference(
    top1: dict[tuple[str, float], float],
) -> None:
    def shift_average(alpha: float) -> float:
        return sum(top1[shift, alpha] for shift in SHIFTS) / len(SHIFTS)

    assert any(
        shift_average(alpha) > shift_average(1.0) and top1[REFERENCE, alpha] >= top1[REFERENCE, 1.0] - 0.01
        for alpha in (index / 10 for index in range(1, 10))
    )


def test_the_table_names_both_ends_and_both_choices(finished: tuple[Path, str]) -> None:
    output, printed = finished
    for row in ("zero-shot", "fine-tuned", "ensemble, fixed", "ensemble, chosen"):
        assert row in printed
    assert (output / "finetune" / "report" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_quickstart_run_again_finds_everything_done(finished: tuple[Path, str]) -> None:
    output, printed = finished
    command = [sys.executable, "-m", "wiseft_dist", "quickstart", "--output", str(output)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "done (" not in again.stderr
    assert again.stdout == printed
