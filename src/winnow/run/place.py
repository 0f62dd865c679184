"""Whether a run's folder can be written to, tried before Hydra would answer with a traceback."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hydra.main import get_args_parser

KEYS = ("hydra.run.dir", "hydra.sweep.dir")
DEFAULT = "outputs"
"""Where conf/hydra/default.yaml puts all runs."""


def unwritable(arguments: Sequence[str]) -> str | None:
    """What keeps a run from writing where it is to write; the folder is made, as far as it has a plain name.

    Args:
        arguments: the command line after the program's name.

    Returns:
        A message that names the folder and the key; None where nothing does, or the place is not known yet.
    """
    flags = get_args_parser().parse_known_args(list(arguments))[0]
    elsewhere = (flags.config_name, flags.config_path, flags.config_dir, flags.experimental_rerun)
    if any((flags.cfg, flags.help, flags.hydra_help, flags.info, flags.shell_completion, *elsewhere)):
        return None
    key = KEYS[bool(flags.multirun)]
    given = [one.partition("=")[2].strip("'\"") for one in flags.overrides if one.lstrip("+").startswith(f"{key}=")]
    if any(one.startswith("hydra=") for one in flags.overrides):
        return None
    plain, _, resolved = (given[-1] if given else f"{DEFAULT}/${{now:}}").partition("${")
    place = Path(plain.rpartition("/")[0] if resolved else plain)
    if "\\" in plain or place == Path():
        return None
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        said = error.strerror or type(error).__name__
        return f"{key}={place}: nothing can be written there ({said}). Choose another folder with {key}=FOLDER."
