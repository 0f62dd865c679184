"""The command line: Hydra's, with errors that say what was meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.main import get_args_parser
from omegaconf import DictConfig, OmegaConf

from winnow.records.shown import shown
from winnow.run.again import going_on, sweep_name
from winnow.run.leaving import ended_by_schedulers
from winnow.run.options import check_name
from winnow.run.place import unwritable

BAD_USAGE = 2
INTERRUPTED = 130  # what shells use for it
CLASS = "selector._target_"
PICKLED = (
    "--experimental-rerun is refused: Hydra reads the configuration from a pickle, which runs whatever is in it. Give "
    "the command again: it is in provenance.json of the run's folder, and resume=auto goes on there."
)


def main(task: Callable[[DictConfig], Any], config_dir: Path, config_name: str) -> None:
    """Compose the configuration from the command line and run the task with it.

    A configuration that cannot be composed ends the process with code 2 and a message that names the
    nearest keys and options; everything else is Hydra's own command line. ``HYDRA_FULL_ERROR=1`` leaves
    all errors to Hydra.

    Args:
        task: called with the composed configuration.
        config_dir: folder of the primary configuration.
        config_name: its name.

    Raises:
        SystemExit: with code 2 after the message, 130 after an interrupt, 143 after SIGTERM or SIGUSR1, 1 where the
            task fails.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process, as >&- does
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    sys.argv[1:] = implied(sys.argv[1:])
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a selector of the user's own is looked for where they are
    problems = [PICKLED] if get_args_parser().parse_known_args(sys.argv[1:])[0].experimental_rerun else []
    if problems or os.environ.get("HYDRA_FULL_ERROR") != "1":
        problems = problems or check(sys.argv[1:], config_dir, config_name)
        problems = problems or list(filter(None, [unwritable(sys.argv[1:])]))
        if problems:
            sys.stderr.write(shown("\n\n".join(problems), keep="\n") + "\n")
            raise SystemExit(BAD_USAGE)
    _name_root(config_dir)
    os.environ["WINNOW_SWEEP"] = sweep_name(sys.argv[1:])
    sys.argv[1:] = going_on(sys.argv[1:], config_dir, config_name)
    try:
        with ended_by_schedulers():
            hydra.main(version_base="1.3", config_path=str(config_dir.resolve()), config_name=config_name)(task)()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def implied(arguments: Sequence[str]) -> list[str]:
    """The command line with what it implies: ``selector._target_=CLASS`` alone means ``selector=custom``.

    Otherwise CLASS would be given the arguments of whatever method is the default.

    Args:
        arguments: the command line after the program's name.

    Returns:
        The same, with ``selector=custom`` before the class where neither a selector nor a baseline is chosen.
    """
    # The words "selector" and "baseline" also follow flags, as in --package selector.
    keys = [_prefix(argument).lstrip("+~") if "=" in argument else "" for argument in arguments]
    if CLASS not in keys or {"selector", "baseline"} & set(keys):
        return list(arguments)
    at = keys.index(CLASS)
    return [*arguments[:at], "selector=custom", *arguments[at:]]


def check(arguments: Sequence[str], config_dir: Path, config_name: str) -> list[str]:
    """What is wrong with a command line, found by composing its configuration without running it.

    Args:
        arguments: the command line after the program's name.
        config_dir: folder of the primary configuration.
        config_name: its name.

    Returns:
        One message per problem; empty where it composes, and for flags that ask for something else than
        a run of this configuration (``--help``, ``--info``, another ``--config-name``, ...).
    """
    parser = get_args_parser()
    flags, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        return [_unknown_flag(unknown[0], list(parser._option_string_actions))]
    asked = {"-m": flags.multirun, "--cfg": flags.cfg, "--info": flags.info, "--run": flags.run}
    both = [flag for flag, value in asked.items() if value]
    if len(both) > 1:
        return [
            f"{' and '.join(both)} ask for different things: give one of them ({both[-1]} alone, without {both[0]})."
        ]
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion:
        return []
    if flags.config_name or flags.config_path or flags.config_dir:
        return []
    _name_root(config_dir)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_dir.resolve())):
        return _Composition(config_name, multirun=flags.multirun).problems(flags.overrides, ran=not flags.cfg)


