"""Measure a model on the targets' test splits, and train nothing.

python -m winnow.evaluate                                           # the embedded model on the embedded tasks
python -m winnow.evaluate model=local model.path=RUN/model          # what a run made
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from winnow.run.cli import main
from winnow.train import conf_dir, train

MEASURE_ONLY = ("trainer.max_steps=0", "export=false", "logger=none", "name=evaluate")


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """A command line of ``train.py`` that measures only; what was given outweighs it.

    Args:
        arguments: the command line after the program's name.

    Returns:
        The same, with the options that make it so before the first of its own.
    """
    # All KEY=VALUE have to stand together, before the flags or after them.
    first = next((at for at, word in enumerate(arguments) if "=" in word and not word.startswith("-")), len(arguments))
    return [*arguments[:first], *MEASURE_ONLY, *arguments[first:]]


if __name__ == "__main__":
    sys.argv[1:] = with_defaults(sys.argv[1:])
    main(train, config_dir=conf_dir(), config_name="train")
