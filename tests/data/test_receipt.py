from __future__ import annotations

import numpy as np
import pytest

from wiseft_dist.data.receipt import Account, BadSample
from wiseft_dist.errors import RunError


def bad(position: int) -> BadSample:
    return BadSample(position, "0.tar", f"s{position}", "does not decode: noise")


def test_an_epoch_that_was_seen_whole_by_all_ranks_says_so():
    accounts = [Account(10, max_bad=0, first_position=0) for _ in range(2)]
    for rank, account in enumerate(accounts):
        account.add(np.arange(rank, 14, 2), ())
    receipt = accounts[0].close(0, [account.share(0) for account in accounts])
    assert str(receipt) == "epoch 0: 10 of 10 seen"
    assert [account.share(1)[0] for account in accounts] == [2, 2]


def test_what_earlier_sessions_saw_is_counted():
    account = Account(10, max_bad=0, first_position=13)
    account.add(np.arange(13, 20), ())
    assert account.close(1, [account.share(1)]).seen == 10


@pytest.mark.parametrize("positions", [range(9), [*range(10), 3]])
def test_a_position_that_is_missing_or_came_twice_is_an_error(positions):
    account = Account(10, max_bad=0, first_position=0)
    account.add(np.asarray(positions), ())
    with pytest.raises(RunError, match=r"epoch 0: (9|11) of 10 seen"):
        account.close(0, [account.share(0)])


def test_skipped_samples_are_named_in_the_receipt():
    account = Account(10, max_bad=2, first_position=0)
    account.add(np.arange(10), (bad(7), bad(2)))
    receipt = account.close(0, [account.share(0)])
    assert str(receipt) == "epoch 0: 10 of 10 seen, 2 skipped"
    assert [str(entry) for entry in receipt.bad] == [
        "0.tar: sample 's2' does not decode: noise",
        "0.tar: sample 's7' does not decode: noise",
    ]


def test_one_bad_sample_too_many_stops_at_once_and_names_it():
    account = Account(10, max_bad=1, first_position=0)
    account.add(np.arange(5), (bad(3),))
    with pytest.raises(RunError, match="'s4' does not decode: noise; 2 skipped so far, 1 may be"):
        account.add(np.arange(5, 10), (bad(4),))


def test_the_limit_holds_over_all_ranks_and_for_each_epoch_alone():
    accounts = [Account(10, max_bad=1, first_position=0) for _ in range(2)]
    for rank, account in enumerate(accounts):
        account.add(np.arange(rank, 10, 2), (bad(rank),))
    with pytest.raises(RunError, match="2 skipped so far"):
        accounts[0].close(0, [account.share(0) for account in accounts])
    account = Account(10, max_bad=1, first_position=0)
    account.add(np.arange(20), (bad(3), bad(13)))
    assert len(account.close(1, [account.share(1)]).bad) == 1
