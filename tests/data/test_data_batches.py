"""Examples become tokens, and steps become batches, as a function of seed, epoch and step alone."""

import copy
import logging
import pickle
import weakref
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

from tests import runs
from winnow.data import Corpus, Example, SelectionDataModule, Target, collate, encode
from winnow.data.batch import pad_token_id
from winnow.data.encode import Encoded, Encoding, encode_prompt, stop_token_ids
from winnow.data.mixture import Mixture, Part
from winnow.data.orders import Orders
from winnow.data.pack import DOCUMENTS
from winnow.data.steps import StepSampler
from winnow.data.turns import rows_per_target
from winnow.lm.layout import response_tokens
from winnow.lm.losses import IGNORE, take

exact = settings(derandomize=True, deadline=None, max_examples=60)
PLAIN = Example("e", "s", "What is 1 plus 2?", "It is 3.")
CHAT = Example(
    "c",
    "s",
    "Be short.\nWhat is 1 plus 2?\n3\nAnd 4?",
    "It is 7.",
    messages=(
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is 1 plus 2?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "And 4?"},
        {"role": "assistant", "content": "It is 7."},
    ),
)
LOOP = "{% for turn in messages %}"
OPEN = "{% if add_generation_prompt %}"
TURNS = LOOP + "<|start|>{{ turn.role }}\n{{ turn.content }}<|end|>\n{% endfor %}"
TEMPLATES = {
    "own end of turn": TURNS + OPEN + "<|start|>assistant\n{% endif %}",
    "end of text": LOOP + "{{ turn.role }}: {{ turn.content | trim }}{{ eos_token }}{% endfor %}"
    + OPEN + "assistant: {% endif %}",
    "plain text": LOOP + "{{ turn.role }}: {{ turn.content }}\n{% endfor %}" + OPEN + "assistant: {% endif %}",
    "thinking": TURNS + OPEN + "<|start|>assistant\n<think>\n{% endif %}",
    "empty thought": LOOP + "<|start|>{{ turn.role }}\n{% if loop.last and turn.role == 'assistant' %}<think></think>"
    "{% endif %}{{ turn.content }}<|end|>\n{% endfor %}" + OPEN + "<|start|>assistant\n{% endif %}",
}  # fmt: skip
ENDS = {"own end of turn": "<|end|>", "thinking": "<|end|>", "empty thought": "<|end|>"}
END = "<|endoftext|>"


