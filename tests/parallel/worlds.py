"""Four steps of selection by one process, by two and by four: ``python worlds.py OUT core``."""

import logging
import multiprocessing
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests' own models

from tests.families import build, double, ragged
from winnow.lm.shards import gathered
from winnow.parallel import ParallelScorer, Ranks, Stratified
from winnow.parallel.base import shard_model
from winnow.parallel.traffic import count_traffic
from winnow.parallel.update import check_reached
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.selectors import DataShapley, Embedding, FilterWeight, GradNorm, Greats, Less, MaxLoss, Opus
from winnow.signals import Needs, Signals

STEPS, POOL, TARGET, KEPT = 4, 14, 5, 5  # neither divides by four


@dataclass(frozen=True)
class Case:
    """A way of selecting and updating."""

    selector: Any
    lora: bool = True
    optimizer: str = "adamw"
    update: str = "one_pass"
    family: str = "llama"
    options: tuple[tuple[str, Any], ...] = ()
    sizes: tuple[int, ...] = (2,)
    sharded: bool = False
    per_rank: bool = False

    def model(self) -> nn.Module:
        model = build(self.family, lora=self.lora)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if self.lora:
            model.get_input_embeddings().weight.data[BROKEN] = torch.nan  # type: ignore[operator,union-attr]
        return model

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.optimizer == "sgd":
            return torch.optim.SGD(trained, lr=0.02, momentum=0.5)
        if self.optimizer == "muon":
            return torch.optim.Muon([one for one in trained if one.ndim == 2], lr=0.02)
        if self.optimizer == "adafactor":
            return torch.optim.Adafactor(trained, lr=0.02)
        return torch.optim.AdamW(trained, lr=0.02, betas=(0.8, 0.9), eps=1e-4)


