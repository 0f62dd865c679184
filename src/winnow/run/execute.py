"""One run from its configuration: build, evaluate, fit, evaluate, export, and always close what was opened."""

from __future__ import annotations

import copy
import errno
import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from winnow.callbacks import Records
from winnow.evaluation import evaluate
from winnow.lm.forward import Forward
from winnow.lm.passes import Pass
from winnow.parallel.base import whole_state
from winnow.parallel.part import turns_of
from winnow.records.checkpoint import read_checkpoint
from winnow.records.folder import FolderInUse, changes, claim, earlier_job, occupied
from winnow.records.preparation import SPENT
from winnow.records.provenance import anonymous, provenance
from winnow.records.status import Status, Terminated
from winnow.records.strict_json import write_json
from winnow.records.whole import clear_unfinished, replacing_folder
from winnow.report.composition import composition
from winnow.report.summary import print_summary, show
from winnow.run.allocator import keep_freed_memory
from winnow.run.assemble import Parts, equip, given, in_sweep
from winnow.run.group import together
from winnow.run.instantiate import BuildError, blaming, plain
from winnow.run.leaving import way_on
from winnow.run.loading import attend
from winnow.run.process import left_as_found
from winnow.run.processes import asked, check
from winnow.run.rows import REJECTS, rejects_written, settle_date
from winnow.run.stages import lift_steps
from winnow.run.startup import check_resumed
from winnow.scorer.flops import Rates
from winnow.tracking import is_lost, let_go
from winnow.training.sharded import cut
from winnow.training.stopping import handled, sole

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Run one configuration to its end, leaving its records in ``cfg.out``.

    A job of a sweep that finished there earlier is skipped, and one that was broken off goes on from its last
    checkpoint, or begins afresh where there is none; so does any run with ``resume=auto``.

    Args:
        cfg: the composed configuration (conf/train.yaml).

    Returns:
        The mean target test NLL after training, for Hydra's sweepers; None if it was not measured.

    Raises:
        BuildError: the configuration asks for something that cannot be built, or for a folder in use.
        Terminated: a scheduler's signal came; the run is saved.
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
    cfg = copy.deepcopy(cfg)
    lift_steps(cfg, given())
    parts = Parts()
    try:
        with occupied(Path(cfg.out)):
            return _objective(_in_folder(cfg, Path(cfg.out), parts))
    except FolderInUse as error:
        raise BuildError(str(error)) from error
    except Terminated:
        parts.stop.hand_on()
        raise


def _in_folder(cfg: DictConfig, folder: Path, parts: Parts) -> dict[str, Any]:
    """The summary of a run whose folder nobody else writes in."""
    with blaming(""):
        check_resumed(cfg.ckpt_path)
    clear_unfinished(folder, folder / "checkpoints", folder / "ledger")
    goes_on = in_sweep() or cfg.get("resume") == "auto"
    began = [Path(cfg.ckpt_path).resolve().parent.parent] if cfg.ckpt_path else []
    with blaming(""):
        settle_date(cfg, *([folder] if goes_on else []), *began)
    config = anonymous(plain(cfg))
    if not goes_on:
        claim(folder, cfg.ckpt_path)
        changed = changes(cfg.ckpt_path, config) if cfg.ckpt_path else []
        if changed:
            log.warning("ckpt_path=%s is of a run with other options: %s", cfg.ckpt_path, "; ".join(changed))
    else:
        earlier = earlier_job(folder, config)
        if isinstance(earlier, dict):
            return earlier
        if earlier is not None:
            cfg.ckpt_path = earlier
    write_json(folder / "config.json", config)
    write_json(folder / "provenance.json", provenance())
    with blaming(""):
        count = asked(cfg.trainer)
        check(cfg, count, in_sweep())
    with together(cfg, count, folder) as parts.group:
        return _recorded(cfg, folder, parts)


def _recorded(cfg: DictConfig, folder: Path, parts: Parts) -> dict[str, Any]:
    """The run's summary; how it ended is in its status and in its logger, and only then on the screen."""
    status = Status(folder)
    with left_as_found(), handled(parts.stop):
        try:
            with blaming(""), rejects_written(folder / REJECTS) as rejects:
                equip(cfg, folder, parts)
                rejects.append(parts.experiment.data.corpus.rejects)
            if parts.group is not None:
                parts.group.first("equipped")
                if cfg.parallel.base == "sharded":
                    attend(parts.group)
            summary = _execute(cfg, folder, parts)
        except BaseException as error:
            known = [folder / "checkpoints" / "last.ckpt", *([Path(cfg.ckpt_path)] if cfg.ckpt_path else [])]
            resume = next((path for path in known if path.is_file()), None)
            try:
                status.failed(error, resume)
            except OSError as second:  # a full disk: the first error is the one to raise
                log.error("status.json could not be written: %s", second)
            _close(parts, failed=True)
            if getattr(error, "errno", None) == errno.ENOSPC:
                log.error("the disk of %s is full: free some of it before the run goes on", folder.resolve())
            if resume is not None or isinstance(error, Terminated | KeyboardInterrupt):
                log.error("%s", way_on(folder, resume, in_sweep()))
            raise
        _close(parts, failed=False)
        status.finished()
    show(print_summary, summary, folder)
    return summary