def _name_root(config_dir: Path) -> None:
    # Hydra resolves a relative search path against the caller's folder; this one is the config's own.
    os.environ["WINNOW_ROOT"] = str(config_dir.resolve().parent)


class _Composition:
    """Finds what keeps overrides from composing."""

    def __init__(self, config_name: str, multirun: bool) -> None:
        self.config_name, self.multirun = config_name, multirun
        self.loader = GlobalHydra.instance().config_loader()

    def problems(self, overrides: Sequence[str], ran: bool) -> list[str]:
        """Messages for overrides that do not compose; ``ran`` is whether a run is to follow."""
        parsed: list[Override] = []
        for override in overrides:
            try:
                parsed += OverridesParser.create(self.loader).parse_overrides([override])
            except OverrideParseException as error:
                return [_grammar(override, error)]
        for named in (one for one in parsed if one.key_or_group == "name"):
            for line in self._alternatives(named):
                try:
                    check_name(line.partition("=")[2].strip("'\""))
                except ValueError as error:
                    return [str(error)]
        simple = [alternative for override in parsed for alternative in self._alternatives(override)[:1]]
        failed = self._compose(simple)
        if isinstance(failed, DictConfig):
            name = None
            with suppress(Exception):  # the default one is Hydra's to resolve
                name = failed.name
            try:
                check_name(name)
            except ValueError as error:
                return [str(error)]
            return self._swept(failed, parsed, simple, ran)
        return self._blame(parsed) or [str(failed)]

    def _alternatives(self, override: Override) -> list[str]:
        # A sweep over 4,8 is checked value by value; outside a sweep Hydra's own message is the one to give.
        if self.multirun and override.is_sweep_override() and not override.is_hydra_override():
            return [f"{_prefix(str(override.input_line))}={value}" for value in override.sweep_string_iterator()]
        return [str(override.input_line)]

    def _is_group(self, override: Override) -> bool:
        return bool(self._options(str(override.key_or_group)))

    def _compose(self, overrides: Sequence[str]) -> DictConfig | Exception:
        try:
            return hydra.compose(self.config_name, overrides=list(overrides), return_hydra_config=True)
        except Exception as error:  # YAML's, too, and plain ValueErrors: Hydra lets them through
            return error

    def _swept(self, config: DictConfig, parsed: list[Override], simple: list[str], ran: bool) -> list[str]:
        """Problems of the values a sweep goes through, on the command line or in a file of sweeps/."""
        axes = config.hydra.sweeper.get("params") or {}
        if axes and ran and not self.multirun:
            return [
                "This configuration holds a sweep (hydra.sweeper.params), and a single run would ignore it: add -m."
            ]
        if not self.multirun:
            return []
        written = OverridesParser.create(self.loader).parse_overrides([f"{key}={value}" for key, value in axes.items()])
        messages = []
        for override in [*parsed, *written]:
            values = self._alternatives(override)
            if not self._is_group(override):
                values = values[:1]  # Hydra knows keys, not values
            rest = [line for line in simple if _prefix(line) != _prefix(values[0])]
            for line in values:
                error = None if line in simple else self._compose([*rest, line])
                if isinstance(error, Exception):
                    messages.append(self._explain(line, error, config))
        return messages

    def _blame(self, parsed: list[Override]) -> list[str]:
        """Try the overrides one after the other, groups first as Hydra does; explain those that fail."""
        good: list[str] = []
        bad: list[tuple[str, Exception]] = []
        for override in sorted(parsed, key=lambda one: not self._is_group(one)):
            line = self._alternatives(override)[0]
            error = self._compose([*good, line])
            if isinstance(error, Exception):
                bad.append((line, error))
            else:
                good.append(line)
        config = self._compose(good)
        return [self._explain(line, error, config) for line, error in bad]

    def _explain(self, line: str, error: Exception, config: DictConfig | Exception) -> str:
        key, adds = _prefix(line).lstrip("+~").split("@")[0], line.startswith("+")
        options = self._options(key)
        if options and line.partition("=")[2] in ("", "null") and not line.startswith("~"):
            return f"{line}: to leave the group out write ~{key}; or choose one of {', '.join(options)}."
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, option = str(error.missing_cfg_file).rpartition("/")
            options = self._options(group) if group else []
            if options:
                meant = _meant(_near(option, options))
                return f"Could not find '{group}/{option}'{meant} Available: {', '.join(options)}."
        if isinstance(config, DictConfig):
            held = OmegaConf.select(config, key.replace("/", ".")) is not None
            if adds and (held or key in config.hydra.runtime.choices):
                return f"{key} is set already; to change it write {line.lstrip('+')}, without the +."
            if not adds and not held:
                return self._unknown_key(key, line, config)
        detail = str(error.__cause__).splitlines()[:1] if error.__cause__ is not None else []
        return "\n".join([f"{line}: {error}", *detail])

    def _options(self, group: str) -> list[str]:
        folders = [Path(source.path) for source in self.loader.get_sources() if source.scheme() == "file"]
        # Hydra's repository does not list the search path that the primary configuration adds.
        added = Path(os.environ.get("WINNOW_ROOT", "")) / group
        found = {file.stem for folder in [*(at / group for at in folders), added] for file in folder.glob("*.yaml")}
        return sorted(found)

    def _unknown_key(self, key: str, line: str, config: DictConfig) -> str:
        parent, _, leaf = key.rpartition(".")
        while parent and not isinstance(OmegaConf.select(config, parent), DictConfig):
            parent, _, leaf = parent.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        names = {str(name) for name in node if parent or name != "hydra"}
        inside = f"{parent}.{leaf}" if parent else leaf
        if leaf in names and inside != key:
            return f"{inside} is a value and has no keys of its own, so {key} cannot be set."
        if leaf in self.loader.list_groups(parent.replace(".", "/")):
            group = inside.replace(".", "/")
            options = ", ".join(self._options(group))
            return f"Nothing is chosen from the group {group}: add {group}=OPTION, one of {options}."
        if not names:
            options = ", ".join(one for one in self._options(parent) if one != "none")
            if options:
                chosen = config.hydra.runtime.choices.get(parent)
                return (
                    f"Nothing is chosen from the group {parent} ({parent}={chosen}), so it has no key '{leaf}': "
                    f"choose one of {options}."
                )
        if not parent:
            names |= {group for group in self.loader.list_groups("") if group != "hydra"}
        elsewhere = [full for full in _keys(config) if full.endswith(f".{leaf}")]
        near = [f"{parent}.{name}" if parent else name for name in _near(leaf, names)]
        meant = [repr(name) for name in (elsewhere or near or _near(key, _keys(config)))[:3]]
        lines = [f"Key '{leaf}' is not in {parent or 'the configuration'}{_meant(meant)}"]
        if parent or not meant:
            lines.append(f"{f'Keys of {parent}' if parent else 'Keys and groups'}: {', '.join(sorted(names))}.")
        if not line.startswith("~") and not parent.startswith("hydra"):
            lines.append(f"To add a key that no file has, write +{line}.")
        return "\n".join(lines)


