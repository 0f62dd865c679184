"""Fine-tune a language model on what a selector keeps of every pool: ``python train.py --help``."""

from pathlib import Path

from omegaconf import DictConfig

from winnow.cli import main


def train(cfg: DictConfig) -> float | None:
    """One run; torch and the rest are imported only here, so that help and a typo are answered at once."""
    from winnow.run import run

    return run(cfg)


if __name__ == "__main__":
    main(train, config_dir=Path(__file__).parent / "conf", config_name="train")