def _objective(summary: dict[str, Any]) -> float | None:
    nll = [value for name, value in summary["after"].items() if name.endswith("/nll")]
    return sum(nll) / len(nll) if nll else None


def _execute(cfg: DictConfig, folder: Path, parts: Parts) -> dict[str, Any]:
    model, module = parts.experiment.language.model, parts.experiment.module
    summary: dict[str, Any] = {"name": cfg.name, "seed": cfg.seed}
    summary["before"], measuring = _measure(cfg, parts)
    log.info("%s: %d trainable parameters", cfg.name, sum(p.numel() for p in module.parameters() if p.requires_grad))
    trained = _fit(parts, cfg.ckpt_path)
    summary["after"], more = _measure(cfg, parts) if trained else (summary["before"], 0.0)
    # Only now: a checkpoint that the run went on from has brought counters of its own.
    module.budget.flops_evaluation += measuring + more
    summary["budget"] = module.budget.state_dict()
    if parts.preparation is not None:
        summary["preparation"] = parts.preparation
    summary["seconds"] = perf_counter() - parts.started
    if parts.records is not None and parts.records.ledger is not None:
        parts.records.ledger.close()
        if module.budget.steps:
            summary["composition"] = composition(folder)
    write_json(folder / "summary.json", summary)
    if cfg.export:
        with replacing_folder(folder / "model") as temporary:
            model.save_pretrained(str(temporary), safe_serialization=True, **whole_state(model))
            parts.experiment.language.tokenizer.save_pretrained(temporary)
    if parts.logger is not None:
        after = {f"test/{name}": value for name, value in summary["after"].items()}
        before = {f"test_before/{name}": value for name, value in summary["before"].items()}
        spent = {f"preparation/{name}": (parts.preparation or {})[name] for name in SPENT} if parts.preparation else {}
        parts.logger.log_metrics({**before, **after, **spent, **module.budget.metrics()})
    return summary


def train_part(cfg: DictConfig, parts: Parts) -> None:
    """What a process that is not the first does of a run: its part of the measurements, and of training.

    Args:
        cfg: the composed configuration.
        parts: takes what there is; its group is given.
    """
    assert parts.group is not None
    parts.group.first("equipped")  # what is read, checked and downloaded is so once
    equip(cfg, Path(cfg.out), parts)
    _measure(cfg, parts)
    if _fit(parts, cfg.ckpt_path):
        _measure(cfg, parts)
    if cfg.export:
        whole_state(parts.experiment.language.model)


def _measure(cfg: DictConfig, parts: Parts) -> tuple[dict[str, float], float]:
    """Where the model stands, and operations that it took; each process runs its share, and all have the numbers."""
    made, ranks, passes = parts.experiment, None if parts.group is None else parts.group.ranks, list[Pass]()
    made.module.to(made.trainer.strategy.root_device)
    model: Any = made.language.model
    with _answering(parts):
        measured = evaluate(
            model,
            made.language.tokenizer,
            made.data.corpus.targets,
            max_length=made.data.max_length,
            encoding=made.data.encoding,
            pack=bool(cfg.scoring.get("pack")),
            passes=passes,
            turns=turns_of(ranks, model),
            **plain(cfg.evaluation),
        )
        rates = Rates(Forward(model), {})
        spent = float(sum(rates.forward(one) for one in passes))
        return measured, spent if ranks is None else ranks.totals([spent])[0]


def _answering(parts: Parts) -> AbstractContextManager[None]:
    return nullcontext() if parts.group is None else parts.group.answering()


def _fit(parts: Parts, ckpt_path: str | None) -> bool:
    """Train; an interrupt comes out as one, and leaves the next one possible. Says whether the model has changed."""
    if parts.experiment.trainer.max_steps == 0 or parts.experiment.trainer.max_epochs == 0:
        log.warning("nothing to train (trainer.max_steps=0 or trainer.max_epochs=0): the model is measured as it is")
        if ckpt_path:
            state = read_checkpoint(ckpt_path)
            held = cut(state["state_dict"], parts.experiment.module)
            parts.experiment.module.load_state_dict(held, strict=False)  # frozen parameters are in none
            parts.experiment.module.on_load_checkpoint(state)
        return bool(ckpt_path)
    made = parts.experiment
    made.module.train()  # transformers loads models for evaluation, without dropout, and Lightning keeps that
    made.module.stop = parts.stop
    parts.stop.waits, parts.stop.agree = True, made.module.together.any
    sole(made.trainer)
    try:
        with _answering(parts):
            made.trainer.fit(made.module, made.data, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as error:
        # Lightning answers an interrupt with exit(1), which no caller can tell from a failure.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(*error.__context__.args) from error
        raise
    finally:
        parts.stop.waits, parts.stop.agree = False, bool
    parts.stop.obey()
    return True


def _close(parts: Parts, failed: bool) -> None:
    """Close records and logger, W&B as failed where the run failed; one that fails does not stop the other."""
    opened: list[Any] = [parts.records, parts.logger]
    for thing in filter(None, opened):
        try:
            if is_lost(thing):
                let_go(thing)
                continue
            if isinstance(thing, WandbLogger):
                thing.experiment.finish(exit_code=1 if failed else 0)
            elif isinstance(thing, Records):
                thing.close()
            else:
                thing.finalize("failed" if failed else "success")
        except Exception:
            log.exception("closing %s failed", type(thing).__name__)
