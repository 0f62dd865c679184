"""What stands around the selector: the gate in front of it, how often it is asked, and what may be spent."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig, open_dict
from transformers import PreTrainedTokenizerBase

from winnow.data.steps import Raw
from winnow.gates import Cadence, Draw, Embedded, Gate
from winnow.models import LanguageModel
from winnow.parallel import Ranks
from winnow.run.instantiate import BuildError, blaming, build, check_numbers, plain
from winnow.run.schedule import LENGTH, WARMUP, following, planned_updates, schedule_arguments
from winnow.scorer import Scorer
from winnow.scorer.reference import load_second
from winnow.training.cheaper import Cheaper, proxy_scorer
from winnow.training.intake import Intake
from winnow.training.limits import TICKS, Limits

log = logging.getLogger(__name__)

PACE = ("period", "between", "max_tokens", "precision", "proxy")
"""Options of scoring that are not the scorer's."""
PROXIED = ("target_ema", "every", "reduction", "mode", "sketch_dim", "sketch_seed", "pool_micro_batch", "pack")
"""Options of scoring that hold for a proxy, too; its layers are its own, and its P is I."""
DRAWS = 4
"""Pools in a draw where ``data.draw_size`` does not say."""


def scorer_options(cfg: DictConfig, ranks: Ranks | None = None) -> DictConfig:
    """The part of ``scoring`` that the scorer takes.

    Args:
        cfg: the composed configuration.
        ranks: the processes that share every pool; None for one.

    Returns:
        The same node without ``PACE``; over several processes, of the scorer that knows of them.

    Raises:
        ValueError: there are several processes, and ``scoring._target_`` is a scorer of one.
    """
    node = cast(DictConfig, cfg.scoring.copy())
    node._set_parent(cfg)
    with open_dict(node):
        for name in PACE:
            node.pop(name, None)
        if ranks is not None and node._target_ not in ("winnow.scorer.Scorer", "winnow.Scorer"):
            raise ValueError(f"scoring._target_={node._target_} scores in one process, and there are {ranks.size}")
        if ranks is not None:
            node._target_ = "winnow.parallel.ParallelScorer"
    return node


def shared(cfg: DictConfig, ranks: Ranks | None) -> dict[str, Any]:
    """What a scorer is told of several processes.

    Args:
        cfg: the composed configuration.
        ranks: the processes that share every pool; None for one.

    Returns:
        Its further arguments.
    """
    return {} if ranks is None else {"ranks": ranks, "pool": str(cfg.parallel.pool)}


def check_plain(cfg: DictConfig) -> None:
    """Refuse, where a stream is scored once before training, what is of training alone.

    Args:
        cfg: the composed configuration.

    Raises:
        ValueError: an option of ``PACE`` is not as it comes.
    """
    changed = [name for name in PACE if cfg.scoring.get(name) not in (None, 1, "uniform")]
    if changed:
        given = ", ".join(f"scoring.{name}={cfg.scoring[name]}" for name in changed)
        raise ValueError(f"{given}: of training alone; a stream is scored whole and exactly, leave it out")


def gate_of(cfg: DictConfig, language: LanguageModel) -> Gate | None:
    """The gate, with the model's input embeddings where it reads them.

    Args:
        cfg: the composed configuration.
        language: model and tokenizer, as they are before training.

    Returns:
        None for ``gate=none``.

    Raises:
        BuildError: ``gate._target_`` is no gate.
    """
    if not cfg.get("gate"):
        return None
    gate = build(cfg.gate)
    if not isinstance(gate, Gate):
        raise BuildError(f"gate._target_={cfg.gate._target_} is no gate: see winnow.gates.Gate")
    if isinstance(gate.features, Embedded):
        model: Any = language.model
        gate.features.take(model.get_input_embeddings().weight, partial(_ids, language.tokenizer))
    return gate


