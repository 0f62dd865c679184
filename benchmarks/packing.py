"""python -m benchmarks.packing: an update on examples of unequal length, padded against laid end to end in rows.

Both run in turns in one process, with one model, on the same examples and weights; the first round does not count.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Bench, Case, Size
from benchmarks.measure import machine, spread, synchronise
from winnow.scorer import Scorer
from winnow.selection import Selection

LAYS = {"padded": False, "packed": True}


def lengths(examples: int, longest: int) -> list[int]:
    """Lengths from 16 tokens on, evenly spread in the logarithm.

    Args:
        examples: how many.
        longest: tokens of the last one.

    Returns:
        One of each example, rising.
    """
    shortest = min(16, longest)
    steps = max(1, examples - 1)
    return [round(shortest * (longest / shortest) ** (at / steps)) for at in range(examples)]


def unequal(batch: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """A batch with the first tokens of every example, and padding behind them.

    Args:
        batch: examples of one length.
        sizes: tokens to keep of each.

    Returns:
        The batch, as wide as before.
    """
    width, device = batch["labels"].shape[1], batch["labels"].device
    inside = torch.arange(width, device=device) < torch.tensor(sizes, device=device)[:, None]
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {key: torch.where(inside, batch[key], value) for key, value in fill.items()}


def measured(bench: Bench, sizes: list[int], rounds: int, device: torch.device) -> dict[str, Any]:
    """Cells that go through the model and seconds of an update, padded and packed.

    Args:
        bench: a model.
        sizes: tokens of each example.
        rounds: how many count.
        device: where it runs.

    Returns:
        By way ``cells``, ``seconds`` and ``gradient``; the ``ratio`` of seconds by round, and ``difference``, of the
        two gradients in Frobenius norm.
    """
    batch = unequal(bench.pool, sizes)
    chosen = Selection(torch.arange(len(sizes)), torch.ones(len(sizes)))
    scorers = {name: Scorer(bench.model, bench.optimizer, verify=False, pack=pack) for name, pack in LAYS.items()}
    found: dict[str, Any] = {name: {"seconds": []} for name in LAYS}
    held = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    for number in range(rounds + 1):
        for name, scorer in list(scorers.items())[:: -1 if number % 2 else 1]:
            bench.optimizer.zero_grad()
            scorer.meter.begin()
            synchronise(device)
            start = perf_counter()
            scorer.backward(batch, chosen)
            synchronise(device)
            if number:
                found[name]["seconds"].append(perf_counter() - start)
            found[name]["cells"] = sum(one.rows * one.length for one in scorer._pass.scope.forward.passes)
            found[name]["gradient"] = torch.cat([_flat(parameter.grad, parameter) for parameter in held])
    padded, packed = found["padded"], found["packed"]
    ratios = [ours / theirs for ours, theirs in zip(packed["seconds"], padded["seconds"], strict=True)]
    gap = (packed["gradient"] - padded["gradient"]).norm() / padded["gradient"].norm()
    return {**found, "ratio": spread(ratios), "difference": float(gap)}


def _flat(gradient: Tensor | None, like: Tensor) -> Tensor:
    return (torch.zeros_like(like) if gradient is None else gradient.detach()).flatten().double().cpu()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--examples", type=int, default=16, help="kept candidates")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest; the shortest has 16")
    parser.add_argument("--lora", type=int, help="rank of an adapter; left out: everything is trained")
    parser.add_argument("--hidden", type=int, default=Size().hidden, help="width of the model")
    parser.add_argument("--layers", type=int, default=Size().layers, help="blocks of the model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the model: float32 or bfloat16")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    size, device = Size(options.hidden, options.layers), torch.device(options.device)
    case = Case("packing", pool=options.examples, target=1, keep=1, tokens=options.longest, lora=options.lora)
    sizes = lengths(options.examples, options.longest)
    bench = Bench(case, size, device, getattr(torch, options.dtype))
    found = measured(bench, sizes, options.rounds, device)
    around = machine(device)
    print(" · ".join(f"{name} {value}" for name, value in around.items()))
    print(f"{len(sizes)} examples of {sizes[0]} to {sizes[-1]} tokens, {sum(sizes)} in all")
    for name in LAYS:
        seconds = spread(found[name].pop("seconds"))
        del found[name]["gradient"]
        found[name] |= seconds
        print(
            f"{name}: {found[name]['cells']} cells through the model, {seconds['median']:.3f} s an update "
            f"({seconds['min']:.3f} to {seconds['max']:.3f})"
        )
    ratio = found["ratio"]
    print(f"packed over padded, round by round: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
    print(f"the two gradients differ by {found['difference']:.1e} of their length")
    if options.json:
        report = {"machine": around, "model": asdict(size), "lengths": sizes, **vars(options), **found}
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
