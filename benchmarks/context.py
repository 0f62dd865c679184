"""Long context: examples of 256 to 4096 tokens, the same tokens in all, against plain training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.cases import Case

LENGTHS = (256, 512, 1024, 2048, 4096)
POOL_TOKENS = 8192
KINDS: dict[str, dict[str, Any]] = {
    "full, exact, AdamW": {},
    "full, sketched, Adafactor": {"optimizer": "adafactor", "scoring": {"mode": "sketch"}},
    "LoRA r=8, exact, AdamW": {"lora": 8},
}


def cases() -> list[Case]:
    """Every kind at every length: half as many target examples as candidates, and half of those kept.

    Returns:
        The cases.
    """
    found = []
    for kind, options in KINDS.items():
        for tokens in LENGTHS:
            pool = POOL_TOKENS // tokens
            found.append(
                Case(f"{kind}, T={tokens}", pool=pool, target=pool // 2, keep=pool // 2, tokens=tokens, **options)
            )
    return found


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Ratio of time and of peak memory over length, and say how much they grow.

    Args:
        rows: the report's cases.
        file: where the picture goes.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for kind in KINDS:
        own = [row for row in rows if row["name"].startswith(f"{kind}, T=")]
        lengths = [row["tokens"] for row in own]
        ratio = [row["ratio"] for row in own]
        line = axes[0].plot(lengths, [one["median"] for one in ratio], "o-", label=kind)[0]
        axes[0].fill_between(
            lengths, [one["min"] for one in ratio], [one["max"] for one in ratio], alpha=0.15, color=line.get_color()
        )
        memory = [row["peak_mib"]["ratio"] for row in own if row["peak_mib"]]
        if len(memory) == len(own):
            axes[1].plot(lengths, memory, "o-", label=kind)
        growth = ratio[-1]["median"] / ratio[0]["median"]
        print(f"{kind}: the ratio at T={lengths[-1]} is {growth:.2f} of that at T={lengths[0]}")
    for axis, title in zip(axes, ("time", "peak memory"), strict=True):
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axis.set_xlabel("tokens of an example")
        axis.set_ylabel(f"{title}, against plain training")
        axis.set_ylim(0, 1.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="lower left", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