def _prefix(line: str) -> str:
    return line.split("=", 1)[0]


def _unknown_flag(written: str, flags: Sequence[str]) -> str:
    if not written.startswith("-"):
        return f"All KEY=VALUE have to stand together, before the flags or after them: move {written}."
    flag, name = written.split("=")[0], written.lstrip("-").split("=")[0]
    near = _near(flag, flags)
    if near:
        return f"There is no flag {flag}{_meant(near)}"
    return f"There is no flag {flag}. Values are set without dashes: {name}=VALUE; flags: --help, --cfg job, -m."


def _near(word: str, words: Iterable[str]) -> list[str]:
    return get_close_matches(word, list(words), n=3, cutoff=0.6)


def _meant(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else "."


def _keys(config: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in config:
        if prefix or name != "hydra":
            full = f"{prefix}{name!s}"
            yield full
            child = None if OmegaConf.is_missing(config, name) else config._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
                yield from _keys(child, f"{full}.")


def _grammar(override: str, error: OverrideParseException) -> str:
    if "=" not in override and not override.startswith("~"):
        return f"'{override}' sets nothing; write it as KEY=VALUE."
    return (
        f"{str(error).splitlines()[0]} in {override!r}\n"
        "Quote what the shell or Hydra could take for syntax: 'key=\"a value, with commas\"', or key=[1,2] for a list."
    )