WEIGH = FilterWeight(filter_size=KEPT)
PIECES = (("pool_micro_batch", 2),)
CASES: dict[str, Case] = {
    "filter_weight-lora-adamw": Case(WEIGH, sizes=(2, 4)),
    "filter_weight-full-adamw": Case(WEIGH, lora=False, sizes=(2, 4)),
    "filter_weight-full-sgd": Case(WEIGH, lora=False, optimizer="sgd", sizes=(2, 4)),
    "filter_weight-two_pass": Case(WEIGH, update="two_pass", sizes=(2, 4)),
    "filter_weight-muon": Case(WEIGH, optimizer="muon"),
    "greats-lora-adamw": Case(Greats(filter_size=KEPT), sizes=(2, 4)),
    "max_loss-lora-adamw": Case(MaxLoss(filter_size=KEPT), update="two_pass", sizes=(2, 4)),
    "opus-lora-adamw": Case(Opus(filter_size=KEPT, sketch=512)),
    "data_shapley-second-lora": Case(DataShapley(filter_size=KEPT, order="second", lr=0.5)),
    "pieces-full-adamw": Case(WEIGH, lora=False, update="two_pass", options=PIECES),
    "pieces-sharded-full": Case(
        FilterWeight(filter_size=KEPT), lora=False, update="two_pass", options=PIECES, sharded=True
    ),
    "sharded-lora-adamw": Case(WEIGH, sharded=True),
    "sharded-lora-two_pass": Case(FilterWeight(filter_size=2), update="two_pass", sharded=True),
    "sharded-full-adamw": Case(WEIGH, lora=False, sharded=True),
    "sharded-full-two_pass": Case(FilterWeight(filter_size=2), lora=False, update="two_pass", sharded=True),
    "per_rank-full-adamw": Case(
        FilterWeight(filter_size=4), lora=False, options=(("first_step", "identity"),), per_rank=True
    ),
    "sketched-lora-sgd": Case(
        WEIGH, optimizer="sgd", update="two_pass", options=(("mode", "sketch"), ("sketch_dim", 4))
    ),
}
"""What every run of the tests goes through."""
MORE: dict[str, Case] = {
    "filter_weight-lora-sgd": Case(WEIGH, optimizer="sgd"),
    "filter_weight-target": Case(FilterWeight(filter_size=KEPT, match="target", momentum=True)),
    "filter_weight-ema": Case(WEIGH, options=(("target_ema", 0.5), ("every", 2))),
    "filter_weight-packed": Case(WEIGH, options=(("pack", True),)),
    "filter_weight-small_chunks": Case(WEIGH, lora=False, options=(("chunk_elements", 200),)),
    "filter_weight-tied": Case(WEIGH, lora=False, family="qwen3", options=(("layers", ".*"),)),
    "filter_weight-experts": Case(WEIGH, lora=False, family="mixtral"),
    "filter_weight-adafactor": Case(WEIGH, lora=False, optimizer="adafactor"),
    "greats-full-sgd": Case(Greats(filter_size=KEPT), lora=False, optimizer="sgd", update="two_pass"),
    "max_loss-full-sgd": Case(MaxLoss(filter_size=KEPT), lora=False, optimizer="sgd", update="two_pass"),
    "grad_norm-lora-adamw": Case(GradNorm(filter_size=KEPT)),
    "less-lora-adamw": Case(Less(filter_size=KEPT)),
    "data_shapley-lora-adamw": Case(DataShapley(filter_size=KEPT)),
    "sharded-full-sgd": Case(WEIGH, lora=False, optimizer="sgd", sharded=True),
    "sharded-full-tied": Case(WEIGH, lora=False, family="qwen3", options=(("layers", ".*"),), sharded=True),
    "sharded-full-target": Case(
        FilterWeight(filter_size=KEPT, match="target", momentum=True), lora=False, sharded=True
    ),
    "sharded-full-ema": Case(
        WEIGH, lora=False, options=(("target_ema", 0.5), ("every", 2), ("chunk_elements", 200)), sharded=True
    ),
    "sharded-full-sketched": Case(
        WEIGH, lora=False, options=(("mode", "sketch"), ("sketch_dim", 4)), update="two_pass", sharded=True
    ),
    "sharded-full-norms": Case(GradNorm(filter_size=KEPT), lora=False, sharded=True),
    "sharded-full-greats": Case(Greats(filter_size=KEPT), lora=False, sharded=True),
    "sharded-full-max_loss": Case(MaxLoss(filter_size=KEPT), lora=False, update="two_pass", sharded=True),
    "sharded-full-less": Case(Less(filter_size=KEPT), lora=False, sharded=True),
    "sharded-full-experts": Case(WEIGH, lora=False, family="mixtral", update="two_pass", sharded=True),
    "per_rank-lora-opus": Case(Opus(filter_size=4, sketch=512), options=(("first_step", "identity"),), per_rank=True),
    "per_rank-lora-less": Case(
        Less(filter_size=4), update="two_pass", options=(("first_step", "identity"),), per_rank=True
    ),
    "per_rank-full-sharded": Case(
        FilterWeight(filter_size=4), lora=False, options=(("first_step", "identity"),), per_rank=True, sharded=True
    ),
    "embedding-lora-adamw": Case(Embedding(filter_size=KEPT), update="two_pass"),
    "data_shapley-second-full": Case(
        DataShapley(filter_size=KEPT, order="second", lr=0.5), lora=False, optimizer="sgd", sizes=(2, 4)
    ),
    "pieces-full-sgd": Case(WEIGH, lora=False, optimizer="sgd", update="two_pass", options=PIECES, sizes=(2, 4)),
    "pieces-lora-sketched": Case(
        WEIGH, update="two_pass", options=(*PIECES, ("mode", "sketch"), ("sketch_dim", 4)), sizes=(2, 4)
    ),
    "pieces-lora-sgd": Case(WEIGH, optimizer="sgd", update="two_pass", options=PIECES),
    "pieces-lora-ema": Case(WEIGH, update="two_pass", options=(*PIECES, ("target_ema", 0.5), ("every", 2))),
    "pieces-lora-opus": Case(Opus(filter_size=KEPT, sketch=512), update="two_pass", options=PIECES),
    "pieces-full-tied": Case(WEIGH, lora=False, family="qwen3", update="two_pass", options=(*PIECES, ("layers", ".*"))),
    "pieces-full-experts": Case(WEIGH, lora=False, family="mixtral", update="two_pass", options=PIECES),
    "pieces-full-norms": Case(GradNorm(filter_size=KEPT), lora=False, update="two_pass", options=PIECES),
    "pieces-lora-max_loss": Case(MaxLoss(filter_size=KEPT), update="two_pass", options=PIECES),
    "pieces-lora-embedding": Case(Embedding(filter_size=KEPT), update="two_pass", options=PIECES),
    "pieces-sharded-lora": Case(FilterWeight(filter_size=2), update="two_pass", options=PIECES, sharded=True),
    "pieces-sharded-sketched": Case(
        WEIGH, lora=False, update="two_pass", options=(*PIECES, ("mode", "sketch"), ("sketch_dim", 4)), sharded=True
    ),
}
NOTHING_THERE = 3
"""At this step the first process's rows are without a response."""


