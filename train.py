"""Fine-tune a language model on what a selector keeps of every pool: ``python train.py --help``."""

from pathlib import Path

from winnow.cli import main
from winnow.run import run

if __name__ == "__main__":
    main(run, config_dir=Path(__file__).parent / "conf", config_name="train")
