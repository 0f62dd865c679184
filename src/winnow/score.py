"""Score a stream once, and write the scores by candidate id.

python -m winnow.score baseline=tracin                  # what the method ranks by, at the model's start
python -m winnow.score method=ngrams                    # n-gram overlap with the target
python -m winnow.score --help
"""

from __future__ import annotations

from omegaconf import DictConfig

from winnow.run.cli import main
from winnow.train import conf_dir


def score(cfg: DictConfig) -> None:
    """Score one stream; torch and the rest are imported only here, so that help and a typo are answered at once.

    Args:
        cfg: the composed configuration (conf/score.yaml).
    """
    from winnow.run.score import run

    run(cfg)


if __name__ == "__main__":
    main(score, config_dir=conf_dir(), config_name="score")
