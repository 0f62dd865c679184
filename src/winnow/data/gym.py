"""Streams and targets from reasoning-gym's procedural data sets, scored by their own scorers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from winnow.data.example import Corpus, Example, Target
from winnow.data.families.draft import Draft
from winnow.data.mixture import Mixture, Part
from winnow.data.rows import options
from winnow.data.tasks import task_split

INDICES = 2**31  # positions drawn from; a data set is a function of the position
ATTEMPTS = 100
# Checked with reasoning-gym 0.1.25: an item of these depends on Python's hash seed, which differs from process to
# process, so that no run could be repeated or resumed.
UNREPEATABLE = ("codeio", "isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note")


@dataclass(frozen=True)
class GymPart:
    """A data set's place in a mixture.

    Args:
        weight: its share, relative to the other parts.
        group: hidden label, how near it is to the target: ``in``, ``near`` or ``far``.
        config: arguments of the data set, for example its difficulty; its defaults where left out.
        name: of the data set in reasoning-gym; the part's own name where left out, so that one data
            set can have several parts.
    """

    weight: float = 1.0
    group: str = "far"
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


class GymFamily:
    """A reasoning-gym data set as a task family: the question is the prompt, its answer the response.

    Args:
        name: of the data set in reasoning-gym.
        config: arguments of the data set.
        key: the config key it comes from, for messages.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed; says how to install it.
        ValueError: there is no such data set, it does not take the arguments, or it cannot be a stream:
            a fixed number of items, no answers to train on, or items that differ from process to process.
    """

    def __init__(self, name: str, config: Mapping[str, Any] | None = None, key: str = "data.corpus.mixture") -> None:
        factory = _factory()
        known = sorted(factory.DATASETS)
        if name not in known:
            near = get_close_matches(name, known, n=3)
            meant = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{key}: reasoning-gym has no data set {name!r}; {meant}")
        if name in UNREPEATABLE:
            raise ValueError(f"{key}: {name} is not repeatable, its items depend on Python's hash seed; leave it out")
        self.name = name
        try:
            self.dataset = factory.create_dataset(name, seed=0, **(config or {}))
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{key}.config: {name} does not take {dict(config or {})}: {error}") from error
        try:
            self(random.Random(0))
        except IndexError as error:
            raise ValueError(f"{key}: {name} has a fixed number of items and cannot be an endless stream") from error

    def entry(self, rng: random.Random) -> Mapping[str, Any]:
        """Draw an item that has an answer.

        Args:
            rng: source of randomness.

        Returns:
            ``question``, ``answer`` and ``metadata``, as the data set's scorer takes them.

        Raises:
            ValueError: the data set gives no answers.
        """
        for _ in range(ATTEMPTS):
            entry: Mapping[str, Any] = self.dataset[rng.randrange(INDICES)]
            if isinstance(entry["answer"], str) and entry["answer"].strip():
                return entry
        raise ValueError(f"{self.name} of reasoning-gym gives questions without answers; there is nothing to train on")

    def __call__(self, rng: random.Random) -> Draft:
        """Draw a task."""
        return _draft(self.entry(rng))


def _draft(entry: Mapping[str, Any]) -> Draft:
    return Draft(entry["question"], entry["answer"], entry["answer"])


class _Recorded:
    """A family that remembers the items it drew, by prompt: a scorer needs them whole."""

    def __init__(self, family: GymFamily) -> None:
        self.family = family
        self.entries: dict[str, Mapping[str, Any]] = {}

    def __call__(self, rng: random.Random) -> Draft:
        entry = self.family.entry(rng)
        draft = _draft(entry)
        self.entries.setdefault(draft.prompt, entry)
        return draft


class GymScore:
    """A data set's own score of a generation, in [0, 1]; several give partial credit.

    Some of reasoning-gym's scorers let sympy evaluate the generation as an expression.

    Args:
        family: the data set.
        entries: its items by prompt.
    """

    def __init__(self, family: GymFamily, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.family, self.entries = family, entries

    def __call__(self, generation: str, example: Example) -> float:
        """The score of a generation; white space around it aside."""
        entry = self.entries[example.prompt]
        try:
            return float(self.family.dataset.score_answer(generation.strip(), entry))
        except Exception:
            # Scorers parse the generation, and several raise whatever parsing raises: it is not an answer.
            return 0.0


def gym_corpus(
    mixture: Mapping[str, GymPart | Mapping[str, Any] | None],
    targets: Mapping[str, float],
    noise: Mapping[str, float] | None = None,
    val_size: int = 128,
    test_size: int = 200,
    seed: int = 0,
    max_new_tokens: int = 64,
) -> Corpus:
    """An endless stream mixed from reasoning-gym data sets, and some of them as targets.

    The splits are disjoint from the stream by content (``winnow.data.splits``), and so by position,
    too. Val and test do not depend on the seed of the run.

    Args:
        mixture: ``GymPart`` or its arguments by name; None leaves one out.
        targets: weight of each target, by its name in the mixture.
        noise: rates of ``shuffled`` and ``duplicate`` examples in the stream.
        val_size: validation examples per target.
        test_size: test examples per target.
        seed: of the stream.
        max_new_tokens: length allowed to a generation.

    Returns:
        The corpus.

    Raises:
        ModuleNotFoundError: reasoning-gym is not installed; says how to install it.
        ValueError: a target is not in the mixture, or a part is at fault (see ``GymFamily``).
    """
    families: dict[str, GymFamily] = {}
    parts: dict[str, Part] = {}
    for name, given in mixture.items():
        if given is not None:
            key = f"data.corpus.mixture.{name}"
            part = options(GymPart, given, key)
            families[name] = GymFamily(part.name or name, part.config, key)
            parts[name] = Part(families[name], part.weight, part.group)
    unknown = set(targets) - set(parts)
    if unknown:
        raise ValueError(f"data.corpus.targets: {sorted(unknown)} are not in data.corpus.mixture ({', '.join(parts)})")
    stream = Mixture(parts, seed, noise, source="reasoning_gym")
    built = []
    for name, weight in targets.items():
        drawn = _Recorded(families[name])
        val, test = (
            task_split(name, drawn, split, size, source="reasoning_gym")
            for split, size in (("val", val_size), ("test", test_size))
        )
        kept = {example.prompt: drawn.entries[example.prompt] for example in (*val, *test)}
        built.append(Target(name, val, test, GymScore(families[name], kept), weight, max_new_tokens))
    return Corpus(stream, built)


def _factory() -> Any:
    """reasoning-gym's registry of data sets."""
    try:
        return import_module("reasoning_gym.factory")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data=reasoning_gym needs an extra that is not installed ({error}): "
            'pip install -c constraints.txt -e ".[reasoning-gym]" (one of its dependencies needs a C compiler)'
        ) from error