def templated(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(runs.tokenizer())
    tokenizer.add_tokens([AddedToken(name, special=True) for name in ("<|start|>", "<|end|>")])
    tokenizer.chat_template = template
    return tokenizer


def texts(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """What the loss is not over, and what it is over."""
    learnt = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE]
    assert row.labels == [IGNORE] * (len(row.labels) - len(learnt)) + learnt
    return tokenizer.decode(row.input_ids[: -len(learnt)]), tokenizer.decode(learnt)


@pytest.mark.parametrize(
    ("example", "prompt"), [(PLAIN, "What is 1 plus 2?\n"), (CHAT, CHAT.prompt + "\n")], ids=["plain", "chat"]
)
def test_without_a_template_the_prompt_is_a_line(example: Example, prompt: str) -> None:
    row = encode(example, runs.tokenizer(), 200, Encoding(loss_on="last", join_turns=True))
    assert texts(row, runs.tokenizer()) == (prompt, example.response + END)
    assert not row.truncated


def test_plain_text_is_learnt_from_its_beginning() -> None:
    row = encode(Example("e", "s", "", "Some text."), runs.tokenizer(), 100)
    assert row.labels == row.input_ids
    assert runs.tokenizer().decode(row.input_ids) == "Some text." + END


@pytest.mark.parametrize("example", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("name", ["own end of turn", "end of text", "empty thought"])
def test_a_chat_is_what_its_template_makes_of_it(name: str, example: Example) -> None:
    tokenizer = templated(TEMPLATES[name])
    spoken = {"user": example.prompt, "assistant": example.response}
    turns = list(example.messages or ({"role": role, "content": text} for role, text in spoken.items()))
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
    row = encode(example, tokenizer, 500)
    # All of it but the line break after the last end of turn, which no generation reaches.
    assert row.input_ids == whole[: len(row.input_ids)]
    assert tokenizer.decode(whole[len(row.input_ids) :]).strip() == ""


@pytest.mark.parametrize("example", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_begins_where_a_generation_would_and_ends_with_the_turn(name: str, example: Example) -> None:
    tokenizer = templated(TEMPLATES[name])
    row, prompt = encode(example, tokenizer, 500, Encoding(loss_on="last")), encode_prompt(example, tokenizer)
    asked, learnt = texts(row, tokenizer)
    # One template opens a generation with a mark that it does not write before a reply: there the two part.
    assert row.parted == (name == "thinking")
    assert tokenizer.decode(prompt) == asked + ("<think>\n" if row.parted else "")
    assert row.parted or row.input_ids[: len(prompt)] == prompt
    thought = "<think></think>" if name == "empty thought" else ""
    assert learnt == thought + example.response + ENDS.get(name, END)
    assert row.labels[-1] in stop_token_ids(tokenizer)


def test_generation_stops_at_either_end() -> None:
    tokenizer = templated(TEMPLATES["own end of turn"])
    assert tokenizer.convert_ids_to_tokens(sorted(stop_token_ids(tokenizer))) == [END, "<|end|>"]
    assert stop_token_ids(templated(TEMPLATES["plain text"])) == {tokenizer.eos_token_id}
    assert stop_token_ids(runs.tokenizer()) == {tokenizer.eos_token_id}


def test_a_template_that_refuses_turns_is_named() -> None:
    tokenizer = templated("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}")
    with pytest.raises(ValueError, match=r"refuses the turns: \(system, user.*no system turn"):
        encode(CHAT, tokenizer, 100)


def test_a_tokenizer_that_ends_every_text_ends_the_response_once() -> None:
    tokenizer = copy.deepcopy(runs.tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.eos_token_id)]
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    assert encode(PLAIN, tokenizer, 100) == encode(PLAIN, runs.tokenizer(), 100)


@exact
@given(st.text(), st.text(min_size=1), st.integers(1, 60))
def test_truncation_cuts_the_end_and_says_so(prompt: str, response: str, length: int) -> None:
    whole = encode(Example("e", "s", prompt, response), runs.tokenizer(), 10_000)
    row = encode(Example("e", "s", prompt, response), runs.tokenizer(), length)
    assert (row.input_ids, row.labels) == (whole.input_ids[:length], whole.labels[:length])
    assert (row.truncated, row.length) == (len(whole.input_ids) > length, len(whole.input_ids))


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@exact
@given(lengths, st.randoms(use_true_random=False))
def test_collate_pads_and_take_unpads(sizes: list[int], chance: Any) -> None:
    rows = [Encoded(list(range(7, 7 + size)), [IGNORE, *range(8, 7 + size)], False) for size in sizes]
    batch = collate(rows, pad=3)
    assert {tuple(value.shape) for value in batch.values()} == {(len(rows), max(sizes))}
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        size = len(row.input_ids)
        assert mask.tolist() == [1] * size + [0] * (len(mask) - size)
        assert ids.tolist() == row.input_ids + [3] * (len(ids) - size)
        assert labels.tolist() == row.labels + [IGNORE] * (len(labels) - size)
    index = [at for at in range(len(rows)) if chance.random() < 0.5]
    if index:
        some, wanted = take(batch, torch.tensor(index)), collate([rows[at] for at in index], pad=3)
        assert all(torch.equal(some[name], wanted[name]) for name in wanted)


def test_padding_has_an_id_where_the_tokenizer_names_none() -> None:
    tokenizer = copy.deepcopy(runs.tokenizer())
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id


@exact
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 40))
def test_rows_are_shared_by_weight(weights: list[float], extra: int) -> None:
    rows = len(weights) + extra
    counts = rows_per_target(rows, weights)
    assert sum(counts) == rows and min(counts) >= 1
    quota = [weight / sum(weights) * rows for weight in weights]
    if min(quota) >= 1:
        assert all(abs(count - wanted) < 1 for count, wanted in zip(counts, quota, strict=True))


