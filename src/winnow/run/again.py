"""The same command again: in which folder it goes on."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

AUTO = "resume=auto"
NOW = re.compile(r"\$\{now:[^}]*\}")
PLACE = "WINNOW-NOW"
FOLDER = "hydra.run.dir"


def going_on(arguments: Sequence[str], config_dir: Path, config_name: str) -> list[str]:
    """A command line with the folder that ``resume=auto`` goes on in, where runs go to folders with a date.

    Args:
        arguments: the command line after the program's name; it composes.
        config_dir: folder of the primary configuration.
        config_name: its name.

    Returns:
        The same, with ``hydra.run.dir`` of the newest run of this configuration, if there is one.
    """
    flags = get_args_parser().parse_known_args(list(arguments))[0]
    asks = any(one.lstrip("+").replace("'", "").replace('"', "") == AUTO for one in flags.overrides)
    if not asks or any((flags.multirun, flags.cfg, flags.info, flags.help, flags.config_name)):
        return list(arguments)
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir.resolve())):
            found = _found(hydra.compose(config_name, overrides=flags.overrides, return_hydra_config=True))
    except Exception as error:  # what is wrong with a configuration, the run itself says best
        log.debug("resume=auto: no folder is looked for: %s", error)
        return list(arguments)
    if found is None:
        return list(arguments)
    first = arguments.index(flags.overrides[0])  # all KEY=VALUE have to stand together
    return [*arguments[:first], f"{FOLDER}={quoted(str(found))}", *arguments[first:]]


def _found(config: DictConfig) -> Path | None:
    """The newest run of a configuration among the folders that it could have gone to."""
    dated = str(OmegaConf.to_container(config, resolve=False)["hydra"]["run"]["dir"])  # type: ignore[call-overload,index]
    if not NOW.search(dated):
        return None
    config.hydra.run.dir = NOW.sub(PLACE, dated)
    config.hydra.runtime.output_dir = PLACE  # no text that a value may have
    HydraConfig.instance().set_config(config)
    try:
        pattern = "*".join(glob.escape(part) for part in str(config.hydra.run.dir).split(PLACE))
        from winnow.records.provenance import anonymous
        from winnow.run.instantiate import plain
        from winnow.run.stages import lift_steps

        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        lift_steps(own, list(config.hydra.overrides.task))  # as it is recorded
        return newest([Path(name) for name in glob.glob(pattern)], anonymous(plain(own)))
    finally:
        HydraConfig.instance().cfg = None


def newest(folders: Sequence[Path], config: dict[str, Any]) -> Path | None:
    """The latest of the runs of one configuration.

    Args:
        folders: where runs may be.
        config: the configuration as it will be recorded.

    Returns:
        Its folder; None where no run is of this configuration.
    """
    from winnow.records.folder import differences
    from winnow.records.strict_json import to_json

    asked = json.loads(to_json(config))
    for folder in sorted(folders, key=lambda one: (_begun(one), one.name), reverse=True):
        try:
            recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        changed = differences(recorded, asked)
        if all(re.fullmatch(r"data\.date was .*, is None", line) for line in changed):  # each day has its own
            return folder
    return None


def _begun(folder: Path) -> float:
    try:
        return (folder / "config.json").stat().st_mtime
    except OSError:
        return 0.0


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes it.

    Args:
        value: any text.

    Returns:
        The same, in quotes where it has anything but letters, digits and a path's own characters.
    """
    if re.fullmatch(r"[\w./:+@-]+", value, re.ASCII):
        return value
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"


def sweep_name(arguments: Sequence[str]) -> str:
    """Name of a sweep's folder: the same command has the same one, so that it goes on with what is there.

    Args:
        arguments: the command line after the program's name.

    Returns:
        The file of sweeps/, and a digest of the other options, where there are any; how jobs are launched and
        what else Hydra itself is told is not among them.
    """
    options = [one for one in arguments if one not in ("-m", "--multirun") and not one.lstrip("+~").startswith("hydra")]
    names = [one.removeprefix("sweeps=") for one in options if one.startswith("sweeps=")]
    rest = [one for one in options if not one.startswith("sweeps=")]
    digest = [hashlib.sha256("\n".join(rest).encode()).hexdigest()[:8]] if rest else []
    return "-".join([*(names or ["sweep"]), *digest])
