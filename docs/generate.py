"""Write what follows from other files: docs/METHODS.md, the README's table of methods, conf/baseline, the sweeps.

python docs/generate.py            # write what is stale
python docs/generate.py --check    # say what is stale, with code 1 if anything is
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from winnow.methods import OURS, cards, markdown

ROOT = Path(__file__).parents[1]
LEFT_OUT = {
    "rho_loss": "which needs scoring.reference",
    "replay": "which needs selector.ledger",
    "gate_only": "which needs a gate",
}
"""Methods that a sweep over all of them cannot run."""
NOTES = {
    "oracle": " (the stream's hidden labels; for analysis)",
    "replay": " (a recorded run's choices)",
}
"""What the README adds to a method's name."""
TABLE = re.compile(r"\| \| \|\n\|---\|---\|\n\| ours \|.*?(?=\n\n)", re.DOTALL)
"""The README's table of methods."""
COMMAND = (
    "${env}",
    "${interpreter}",
    "${program}",
    "logger.offline=false",
    "hydra.run.dir=outputs/wandb/${oc.env:WANDB_SWEEP_ID}/${oc.env:WANDB_RUN_ID}",
    "${args_no_hyphens}",
)


def generated(root: Path = ROOT) -> dict[Path, str]:
    """Every generated file of a checkout, as it should be."""
    found = {root / "docs" / "METHODS.md": markdown()}
    names = [card.name for card in cards()]
    for name in names:
        path = root / "conf" / "baseline" / f"{name}.yaml"
        found[path] = path.read_text(encoding="utf-8") if path.exists() else baseline(root, name)
    readme = root / "README.md"
    if readme.exists():
        found[readme] = TABLE.sub(lambda _: table(root), readme.read_text(encoding="utf-8"))
    path = root / "sweeps" / "baselines.yaml"
    found[path] = all_methods(path.read_text(encoding="utf-8"), names)
    for sweep in sorted((root / "sweeps").glob("*.yaml")):
        found[sweep.parent / "wandb" / sweep.name] = for_wandb(
            sweep.stem, found.get(sweep, sweep.read_text(encoding="utf-8"))
        )
    return found


def table(root: Path) -> str:
    """The README's table of methods, by what they look at."""
    found = cards()
    presets = sorted(path.stem for path in (root / "conf" / "selector").glob("*.yaml"))
    own = [name for name in presets if name not in {one.name for one in found} | {"custom"}]
    groups: dict[str, list[str]] = {"controls": [], "by loss": [], "by forward pass": [], "by gradient": []}
    for one in found:
        if one.name != OURS:
            needs = one.needs
            group = "by gradient" if needs.backward else "by forward pass" if needs.states else "by loss"
            groups[group if needs.forward else "controls"].append(f"`{one.name}`{NOTES.get(one.name, '')}")
    ablations = ", ".join(f"`{name}`" for name in own)
    lines = ["| | |", "|---|---|", f"| ours | `{OURS}`, and its ablations {ablations} |"]
    return "\n".join([*lines, *(f"| {group} | {', '.join(names)} |" for group, names in groups.items())])


def baseline(root: Path, name: str) -> str:
    """A method under the common protocol: what its selector's file says of it, and nothing else."""
    says = (root / "conf" / "selector" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1]
    return (
        f"# @package _global_\n# python train.py baseline={name}\n{says}\ndefaults:\n  - override /selector: {name}\n"
    )


def all_methods(text: str, names: list[str]) -> str:
    """The sweep over all methods, with those that are new at the end of its axis."""
    axes = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    swept = [name for name in axes["baseline"].split(",") if name in names]
    swept += [name for name in names if name not in swept and name not in LEFT_OUT]
    seeds = str(axes["seed"]).split(",")
    runs = f"{', '.join(swept)} x seed {', '.join(seeds)}. Runs: {len(swept) * len(seeds)}."
    left = " and ".join(f"{name}, {why}" for name, why in LEFT_OUT.items())
    text = re.sub(r"^# Axes: .*$", f"# Axes: baseline {runs}", text, flags=re.MULTILINE)
    text = re.sub(r"^# Left out: .*$", f"# Left out: {left.replace(' and ', ', and ')}.", text, flags=re.MULTILINE)
    return re.sub(r"^( +baseline: ).*$", rf"\g<1>{','.join(swept)}", text, flags=re.MULTILINE)


def for_wandb(name: str, text: str) -> str:
    """A sweep of Hydra's as one of W&B's, whose server hands the jobs out."""
    question = next(line for line in text.splitlines() if line.startswith("# Question: "))
    axes = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    lines = [
        f"# wandb sweep sweeps/wandb/{name}.yaml",
        f"# {name}.yaml of sweeps/ as a W&B sweep: its server hands the jobs out to every `wandb agent SWEEP`, on any "
        "machine.",
        question,
        "program: train.py",
        "project: winnow",
        f"name: {name}",
        "method: grid",
        "metric:",
        "  name: target/val_nll",
        "  goal: minimize",
        "parameters:",
    ]
    for key, given in axes.items():
        # Quoted, or W&B would hand out Python's None.
        values = ['"null"' if value == "null" else value for value in str(given).split(",")]
        one = f"{{value: {values[0]}}}" if len(values) == 1 else f"{{values: [{', '.join(values)}]}}"
        lines.append(f"  {key}: {one}")
    return "\n".join([*lines, "command:", *(f"  - {word}" for word in COMMAND)]) + "\n"


def stale(root: Path = ROOT) -> list[Path]:
    """Files that are not as they should be."""
    return [
        path for path, text in generated(root).items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write, or check.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    wanted = generated()
    found = stale()
    for path in found:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
