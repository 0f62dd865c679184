"""What of a chat carries loss: held against each template's own marks, and refused where a template drops something."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.templates import TEMPLATES, tokenizer_with
from winnow.data import Example
from winnow.data.chat import turns_of
from winnow.data.day import frozen
from winnow.data.encode import Encoded, Encoding, encode, encode_prompt
from winnow.data.fields import Fields, Row
from winnow.data.rejects import BadRow
from winnow.lm.losses import IGNORE
from winnow.models.templates import STAND_INS, template_of


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Quito", "days": 3}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": {}}}
ASKED, SAID = turn("user", "What is 7 + 5?"), turn("assistant", "It is 12.")
CHATS: dict[str, dict[str, Any]] = {
    "one round": {"messages": [ASKED, SAID]},
    "system": {"messages": [turn("system", "Be brief."), ASKED, SAID]},
    "rounds": {
        "messages": [ASKED, SAID, turn("user", "Doubled?"), turn("assistant", "24."), turn("user", "Again?"), SAID]
    },
    "tools": {
        "messages": [
            turn("user", "Weather in Quito?"),
            turn("assistant", None, tool_calls=[CALL]),
            turn("tool", "5 C", tool_call_id="c1"),
            turn("assistant", "It is 5 C in Quito."),
        ],
        "tools": [TOOL],
    },
    "thought": {"messages": [ASKED, turn("assistant", "It is 12.", reasoning_content="Adding 5 to 7.")]},
    "thoughts": {
        "messages": [
            ASKED,
            turn("assistant", "It is 12.", reasoning_content="Adding 5 to 7."),
            turn("user", "Doubled?"),
            turn("assistant", "24.", reasoning_content="Twice 12."),
        ]
    },
    "thought in the text": {"messages": [ASKED, turn("assistant", "<think>\nAdding 5 to 7.\n</think>\n\n12")]},
}
THINKS = {"chatml, thoughts of the last round", "chatml, every thought"}
CALLERS = {"chatml, default system, tools", "calls as lists"}
"""Templates that write tools, calls and all."""


def refused(template: str, chat: str) -> str | None:
    """Why a template cannot be trained on with a chat; None where it can."""
    if chat == "system" and template == "no system":
        return "the chat template refuses the turns: .*System role not supported"
    if chat == "tools" and template not in CALLERS:
        dropped = "`tool_calls`|has no place for `tools`|drops a turn|refuses|writes nothing for a turn"
        return f"the chat template .*({dropped})"
    if chat in ("thought", "thoughts") and template not in THINKS:
        return "drops `reasoning_content` of a turn that is trained on: .*model.chat_template=FILE"
    if chat == "thoughts" and template == "chatml, thoughts of the last round":
        return "drops `reasoning_content` of a turn that is trained on: turn 2 .*data.loss_on=last"
    if chat == "thought in the text" and template == "opens a thought":
        return "drops `content` of a turn that is trained on: .*keeps what follows </think>"
    return None


def example(chat: dict[str, Any]) -> Example:
    return Fields().example(Row(chat, "here", "id", "source"))


def learnt(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([one for one, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_is_on_what_the_templates_own_marks_say(name: str, chat: str) -> None:
    tokenizer, made = tokenizer_with(TEMPLATES[name]), example(CHATS[chat])
    why = refused(name, chat)
    if why is not None:
        with pytest.raises(BadRow, match=why):
            encode(made, tokenizer, 1000)
        return
    row = encode(made, tokenizer, 1000)
    tools = None if made.tools is None else list(made.tools)
    whole = tokenizer.apply_chat_template(
        list(made.messages or ()), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    size = len(row.input_ids) - (name == "plain text")  # which has no mark of its own that ends a text
    assert row.input_ids[:size] == whole["input_ids"][:size]
    assert tokenizer.decode(whole["input_ids"][size:]).strip() == ""
    marked = [bool(one) for one in whole["assistant_masks"][:size]]
    assert [label != IGNORE for label in row.labels[:size]] == marked
    assert row.labels[-1] == row.input_ids[-1] != IGNORE
    turns = sum(one["role"] == "assistant" for one in made.messages or ())
    assert (row.turns, row.trained) == (turns, turns)
    assert row.parted == (name == "opens a thought")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_alone_where_that_is_asked(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    row = encode(example(CHATS["rounds"]), tokenizer, 1000, Encoding(loss_on="last"))
    whole = encode(example(CHATS["rounds"]), tokenizer, 1000)
    said = learnt(row, tokenizer)
    assert said.count("It is 12.") == 1 and "24" not in said
    assert row.input_ids == whole.input_ids
    assert learnt(whole, tokenizer).endswith(said) and learnt(whole, tokenizer).count("12") == 2
    assert (row.turns, row.trained) == (3, 1)


def test_earlier_thoughts_may_be_left_out_where_they_carry_no_loss() -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml, thoughts of the last round"])
    row = encode(example(CHATS["thoughts"]), tokenizer, 1000, Encoding(loss_on="last"))
    assert learnt(row, tokenizer) == "<think>\nTwice 12.\n</think>\n\n24.<|im_end|>"


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("off", [0, False, 0.0])
def test_a_turn_that_is_not_to_be_trained_on_is_not(key: str, off: Any) -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    turns = [ASKED, {**SAID, key: 1}, turn("user", "Again, wrongly?"), turn("assistant", "13.", **{key: off})]
    row = encode(example({"messages": turns}), tokenizer, 1000)
    assert learnt(row, tokenizer) == "It is 12.<|im_end|>"
    assert "13." in tokenizer.decode(row.input_ids) and row.trained == 1


def test_what_stands_in_a_prompt_of_turns_is_context() -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    row = encode(
        example({"prompt": [ASKED, SAID, turn("user", "Doubled?")], "completion": [turn("assistant", "24.")]}),
        tokenizer,
        500,
    )
    assert learnt(row, tokenizer) == "24.<|im_end|>"


def test_a_template_that_writes_a_turn_twice_is_refused() -> None:
    twice = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    long = turn("user", "Name the longest river of the continent.")
    with pytest.raises(BadRow, match="writes a turn twice: turn 1"):
        encode(example({"messages": [long, SAID]}), tokenizer_with(twice), 500)


@pytest.mark.parametrize("response", ["d", "e", "end", "im", "<|im_end|", "12. 12. 12."])
@pytest.mark.parametrize("name", ["opens a thought", "chatml", "end of text", "headers and date"])
def test_an_answer_that_stands_inside_a_mark_is_still_the_answer(name: str, response: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    said = learnt(encode(example({"messages": [ASKED, turn("assistant", response)]}), tokenizer, 500), tokenizer)
    ends = {
        "opens a thought": "</s>",
        "chatml": "<|im_end|>",
        "end of text": "<|endoftext|>",
        "headers and date": "<|eot|>",
    }
    assert said == response + ends[name]


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(words, min_size=2, max_size=6),
    st.sampled_from(["chatml", "marks of roles", "end of text", "calls as lists"]),
)
def test_any_words_are_trained_on_as_they_are(said: list[str], name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    turns = [turn(("user", "assistant")[at % 2], text) for at, text in enumerate(said[: len(said) // 2 * 2])]
    row = encode(example({"messages": turns}), tokenizer, 10_000)
    end = {
        "chatml": "<|im_end|>",
        "marks of roles": "<|end|>",
        "end of text": "<|endoftext|>",
        "calls as lists": "</s>",
    }[name]
    assert learnt(row, tokenizer) == "".join(one["content"] + end for one in turns if one["role"] == "assistant")


def test_the_date_of_a_template_is_the_runs() -> None:
    tokenizer = tokenizer_with(TEMPLATES["headers and date"])
    row = encode(example(CHATS["rounds"]), tokenizer, 500, Encoding(date="2024-02-03"))
    assert "Today: 03 Feb 2024" in tokenizer.decode(row.input_ids)
    assert (
        encode_prompt(example(CHATS["one round"]), tokenizer, Encoding(date="2024-02-03"))
        == row.input_ids[: len(encode_prompt(example(CHATS["one round"]), tokenizer, Encoding(date="2024-02-03")))]
    )


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%-d.%-m.%y", "%A, %B %e", "%H:%M"])
def test_a_frozen_template_writes_what_the_clock_would_have(form: str) -> None:
    made = frozen("\n{% set f = '" + form + "' %}{{ strftime_now(f) }} {{ messages[0].content }}", "2024-02-03")
    text = tokenizer_with(made).apply_chat_template([ASKED], tokenize=False)
    assert text == f"\n{datetime(2024, 2, 3):{form}} What is 7 + 5?"
    assert frozen("{{ messages[0].content }}", "2024-02-03") == "{{ messages[0].content }}"


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("chat", CHATS)
def test_the_stand_ins_take_every_chat(name: str, chat: str) -> None:
    tokenizer, made = tokenizer_with(template_of(name)), example(CHATS[chat])
    row = encode(made, tokenizer, 1000)
    tools = None if made.tools is None else list(made.tools)
    whole = tokenizer.apply_chat_template(
        list(made.messages or ()), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    size = len(row.input_ids)
    assert row.input_ids == whole["input_ids"][:size]
    assert [label != IGNORE for label in row.labels] == [bool(one) for one in whole["assistant_masks"][:size]]


@pytest.mark.parametrize("join", [False, True])
def test_a_chat_without_a_template_is_refused_unless_its_turns_are_to_be_joined(join: bool) -> None:
    tokenizer = tokenizer_with("")
    if not join:
        with pytest.raises(BadRow, match=r"model\.chat_template=FILE or =chatml, or .*data\.join_turns=true"):
            encode(example(CHATS["rounds"]), tokenizer, 500)
        assert learnt(encode(example(CHATS["one round"]), tokenizer, 500), tokenizer) == "It is 12.<|endoftext|>"
        return
    row = encode(example(CHATS["rounds"]), tokenizer, 500, Encoding(join_turns=True))
    assert tokenizer.decode(row.input_ids).startswith("What is 7 + 5?\nIt is 12.\nDoubled?\n24.\nAgain?\nIt is 12.")
    assert learnt(row, tokenizer) == "It is 12.24.It is 12.<|endoftext|>"


@pytest.mark.parametrize(
    ("side", "said", "kept"),
    [("right", "What is 7", True), ("left", "It is 12.<|endoftext|>", True), ("drop", "What is 7", False)],
)
def test_what_is_cut_is_a_choice(side: str, said: str, kept: bool) -> None:
    tokenizer = tokenizer_with("")
    whole = encode(Example("e", "s", "What is 7 + 5? " * 3, "It is 12."), tokenizer, 500)
    size = len(whole.input_ids) - 4
    row = encode(Example("e", "s", "What is 7 + 5? " * 3, "It is 12."), tokenizer, size, Encoding(truncate=side))
    assert len(row.input_ids) == size and row.truncated and row.length == size + 4
    assert said in tokenizer.decode(row.input_ids) and any(label != IGNORE for label in row.labels) == kept


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([ASKED, turn("assistant", "a", weight=0.5)], "`weight` of a turn must be 0 or 1"),
        ([ASKED, turn("assistant", "a", train_detail=[])], "`train_detail` of a turn is not supported"),
        ([ASKED, turn("assistant", [{"type": "image_url"}])], "parts that are not text"),
        ([ASKED, turn("assistant", None)], "must have `content` as text"),
        ([ASKED, turn("assistant", "", tool_calls=[{"function": {}}])], "must name its function"),
        ([ASKED, {"content": "a"}], "has no role"),
        ([ASKED, "a"], "must be an object with `role` and `content`"),
        ([SAID], "at least two turns"),
        ([ASKED, SAID, ASKED], "must have the role `assistant`: got 'user'"),
    ],
)
def test_turns_that_cannot_be_trained_on_are_refused(turns: list[Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        turns_of(turns, "messages")
