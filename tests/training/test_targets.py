"""Several target tasks: their turns, one score of several, and alignment with each of them in the records."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import runs
from tests.cases import Pool
from tests.commands import SMALL, configured, save_base
from winnow.callbacks import Records
from winnow.data.steps import Turns
from winnow.records.ledger import SCHEMA, read
from winnow.report.ledger import print_ledger, summarise
from winnow.run import run
from winnow.run.instantiate import BuildError
from winnow.selectors import FilterWeight, Less, TracIn


def world(*weights: float) -> Any:
    built = runs.corpus(targets=len(weights))
    targets = [
        replace(
            target, weight=weight, val=[replace(one, prompt=f"{at}: {one.prompt}") for at, one in enumerate(target.val)]
        )
        for target, weight in zip(built.targets, weights, strict=True)
    ]
    return replace(built, targets=targets)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.2, 0.5, 0.3)])
def test_targets_take_turns_by_weight_never_a_turn_behind(weights: tuple[float, ...]) -> None:
    turns, shares = Turns(weights), np.array(weights) / sum(weights)
    order = [turns[step][0] for step in range(60)]
    for steps in range(1, 61):
        counts = np.bincount(order[:steps], minlength=len(weights))
        assert np.abs(counts - shares * steps).max() < 1
    assert [Turns(weights)[step] for step in (59, 7, 30)] == [turns[step] for step in (59, 7, 30)]
    assert all(turns[step][1] == order[:step].count(order[step]) for step in range(60))


def test_round_robin_batches_are_of_one_target_and_go_through_its_split() -> None:
    steps = runs.datamodule(corpus=world(3.0, 1.0), target_batch_size=5, target_order="round_robin").steps
    batches = [steps.target_batch(step) for step in range(16)]
    assert all(len(set(batch["task"].tolist())) == 1 for batch in batches)
    assert all(torch.equal(batch["weight"], torch.full((5,), 0.2)) for batch in batches)
    tasks = [int(batch["task"][0]) for batch in batches]
    assert tasks.count(0) == 12 and tasks.count(1) == 4
    for task, laps in ((0, 6), (1, 2)):
        rows = [
            tuple(ids[ids != steps.pad].tolist()) for b in batches if b["task"][0] == task for ids in b["input_ids"]
        ]
        assert set(Counter(rows).values()) == {laps} and len(set(rows)) == 10
    with pytest.raises(ValueError, match=r"data\.target_order must be one of shared, round_robin; got 'x'"):
        runs.datamodule(target_order="x")


def test_the_ids_of_all_pools_are_those_that_are_served() -> None:
    steps = runs.datamodule(corpus=runs.corpus(20)).steps
    served = [steps[epoch, step]["meta"]["id"] for epoch in (0, 1) for step in (0, 1)]
    assert list(islice(steps.pool_ids(), 4)) == served


def test_max_and_mean_over_tasks_by_their_definition() -> None:
    pool = Pool.draw(12)
    unit = pool.tasks / pool.tasks.norm(dim=1, keepdim=True)
    found = TracIn(aggregate="max")
    expected = (pool.gradients @ unit.T).max(1).values
    torch.testing.assert_close(found.scores(pool.signals(found.needs)), expected)
    assert set(found(pool.signals(found.needs)).index.tolist()) == set(expected.topk(4).indices.tolist())
    mean = Less(aggregate="mean")
    cosines = torch.stack([torch.cosine_similarity(pool.gradients * pool.diagonal, one[None]) for one in pool.tasks])
    torch.testing.assert_close(mean.scores(pool.signals(mean.needs)), cosines.mean(0))
    for selector in (TracIn, Less):
        with pytest.raises(ValueError, match=r"selector\.aggregate must be one of max, mean; got 'sum'"):
            selector(aggregate="sum")


def test_alignment_with_each_target_is_in_the_ledger_and_adds_up(tmp_path: Path, capsys: Any) -> None:
    records = Records(str(tmp_path))
    data = runs.datamodule(corpus=world(3.0, 1.0))
    runs.fit(FilterWeight(filter_size=2), steps=3, data=data, callbacks=[records], record_tasks=True)
    records.close()
    rows = read(tmp_path).to_pandas()
    parts = np.stack(rows["task_alignment"].to_numpy())
    assert parts.shape == (24, 2) and not np.allclose(parts[:, 0], parts[:, 1])
    np.testing.assert_allclose(parts @ [0.75, 0.25], rows["alignment"], rtol=1e-4, atol=1e-6)
    figures = summarise(tmp_path)
    np.testing.assert_allclose(figures["task_alignment"]["kept"], parts[rows["kept"]].mean(0), rtol=1e-5)
    from rich.console import Console

    print_ledger(figures, Console())
    assert "alignment, target 2" in capsys.readouterr().out

    # Not asked for: nothing is computed, and a ledger from before there was the column is read.
    plain = Records(str(tmp_path / "plain"))
    runs.fit(FilterWeight(filter_size=2), steps=1, data=data, callbacks=[plain])
    plain.close()
    assert read(tmp_path / "plain").to_pandas()["task_alignment"].isna().all()
    old = pq.read_table(tmp_path / "ledger.parquet").drop(["task_alignment"])
    pq.write_table(old, tmp_path / "old.parquet")
    table = read(tmp_path / "old.parquet")
    assert table.schema == SCHEMA and table["task_alignment"].null_count == 24
    assert isinstance(table, pa.Table) and table["alignment"].equals(
        pq.read_table(tmp_path / "ledger.parquet")["alignment"]
    )


TWO = "+data.corpus.targets.words=1.0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["baseline=less"], "round_robin has one target per step, and selector=less needs all of them"),
        (["record_tasks=true"], "one target per step, and record_tasks=true needs all of them"),
        (["scoring.every=2"], "scoring.every=2 would pass some of them over"),
    ],
    ids=["less", "record_tasks", "every"],
)
def test_what_needs_all_targets_is_refused_where_they_take_turns(overrides: list[str], message: str) -> None:
    save_base()
    given = (*SMALL, TWO, "data.target_order=round_robin", *overrides)
    with configured(*given) as cfg, pytest.raises(BuildError, match=message):
        run(cfg)


def test_a_run_with_turns_trains_and_records() -> None:
    save_base()
    with configured(*SMALL, TWO, "data.target_order=round_robin", "scoring.target_ema=0.5") as cfg:
        run(cfg)
    metrics = pd.read_csv("out/metrics.csv")
    assert metrics["target/words/val_nll"].count() == 2 and metrics["target/loss"].count() == 4
