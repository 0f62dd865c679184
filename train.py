"""Fine-tune a language model on what a selector keeps of every pool: ``python train.py --help``."""

from winnow.train import command

if __name__ == "__main__":
    command()
