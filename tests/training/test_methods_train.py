"""Every method in the training loop: it trains, its scoring costs what it says, and it resumes exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests import runs
from tests.cases import CASES
from winnow.data import Corpus
from winnow.records.ledger import Ledger
from winnow.scorer import Scorer
from winnow.scorer.flops import Rate
from winnow.selectors import Random, Replay

SIZE = 3


def world():
    """Sources and hidden labels, and two targets."""
    plain = runs.corpus(targets=2)
    labels = ({"group": "in"}, {"group": "near", "noise": "wrong"}, {}, {"group": "near"})
    examples = [
        replace(example, source=("sums", "sums", "more")[at % 3], labels=labels[at % 4])
        for at, example in enumerate(plain.stream.examples)
    ]
    return Corpus(runs.Listed(examples), plain.targets)


def data():
    return runs.datamodule(corpus=world())


class Record(Callback):
    """What was kept at every step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(pl_module.last_step)

    @property
    def kept(self):
        return [
            dict(zip((one.meta["id"][at] for at in one.selection.index), one.selection.weight.tolist(), strict=True))
            for one in self.steps
        ]


class Half(Callback):
    """A checkpoint after two steps."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.folder / "half.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ledger of a random run of four steps, and reference losses of the whole stream."""
    at = tmp_path_factory.mktemp("methods")
    record = Record()
    runs.fit(Random(filter_size=SIZE), data=data(), callbacks=[record])
    ledger = Ledger(at / "run")
    for one in record.steps:
        ledger.append(one.step, one.meta, one.losses, None, one.selection)
    ledger.close()
    ids = [example.id for example in world().stream.examples]
    pd.DataFrame({"id": ids, "loss": [1 + at % 7 for at in range(len(ids))]}).to_csv(at / "reference.csv")
    return at


def variants(case, folder):
    if case.name == "replay":
        return [Replay(str(folder / "run"))]
    return case.every(**({} if case.keeps == "all" else {"filter_size": SIZE}))


def options(case, folder):
    reference = str(folder / "reference.csv") if case.name == "rho_loss" else None
    return {"scorer": partial(Scorer, reference=reference)}


APART = ("filter_weight", "gate_only")
"""Trained elsewhere: the second behind a gate, without which it has nothing to go by."""


def names(case):
    return f"{case.name}-{'+'.join(case.variants[0])}"


@pytest.fixture
def uncounted(monkeypatch):
    """What a pass costs is counted on tiny batches, which this test is not about."""
    monkeypatch.setattr("winnow.scorer.flops.Rates.__getitem__", lambda rates, kind: Rate())


@pytest.mark.parametrize("case", [case for case in CASES if case.name not in APART], ids=names)
def test_it_trains_and_pays_for_no_more_than_it_needs(case, folder, uncounted):
    start = torch.nn.utils.parameters_to_vector(runs.model().parameters())
    for selector in variants(case, folder):
        network, record, seen = runs.model(), Record(), Counter()
        network.register_forward_hook(lambda m, a, o, seen=seen: seen.update([torch.is_grad_enabled()]))
        module = runs.fit(selector, steps=2, network=network, data=data(), callbacks=[record], **options(case, folder))
        assert module.budget.steps == 2
        assert not torch.equal(torch.nn.utils.parameters_to_vector(network.parameters()), start)
        assert all(1 <= len(kept) <= (8 if case.keeps == "all" else SIZE) for kept in record.kept if kept)
        trained = module.budget.updates
        if selector.needs.backward:
            assert seen[True] >= trained + 2
        else:
            assert seen == Counter({True: trained, False: 2 if selector.needs.forward else 0})
        assert module.budget.examples_target == (8 if selector.needs.target else 0)


# Lightning looks for the position in the data loader; it is in the data module (StepSampler).
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("case", [case for case in CASES if case.state or case.name in ("replay", "less")], ids=names)
def test_it_resumes_as_if_never_stopped(case, folder, tmp_path):
    for one, other in zip(variants(case, folder), variants(case, folder), strict=True):
        record, rest = Record(), Record()
        whole = runs.fit(one, steps=4, data=data(), callbacks=[record, Half(tmp_path)], **options(case, folder))
        resumed = runs.module(runs.model(seed=5), other, **options(case, folder))
        trainer = runs.trainer(4, callbacks=[rest])
        trainer.fit(resumed, data(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
        assert rest.kept == record.kept[2:]
        for name, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value), name


def test_replay_repeats_the_run_on_another_model(folder):
    record = Record()
    runs.fit(Replay(str(folder / "run")), network=runs.model(seed=7), data=data(), callbacks=[record])
    rows = pd.read_parquet(folder / "run" / "ledger.parquet")
    expected = [dict(zip(part["id"], part["weight"], strict=True)) for _, part in rows[rows["kept"]].groupby("step")]
    assert record.kept == expected and len(expected) == 4
    with pytest.raises(ValueError, match="not in this pool"):
        runs.fit(Replay(str(folder / "run")), data=runs.datamodule(corpus=world(), seed=4))