SENT_TOGETHER = "sharded-lora-adamw"
"""What FSDP2 and winnow send here is counted in one number, as a run has it, and otherwise in two."""
BROKEN, NOT_FINITE = 1, 2
"""A token that no text has, and the step at which one candidate of the second process has it."""


def batches(step: int, spoilt: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pool and target of a step, ragged; ``spoilt`` gives one candidate a loss that is not finite."""
    lengths = [4 + (step * 5 + at * 3) % 9 for at in range(POOL)]
    pool = ragged(lengths, seed=10 + step)
    if step % 2:
        pool["row_weight"] = torch.linspace(0.5, 2, POOL, dtype=torch.float64)
    if spoilt and step == NOT_FINITE:
        pool["input_ids"][-1, 1] = BROKEN
    if step == NOTHING_THERE:
        pool["labels"][: -(-POOL // 4)] = -100
    target = ragged([5 + (step + at) % 6 for at in range(TARGET)], seed=50 + step)
    return pool, target


def in_shards(model: nn.Module, traffic: Ranks | None) -> nn.Module:
    """The model split over the processes of a group; an adapter stays whole in each."""
    if traffic is not None:
        shard_model(model, DeviceMesh.from_group(traffic.group, "cpu"), traffic)
    return model


def by_halves(selector: Any, halves: list[Signals], source: torch.Generator) -> tuple[Signals, Selection]:
    """What two processes do of which each has half of the pool, none of the other's, and the same target."""
    chosen = [replace(selector, filter_size=selector.filter_size // 2)(half, source) for half in halves]
    grams = [half.gram for half in halves if half.gram is not None]
    joined = Signals.joined([replace(half, gram=None) for half in halves])
    whole = replace(joined, gram=torch.block_diag(*grams) if grams else None)
    index = torch.cat([chosen[0].index, chosen[1].index + len(halves[0])])
    return whole, Selection(index, torch.cat([one.weight for one in chosen]))


def trajectory(case: Case, ranks: Ranks | None, traffic: Ranks | None = None) -> dict[str, Tensor]:
    """Everything the steps computed, by name; what FSDP2 sends is counted apart, by ``traffic``."""
    pieces = (("pool_micro_batch", 7),) if ranks is None and ("mode", "sketch") in case.options else ()
    model, found = case.model(), dict[str, Tensor]()
    model = in_shards(model, traffic or ranks) if case.sharded else model
    optimizer = case.optimizer_of(model)
    if case.optimizer == "muon":
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and parameter.ndim == 2)
    scorer: Scorer
    options = {"update": case.update, **dict(case.options + pieces)}  # in pieces b is exact beside sketches, too
    scorer = (
        Scorer(model, optimizer, **options)
        if ranks is None
        else ParallelScorer(model, optimizer, ranks=ranks, pool="per_rank" if case.per_rank else "global", **options)
    )
    selector = Stratified(case.selector, 2) if case.per_rank else case.selector
    own = Scorer(model, optimizer, **options | {"update": "two_pass"}) if case.per_rank and ranks is None else None
    needs: Needs = case.selector.needs
    for step in range(STEPS):
        pool, target = batches(step, case.lora)
        task = torch.arange(TARGET) % 2
        weight = torch.linspace(1, 2, TARGET)
        aim = (target if needs.target else None, needs, weight if needs.target else None)
        task_of = task if needs.target else None
        signals = scorer(pool, *aim, target_task=task_of)
        source = torch.Generator().manual_seed(step)
        if own is None:
            selection = selector(signals, source)
        else:
            halves = [{key: value[rows] for key, value in pool.items()} for rows in (slice(0, 7), slice(7, POOL))]
            signals, selection = by_halves(
                case.selector, [own(half, *aim, target_task=task_of) for half in halves], source
            )
        trained, losses = scorer.backward(pool, selection)
        optimizer.step()
        optimizer.zero_grad()
        values = {"K": signals.gram, "b": signals.alignment, "losses": signals.losses, "norms": signals.norms}
        values |= {"valid": signals.valid.double(), "index": trained.index.double(), "weight": trained.weight.double()}
        values |= {"tasks": signals.task_alignment, "task_norms": signals.task_norms, "curvature": signals.curvature}
        values |= {"seen": losses.nan_to_num()}
        found |= {f"{step}/{name}": value for name, value in values.items() if value is not None}
    trained = {name: held.detach() for name, held in model.named_parameters() if held.requires_grad}
    return found | {f"weights/{name}": held for name, held in gathered(trained).items()}


class Routed(nn.Module):
    """Two experts that are modules of their own, of which a call runs one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, rows: Tensor, number: int) -> Tensor:
        found: Tensor = self.experts[number](rows)
        return found


def unreached(ranks: Ranks, numbers: tuple[int, int]) -> str:
    """What is said after a backward in which the two processes run these experts."""
    model = Routed()
    shard_model(model, DeviceMesh.from_group(ranks.group, "cpu"), ranks)
    model(torch.ones(2, 4), numbers[ranks.rank]).sum().backward()
    try:
        check_reached(dict(model.named_parameters()), ranks)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def refused(ranks: Ranks, sharded: bool) -> str:
    """What is said to a selector that asks for curvature where there is none to be had."""
    case = Case(WEIGH, sharded=sharded)
    model = in_shards(case.model(), ranks if sharded else None)
    pool = "global" if sharded else "per_rank"
    scorer = ParallelScorer(model, case.optimizer_of(model), ranks=ranks, pool=pool)
    try:
        scorer.check(DataShapley(filter_size=KEPT, order="second", lr=0.5).needs)
    except ValueError as error:
        return str(error)
    return "nothing"


def uncounted(ranks: Ranks) -> str:
    """What is logged of a module whose parameters are split over two meshes, as no model of ours is."""
    inner, outer = (FSDPMeshInfo(DeviceMesh.from_group(group, "cpu"), 0) for group in (ranks.group, dist.group.WORLD))
    model, said = nn.Linear(4, 4), list[logging.LogRecord]()
    fully_shard(
        model, mesh=inner.mesh,
        shard_placement_fn=lambda held: ShardPlacementResult(Shard(0), inner if held.ndim == 2 else outer),
    )  # fmt: skip
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("winnow.parallel.traffic").addHandler(handler)
    count_traffic(model, ranks)
    return "; ".join(record.getMessage() for record in said)


def main(out: Path, rank: int | None, cases: dict[str, Case]) -> None:
    """Run the cases of four together, and those of two half by the first pair and half by the second."""
    if rank is None:
        for name, case in cases.items():
            torch.save(trajectory(case, None), out / f"{name}-1.pt")
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "4"}
    dist.init_process_group("gloo")
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair, four = Ranks(group=pairs[rank // 2]), Ranks()
    sent = {}
    for number, (name, case) in enumerate(cases.items()):
        if number % 2 == rank // 2:
            before, traffic = pair.bytes, pair if name == SENT_TOGETHER else Ranks(group=pair.group)
            torch.save(trajectory(case, pair, traffic), out / f"{name}-2-{rank % 2}.pt")
            sent[name] = torch.tensor([pair.bytes - before, traffic.bytes])
    torch.save(sent, out / f"sent-{rank}.pt")
    for name, case in cases.items():
        if 4 in case.sizes:
            torch.save(trajectory(case, four), out / f"{name}-4-{rank}.pt")
    said = [unreached(pair, numbers) for numbers in ((0, 1), (0, 0), (1, 0))] + [uncounted(pair)]
    said += [refused(pair, sharded) for sharded in (False, True)]
    (out / f"said-{rank}.txt").write_text("\n".join(said))
    first = next(iter(cases))
    before, wire = four.bytes, Ranks("bf16")
    trajectory(cases[first], four)
    bf16 = trajectory(cases[first], wire)
    bf16["bytes"] = torch.tensor([four.bytes - before, wire.bytes])
    torch.save(bf16, out / f"bf16-4-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    folder, named = Path(sys.argv[1]), {"core": CASES, "more": MORE}[sys.argv[2]]
    # Forked, so that what takes the time, importing, is done once.
    started = [
        multiprocessing.get_context("fork").Process(target=main, args=(folder, who, named)) for who in (*range(4), None)
    ]
    with double():
        for process in started:
            process.start()
        for process in started:
            process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in started))