@pytest.mark.parametrize(
    ("rows", "weights", "said"),
    [
        (1, [1.0, 1.0], "data.target_batch_size=1 is smaller than the number of targets"),
        (4, [1.0, 0.0], "weights must be > 0"),
        (4, [-1.0], "weights must be > 0"),
    ],
)
def test_impossible_shares_are_refused(rows: int, weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rows_per_target(rows, weights)


def same(one: Any, two: Any) -> bool:
    """Whether two batches are equal, tensors bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


KEYS = [(epoch, step) for epoch in range(2) for step in (0, 1, 5, 11)]


def test_a_step_is_a_function_of_seed_epoch_and_step() -> None:
    forwards, backwards, other = runs.datamodule().steps, runs.datamodule().steps, runs.datamodule(seed=4).steps
    batches = {key: forwards[key] for key in KEYS}
    assert all(same(backwards[key], batches[key]) for key in reversed(KEYS))
    assert not any(same(other[key], batches[key]) for key in KEYS)


def test_an_epoch_serves_every_example_once_in_an_order_of_its_own() -> None:
    steps = runs.datamodule().steps
    orders = [[name for step in range(12) for name in steps[epoch, step]["meta"]["id"]] for epoch in range(3)]
    assert all(sorted(order) == sorted(f"sums-{n}" for n in range(96)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_one_lap_of_a_split_is_kept_in_the_order_that_its_numbers_give(size: int) -> None:
    orders = Orders(7)
    for lap in (0, 1, 0):
        drawn = orders.order(size, 2, lap)
        np.testing.assert_array_equal(drawn, np.random.default_rng((7, 2, lap)).permutation(size))
        assert orders.order(size, 2, lap) is drawn and drawn.nbytes == 4 * size
    kept = weakref.ref(drawn)
    del drawn
    orders.order(size, 0, 0)
    assert kept() is not None
    orders.order(size, 2, 1)
    assert kept() is None
    assert pickle.loads(pickle.dumps(orders))._latest == {}


def test_target_batches_go_through_each_split_in_turn() -> None:
    val = [Example(f"v{n}", "s", f"Number {n}?", f"{n}.") for n in range(10)]
    world = runs.corpus(targets=2)
    world = Corpus(world.stream, [Target("a", val, world.targets[0].test, weight=3.0), world.targets[1]])
    steps = runs.datamodule(corpus=world, target_batch_size=5).steps
    batches = [steps.target_batch(step) for step in range(10)]
    for batch in batches:
        assert batch["task"].tolist() == [0, 0, 0, 0, 1]
        torch.testing.assert_close(batch["weight"], torch.tensor([3 / 16] * 4 + [1 / 4]))
    served = [tuple(ids) for batch in batches for ids in batch["input_ids"][:4].tolist()]
    stripped = [tuple(token for token in ids if token != steps.pad) for ids in served]
    known = {tuple(encode(e, runs.tokenizer(), 64).input_ids): e.id for e in val}
    names = [known[ids] for ids in stripped]
    # Forty rows are four laps over ten examples, each in another order.
    laps = [names[at : at + 10] for at in range(0, 40, 10)]
    assert all(sorted(lap) == sorted(example.id for example in val) for lap in laps)
    assert len({tuple(lap) for lap in laps}) == 4


def test_a_resumed_sampler_goes_on_where_it_stopped() -> None:
    def keys(sampler: StepSampler, epochs: int) -> list[tuple[int, int]]:
        found = []
        for epoch in range(sampler.start[0], epochs):
            sampler.set_epoch(epoch)
            found += list(sampler)
        return found

    whole = keys(StepSampler(4), 3)
    assert whole == [(epoch, step) for epoch in range(3) for step in range(4)]
    for done, (epoch, step) in enumerate(whole):
        assert keys(StepSampler(4, (epoch, step + 1)), 3) == whole[done + 1 :]
    assert len(StepSampler(4, (1, 2))) == 4
    assert list(islice(StepSampler(None, (0, 7)), 2)) == [(0, 7), (0, 8)]
    with pytest.raises(TypeError, match="endless"):
        len(StepSampler(None))


def test_the_position_is_kept_in_a_checkpoint() -> None:
    first, second = runs.datamodule(), runs.datamodule()
    first.position = (1, 5)
    second.load_state_dict(first.state_dict())
    for step, batch in zip((5, 6, 7), second.train_dataloader(), strict=False):
        # The loader turns tuples into lists.
        assert same({**batch, "key": tuple(batch["key"])}, first.steps[1, step])


def test_hidden_labels_stay_out_of_the_batches_a_selector_sees() -> None:
    labelled = [Example(f"{n}", "s", f"p{n}", "r", labels={"group": "in", "noise": "wrong"}) for n in range(8)]
    target = runs.corpus().targets[0]
    batch = runs.datamodule(corpus=Corpus(runs.Listed(labelled), [target])).steps[0, 0]
    assert batch["meta"]["noise"] == ["wrong"] * 8 and batch["meta"]["group"] == ["in"] * 8
    assert set(batch["pool"]) == {"input_ids", "attention_mask", "labels"}
    assert set(batch["target"]) == {"input_ids", "attention_mask", "labels", "weight", "task"}


def test_long_examples_are_counted_and_a_long_prompt_leaves_no_response() -> None:
    long = [Example("0", "s", "word " * 60, "r"), Example("1", "s", "p", "word " * 60), *map(runs.example, range(6))]
    batch = runs.datamodule(corpus=Corpus(runs.Listed(long), runs.corpus().targets), max_length=40).steps[0, 0]
    at = {name: place for place, name in enumerate(batch["meta"]["id"])}
    assert [batch["truncated"][at[name]].item() for name in ("0", "1", "sums-3")] == [True, True, False]
    tokens = response_tokens(batch["pool"])
    assert tokens[at["0"]] == 0 and tokens[at["1"]] > 0
    assert batch["pool"]["input_ids"].shape == (8, 40)


def test_a_target_example_without_room_for_its_response_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    target = runs.corpus().targets[0]
    long = [Example("long", "s", "word " * 60, "r"), Example("cut", "s", "p", "word " * 60)]
    world = Corpus(runs.corpus().stream, [Target("t", [*long, *target.val], [*target.test, *long])])
    with caplog.at_level(logging.WARNING):
        data = runs.datamodule(corpus=world, max_length=40)
    assert [example.id for example in data.corpus.targets[0].val] == ["cut", *(e.id for e in target.val)]
    assert len(data.corpus.targets[0].test) == 8
    key = "data.corpus.targets.t"
    assert [record.getMessage() for record in caplog.records] == [
        f"{key}.val: 1 of 12 examples have no response token left and do not count (data.max_length=40)",
        f"{key}.val: 1 of 12 examples are cut (data.max_length=40)",
        f"{key}.test: 1 of 8 examples have no response token left and do not count (data.max_length=40)",
        f"{key}.test: 1 of 8 examples are cut (data.max_length=40)",
    ]
    with pytest.raises(ValueError, match=r"targets.t.val: none of its 12 examples .*data.max_length=2 tokens"):
        runs.datamodule(corpus=world, max_length=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool_size": 0}, "data.pool_size must be at least 1, got 0"),
        ({"max_length": -1}, "data.max_length must be at least 1"),
        ({"pool_size": 97}, r"the stream holds 96 examples, fewer than one pool \(data.pool_size=97\)"),
        ({"corpus": Corpus(runs.Listed([PLAIN] * 9), [Target("t", [], [PLAIN])])}, "'t' has an empty val or test"),
        ({"packing": True}, "packing needs an endless stream"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        runs.datamodule(**options)


def test_validation_batches_hold_every_example_of_the_split() -> None:
    data = runs.datamodule(val_batch_size=4)
    target = data.corpus.targets[0]
    batches = data.val_batches(target)
    rows = [[token for token in ids.tolist() if token != data.steps.pad] for b in batches for ids in b["input_ids"]]
    assert sorted(rows) == sorted(encode(example, runs.tokenizer(), 64).input_ids for example in target.val)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]


class Endless:
    """Short documents by position."""

    size = None

    def __getitem__(self, index: int) -> Example:
        return Example(f"{index}", "s", "", f"document {index}")


def test_packed_rows_are_whole_documents_end_to_end() -> None:
    data = SelectionDataModule(Corpus(Endless(), []), runs.tokenizer(), 2, 1, 50, packing=True)
    batch = data.steps[0, 3]
    for place, row in enumerate(batch["pool"]["input_ids"]):
        first = (6 + place) * DOCUMENTS
        wanted = "".join(f"document {first + n}{END}" for n in range(DOCUMENTS))
        assert wanted.startswith(runs.tokenizer().decode(row))
    assert torch.equal(batch["pool"]["labels"], batch["pool"]["input_ids"]) and bool(
        batch["pool"]["attention_mask"].all()
    )
    with pytest.raises(ValueError, match="64 documents gave only"):
        SelectionDataModule(Corpus(Endless(), []), runs.tokenizer(), 1, 1, 5000, packing=True).steps[0, 0]


def test_an_endless_stream_is_served_by_position() -> None:
    from winnow.data.families import Facts

    data = runs.datamodule(corpus=Corpus(Mixture({"f": Part(Facts(), 1.0)}), runs.corpus().targets))
    assert data.steps.steps is None
    assert data.steps[0, 2]["meta"]["id"] == [f"stream-0-{n}" for n in range(16, 24)]
