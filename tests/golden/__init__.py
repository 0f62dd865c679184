"""Ten steps of filter_weight, ways apart, as they were recorded: what a change of structure must not change.

``python -m tests.golden`` writes ``trajectories.json`` anew, which is right only where results are meant to change.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch
import torch

from tests.commands import configured

RECORDED = Path(__file__).parent / "trajectories.json"
WAYS: dict[str, tuple[str, ...]] = {
    "exact": ("scoring.update=two_pass",),
    "one_pass": ("scoring.update=one_pass",),
    "sketch": ("scoring.mode=sketch", "scoring.sketch_dim=16"),
    "lora": ("model/lora=default",),
}
LIST = ("loss", "alignment", "weight")


def trajectory(way: str, out: Path) -> dict[str, Any]:
    """Ten steps on the embedded model: what was kept, summed figures of every step, and hashes of every bit."""
    from winnow.run import run

    options = ("trainer.max_steps=10", "logger=none", "trainer.limit_val_batches=0", "evaluation.accuracy_limit=0")
    quiet = ("callbacks.progress=null", "trainer.enable_progress_bar=false", "data.corpus.test_size=4")
    with configured(*WAYS[way], *options, *quiet, out=str(out)) as cfg:
        run(cfg)
    ledger = pq.read_table(out / "ledger.parquet").to_pandas()
    (weights,) = (out / "model").glob("*model.safetensors")
    state = safetensors.torch.load_file(weights)
    bits = hashlib.sha256()
    for name in ("step", "id", *LIST, "kept", "valid"):
        bits.update(str(ledger[name].tolist()).encode())
    for name in sorted(state):
        bits.update(name.encode() + state[name].contiguous().numpy().tobytes())
    kept = ledger[ledger["kept"]]
    return {
        "kept": [rows["id"].tolist() for _, rows in kept.groupby("step")],
        "sums": {name: [float(x) for x in ledger.groupby("step")[name].sum()] for name in LIST},
        "norm": float(torch.stack([value.double().square().sum() for value in state.values()]).sum().sqrt()),
        "sha256": bits.hexdigest(),
    }


def machine() -> str:
    """What bits depend on: processor, its instructions as torch uses them, and torch."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    processor = " ".join(facts.get(name, "") for name in ("model name", "cpu family", "model")).strip()
    processor = processor or platform.processor()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found
