"""Replay makes the recorded choice whatever the pool's order, and the oracle goes by hidden labels."""

import pandas as pd
import pytest
import torch

from tests.cases import Pool
from tests.choosing import choose, frequencies
from winnow import selectors
from winnow.records.ledger import Ledger
from winnow.selection import Selection
from winnow.selectors.oracle import PATIENCE
from winnow.signals import META, Needs


def recorded(folder, steps):
    """A ledger of pools of twelve with what was kept at every step."""
    ledger = Ledger(folder)
    for step, kept in enumerate(steps):
        pool = Pool.draw(12)
        index = torch.tensor(sorted(kept), dtype=torch.long)
        weight = torch.tensor([kept[at] for at in sorted(kept)], dtype=torch.float32)
        ledger.append(step, {name: pool.meta[name] for name in META}, pool.losses, None, Selection(index, weight))
    ledger.close()
    return str(folder)


def test_replay_makes_the_recorded_choice_on_a_permuted_pool(tmp_path):
    steps = [{1: 0.5, 4: 1.5}, {}, {0: 1.0, 7: 2.0, 9: 0.25}]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    selector = selectors.Replay(recorded(tmp_path / "run", steps))
    for kept in steps:
        selection = choose(selector, Pool.draw(12)[order])
        found = {int(order[at]): weight for at, weight in zip(selection.index, selection.weight.tolist(), strict=True)}
        assert found == kept
    with pytest.raises(ValueError, match="ends after 3 pools"):
        choose(selector, Pool.draw(12))


def test_replay_counts_missing_ids_and_leaves_out_what_cannot_be_trained_on(tmp_path):
    path = recorded(tmp_path / "run", [{1: 0.5, 4: 1.5, 11: 1.0}])
    with pytest.raises(ValueError, match=r"2 of the 3 ids.*step 0.*example-4, example-11"):
        choose(selectors.Replay(path), Pool.draw(4))
    pool = Pool.draw(12)
    pool.valid[4] = False
    selection = choose(selectors.Replay(path), pool)
    assert selection.index.tolist() == [1, 11] and selection.diagnostics["dropped"] == 1.0
    part = pd.read_parquet(tmp_path / "run" / "ledger.parquet")
    part["step"] += 3
    part.to_parquet(tmp_path / "part.parquet")
    with pytest.raises(ValueError, match=r"selector\.ledger.*not the whole ledger"):
        choose(selectors.Replay(str(tmp_path / "part.parquet")), pool)


def test_replay_resumes(tmp_path):
    path = recorded(tmp_path / "run", [{at: 1.0} for at in range(5)])
    first, second = selectors.Replay(path), selectors.Replay(path)
    kept = [choose(first, Pool.draw(12)).index.tolist() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert kept + [choose(second, Pool.draw(12)).index.tolist() for _ in range(2)] == [[at] for at in range(5)]


def test_oracle_takes_clean_before_spoilt_and_near_before_far():
    pool = Pool.draw(8)
    pool.meta["group"] = ["", "near", "in", "in", "near", "in", "", "in"]
    pool.meta["noise"] = ["", "", "wrong", "", "", "", "shuffled", ""]
    order = [{3, 5, 7}, {1, 4}, {0}, {2}, {6}]
    for size in range(1, 9):
        found = frequencies(selectors.Oracle(filter_size=size), pool, times=30)
        left = size
        for rank in order:
            share = min(left, len(rank)) / len(rank)
            for at in rank:
                assert float(found[at]) == pytest.approx(share, abs=0.4 if 0 < share < 1 else 0)
            left = max(0, left - len(rank))
    assert choose(selectors.Oracle(filter_size=7), pool).diagnostics["clean"] == pytest.approx(6 / 7)


def test_oracle_refuses_a_stream_without_labels():
    pool, selector = Pool.draw(6), selectors.Oracle()
    pool.meta["group"] = pool.meta["noise"] = [""] * 6
    for _ in range(PATIENCE - 1):
        assert len(choose(selector, pool)) == 4
    with pytest.raises(ValueError, match="no hidden label"):
        choose(selector, pool)
    with pytest.raises(ValueError, match=r"signals\.meta"):
        selector(pool.signals(Needs()), torch.Generator())


def test_oracle_refuses_a_stream_of_other_groups_before_training():
    selector = selectors.Oracle()
    with pytest.raises(ValueError, match=r"the stream has none of the groups .*'\\x1bbeta', 'alpha': name those"):
        selector.check_groups(["alpha", "", "\x1bbeta"])
    selector.check_groups(["", ""])
    selector.check_groups(["alpha", "near"])


@pytest.mark.parametrize("known", ["from the start", "once seen", "resumed"])
def test_oracle_goes_on_where_the_groups_it_names_are_rare(known):
    pool, selector = Pool.draw(6), selectors.Oracle(filter_size=2)
    if known == "from the start":
        selector.check_groups(["in", "far"])
    else:
        pool.meta["group"] = ["in", *["far"] * 5]
        choose(selector, pool)
    if known == "resumed":
        state, selector = selector.state_dict(), selectors.Oracle(filter_size=2)
        selector.load_state_dict(state)
    pool.meta["group"] = ["far"] * 6
    for _ in range(2 * PATIENCE):
        assert len(choose(selector, pool)) == 2
