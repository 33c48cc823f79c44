from __future__ import annotations

import pytest

from wiseft_dist.evaluate.selection import best_alpha, choose_alphas


def chosen(**accuracies):
    return {choice.name: (choice.alpha, choice.uses_shifts) for choice in choose_alphas(**accuracies)}


def test_alpha_is_chosen_on_held_out_data_and_the_oracle_is_labelled_as_such():
    reference = {0.0: 0.60, 0.5: 0.70, 1.0: 0.80}
    assert chosen(
        id_val={0.0: 0.5, 0.5: 0.6, 1.0: 0.9}, reference=reference, shifts={0.0: 0.7, 0.5: 0.7, 1.0: 0.1}
    ) == {
        "fixed": (0.5, False),
        "id_val": (1.0, False),
        "oracle": (0.5, True),
    }


def test_without_held_out_data_or_shifts_only_the_fixed_alpha_is_left():
    assert chosen(id_val={}, reference={0.0: 0.1, 0.5: 0.2}, shifts={}) == {"fixed": (0.5, False)}


def test_without_one_half_in_the_grid_there_is_no_fixed_choice():
    assert chosen(id_val={0.0: 0.1, 1.0: 0.2}, reference={0.0: 0.1, 1.0: 0.2}, shifts={}) == {"id_val": (1.0, False)}


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ({0.1: 0.9, 0.4: 0.9, 1.0: 0.9}, 0.4),
        ({0.7: 0.9, 0.3: 0.9}, 0.3),  # as far from 0.5; in floating point 0.7 is nearer
        ({0.0: 0.1 + 0.2, 0.5: 0.3}, 0.5),  # equal but for the last bit
        ({0.0: 0.2}, 0.0),
    ],
)
def test_among_equals_the_alpha_nearest_to_one_half_wins(accuracies, best):
    assert best_alpha(accuracies) == best
