"""The table of the matrix: a fault a row, a stage a column, in each cell how the run came to its end."""

from __future__ import annotations

from collections.abc import Mapping

from fault_world import STAGES
from faults import FAULTS

HEADINGS = {"finetune": "fine-tuning", "merge": "merging", "evaluate": "evaluation"}
FAILED = "**FAILED**"
NOT_RUN = "not run"


def outcome_table(endings: Mapping[tuple[str, str], str]) -> str:
    """Markdown.

    Args:
        endings: By stage and the fault's name, of the cells that were tried.
    """
    columns = [HEADINGS[stage] for stage in STAGES]
    lines = [_row(["fault", *columns]), _row(["---"] * (1 + len(STAGES)))]
    for fault in FAULTS:
        cells = [endings.get((stage, fault.name), NOT_RUN) if stage in fault.stages else "-" for stage in STAGES]
        lines.append(_row([fault.name, *cells]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