def intake_of(cfg: DictConfig, gate: Gate | None, language: LanguageModel, ranks: Ranks | None = None) -> Intake:
    """Gate and cadence, and how pools are scored.

    Args:
        cfg: the composed configuration.
        gate: from :func:`gate_of`.
        language: the model that is trained.
        ranks: the processes that share every pool; None for one.

    Returns:
        What a step takes up.
    """
    options = {name: cfg.scoring.get(name) for name in PACE}
    with blaming("scoring"):
        check_numbers(Cheaper, {"max_tokens": options["max_tokens"]}, "scoring")
        proxy = None if options["proxy"] is None else _proxy(cfg, str(options["proxy"]), language, ranks)
        cheaper = Cheaper(options["max_tokens"], options["precision"], proxy)
        period = 1 if options["period"] is None else options["period"]
        return Intake(gate, Cadence(period), str(options["between"] or "uniform"), cheaper)


def _proxy(cfg: DictConfig, name: str, language: LanguageModel, ranks: Ranks | None) -> Scorer:
    """The scorer of ``scoring.proxy``, a model's folder or Hugging Face name."""
    other = load_second(name, language.model, "scoring.proxy")
    options = {key: value for key, value in plain(scorer_options(cfg)).items() if key in PROXIED}
    return proxy_scorer(language.model, other, **shared(cfg, ranks), **options)


def raw_of(cfg: DictConfig, gate: Gate | None) -> Raw | None:
    """The raw candidates in front of the gate.

    Args:
        cfg: the composed configuration.
        gate: from :func:`gate_of`.

    Returns:
        None without a gate.

    Raises:
        ValueError: more are asked for than a pool, and there is no gate to choose.
    """
    size, pool = cfg.data.get("draw_size"), cfg.data.pool_size
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise ValueError(f"data.draw_size must be a whole number, or null; got {size!r}")
    if gate is not None:
        return Raw(DRAWS * pool if size is None else size, partial(Draw.of, features=gate.features))
    if size not in (None, pool):
        raise ValueError(
            f"data.draw_size={size} raw candidates a step need a gate to choose data.pool_size={pool} of them: set "
            "gate=ngrams, or data.draw_size=null"
        )
    return None


def limits_of(cfg: DictConfig) -> Limits:
    """What may be spent, and whether the schedule follows it.

    Args:
        cfg: the composed configuration.

    Returns:
        Bounds; none but the number of updates by default.
    """
    bounds = plain(cfg.get("budget")) or {}
    with blaming("budget"):
        check_numbers(Limits, bounds, "budget")
        most = int(cfg.trainer.get("max_steps") or -1)
        scheduler = cfg.get("scheduler") or {}
        follows = (
            any(bound is not None for bound in bounds.values()) and LENGTH in scheduler and scheduler[LENGTH] is None
        )
        return Limits(
            **bounds,
            updates=most if most > 0 else None,
            follows=follows,
            warmup=int(scheduler.get(WARMUP) or 0),
        )


def schedule_of(cfg: DictConfig, pools: int | None, limits: Limits) -> Any:
    """The learning-rate schedule: over the updates there will be, or over the budget.

    Args:
        cfg: the composed configuration.
        pools: of one pass over the stream; None where it is endless.
        limits: from :func:`limits_of`.

    Returns:
        A function of the optimizer; None for the optimizer's own rate.
    """
    if not cfg.get("scheduler"):
        return None
    if limits.follows:
        return following(build(cfg.scheduler, **{LENGTH: TICKS}))
    planned = planned_updates(cfg.trainer.get("max_steps"), cfg.trainer.get("max_epochs"), pools, cfg.pools_per_update)
    return build(cfg.scheduler, **schedule_arguments(plain(cfg.scheduler), planned))


def lift_steps(cfg: DictConfig, given: list[str]) -> None:
    """Let a budget end the run where nothing else was asked for: ``trainer.max_steps`` has a default.

    Args:
        cfg: the composed configuration; changed in place.
        given: the overrides of the command line.
    """
    bounded = any(bound is not None for bound in (plain(cfg.get("budget")) or {}).values())
    if bounded and cfg.trainer.get("max_steps", -1) not in (-1, None):
        if any(line.lstrip("+").startswith("trainer.max_steps=") for line in given):
            return
        log.info("budget: it ends the run, in place of trainer.max_steps=%s", cfg.trainer.max_steps)
        cfg.trainer.max_steps = -1


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
