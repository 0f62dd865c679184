"""reasoning-gym's data sets as streams and targets, and a clear word where the package is not installed."""

import os
import random
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest

from winnow.data import Corpus, Example
from winnow.data import gym as winnow_gym
from winnow.data.gym import UNREPEATABLE, GymFamily, GymScore, gym_corpus
from winnow.data.splits import normalise
from winnow.run.instantiate import build

CONF = Path(__file__).parents[2] / "conf"
real = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is an extra")
SMALL: dict[str, Any] = {
    "sums": {"name": "chain_sum", "weight": 2.0, "group": "in", "config": {"max_terms": 3, "max_digits": 2}},
    "spell_backward": {"weight": 1.0},
    "gone": None,
}


class Doubles:
    """Stands in for a data set of reasoning-gym: item i asks for twice i."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index % 3 == 0:
            return {"question": f"Twice {index}?", "answer": None, "metadata": {}}
        return {"question": f"Twice {index}?", "answer": str(2 * index), "metadata": {"index": index}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return 1.0 if int(answer) == 2 * entry["metadata"]["index"] else 0.25


class Fixed(Doubles):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return [{"question": "q", "answer": "a", "metadata": {}}][index]


class Silent(Doubles):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"question": "q", "answer": None, "metadata": {}}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with three made-up data sets, for what does not depend on the real ones."""

    def create(name: str, seed: int, level: int = 1) -> Doubles:
        assert level > 0, "level must be positive"
        return sets[name]()

    sets = {"doubles": Doubles, "fixed": Fixed, "silent": Silent, "codeio": Doubles}
    factory = SimpleNamespace(DATASETS=sets, create_dataset=create)
    monkeypatch.setattr(winnow_gym, "import_module", lambda name: factory)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.delitem(sys.modules, "reasoning_gym.factory", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"data=reasoning_gym needs .*-c constraints.txt -e \"\.\[reasoning-gym\]"
    ):
        gym_corpus({"chain_sum": {}}, {})


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"name": "double"}, r"mixture.it: reasoning-gym has no data set 'double'; did you mean doubles\?"),
        ({"name": "zzz"}, "'zzz'; it has codeio, doubles, fixed, silent"),
        ({"name": "doubles", "config": {"levle": 1}}, r"mixture.it.config: doubles does not take \{'levle': 1\}"),
        ({"name": "doubles", "config": {"level": 0}}, "level must be positive"),
        ({"name": "doubles", "wieght": 1}, "mixture.it has no wieght; its keys are weight, group, config, name"),
        ({"name": "fixed"}, "fixed has a fixed number of items"),
        ({"name": "silent"}, "silent of reasoning-gym gives questions without answers"),
        ({"name": "codeio"}, "codeio is not repeatable"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_a_part_that_cannot_be_is_named(part: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gym_corpus({"it": part}, {})


@pytest.mark.usefixtures("stand_in")
def test_a_target_is_a_part_and_there_are_no_wrong_answers() -> None:
    with pytest.raises(ValueError, match=r"\['sums'\] are not in data.corpus.mixture \(doubles\)"):
        gym_corpus({"doubles": {}}, {"sums": 1.0})
    with pytest.raises(ValueError, match="doubles cannot give wrong answers"):
        gym_corpus({"doubles": {}}, {}, {"wrong": 0.1})


@pytest.mark.usefixtures("stand_in")
def test_a_scorer_that_fails_on_a_generation_says_nought() -> None:
    entry = Doubles()[4]
    score = GymScore(GymFamily("doubles"), {"Twice 4?": entry})
    given = Example("i", "s", "Twice 4?", "8")
    assert [score(text, given) for text in (" 8\n", "9", "eight", "")] == [1.0, 0.25, 0.0, 0.0]
    with pytest.raises(KeyError):
        score("8", Example("i", "s", "another prompt", "8"))


@pytest.mark.usefixtures("stand_in")
def test_questions_without_an_answer_are_passed_over() -> None:
    family = GymFamily("doubles")
    drawn = [family(random.Random(seed)) for seed in range(60)]
    assert all(draft.response and int(draft.prompt[6:-1]) % 3 for draft in drawn)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    noise = {"shuffled": 0.2, "duplicate": 0.2}
    return gym_corpus(SMALL, {"sums": 1.0, "spell_backward": 2.0}, noise, 30, 40, seed=3)


@real
def test_splits_of_real_data_sets_share_no_content(corpus: Corpus) -> None:
    stream = {normalise(corpus.stream[index].prompt) for index in range(600)}
    splits = [{normalise(e.prompt) for e in s} for target in corpus.targets for s in (target.val, target.test)]
    assert [len(split) for split in splits] == [30, 40, 30, 40]
    assert all(not stream & split for split in splits) and len(set.union(*splits)) == 140


@real
def test_real_answers_satisfy_their_own_scorers(corpus: Corpus) -> None:
    for target in corpus.targets:
        assert target.score is not None
        assert all(target.score(example.response, example) == 1.0 for example in (*target.val, *target.test))
        assert all(target.score("no idea", example) < 0.5 for example in target.val)  # some give partial credit
    sums = corpus.targets[0].test
    assert all(eval(e.prompt.split(": ")[1].removesuffix(" =")) == int(e.response) for e in sums)


@real
def test_the_real_stream_is_mixed_labelled_and_repeatable(corpus: Corpus) -> None:
    drawn = [corpus.stream[index] for index in range(600)]
    again = gym_corpus(SMALL, {}, {"shuffled": 0.2, "duplicate": 0.2}, seed=3)
    assert all(again.stream[index] == drawn[index] for index in reversed(range(200)))
    noise = Counter(example.labels["noise"] for example in drawn)
    assert 80 < noise["shuffled"] < 160 and 80 < noise["duplicate"] < 160
    assert Counter(e.source for e in drawn)["reasoning_gym/sums"] > 300
    assert {e.source: e.labels["group"] for e in drawn} == {
        "reasoning_gym/sums": "in",
        "reasoning_gym/spell_backward": "far",
    }
    sums = [e for e in drawn if e.source.endswith("sums")]
    for e in sums:
        right = str(eval(e.prompt.split(": ")[1].removesuffix(" =")))
        assert (e.response == right) == (e.labels["noise"] != "shuffled")


@real
def test_the_shipped_configuration_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_ROOT", str(CONF.parent))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = hydra.compose("train", overrides=["data=reasoning_gym", "data.corpus.val_size=4"])
    config.data.corpus.test_size = 4
    built = build(config.data.corpus)
    assert len({built.stream[index].source for index in range(300)}) == len(config.data.corpus.mixture)


ITEMS = """
import sys
from reasoning_gym.factory import create_dataset
for name in sys.argv[1:]:
    dataset = create_dataset(name, seed=0)
    print(name, [(dataset[at]["question"], dataset[at]["answer"]) for at in (5, 123456789, 2**31 - 1)])
"""


@real
def test_items_do_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_ROOT", str(CONF.parent))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        names = list(hydra.compose("train", overrides=["data=reasoning_gym"]).data.corpus.mixture)
    assert not set(names) & set(UNREPEATABLE)
    command = [sys.executable, "-W", "ignore", "-c", ITEMS, *names]
    printed = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout.splitlines())
    assert len(printed[0]) == len(names) and printed[0] == printed[1]
