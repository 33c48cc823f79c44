from __future__ import annotations

import pytest

from wiseft_dist.evaluate.statistics.selection import Choice, best_alpha, choose_alphas, oracle_of, reported_alpha


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


def test_without_a_reference_the_oracle_looks_at_the_shifts_alone():
    assert chosen(id_val={}, reference={}, shifts={0.0: 0.3, 0.5: 0.2, 1.0: 0.1}) == {
        "fixed": (0.5, False),
        "oracle": (0.0, True),
    }


def test_the_oracle_of_a_dataset_is_labelled_by_whether_it_saw_a_shift():
    accuracies = {0.0: 0.1, 0.3: 0.7, 1.0: 0.6}
    assert oracle_of(accuracies, is_shift=True) == Choice("oracle", 0.3, uses_shifts=True)
    assert oracle_of(accuracies, is_shift=False) == Choice("oracle", 0.3, uses_shifts=False)


def test_id_val_goes_before_the_fixed_alpha_and_an_oracle_is_never_reported():
    fixed, id_val = Choice("fixed", 0.5, uses_shifts=False), Choice("id_val", 0.8, uses_shifts=False)
    oracle = Choice("oracle", 0.4, uses_shifts=True)
    assert reported_alpha([fixed, id_val, oracle]) == 0.8
    assert reported_alpha([fixed, oracle]) == 0.5
    assert reported_alpha([oracle]) is None
