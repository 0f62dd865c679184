"""Examples to tokens: what carries loss is cut by ids, and held against the row."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from winnow.data.chat import spoken
from winnow.data.cut import Cut
from winnow.data.encoding import JOINED, PLAIN, Encoded, Encoding
from winnow.data.example import Example
from winnow.data.rejects import BadRow
from winnow.data.render import Rendered, Span, carries_loss, render, template_of, turns_of_example
from winnow.data.tokens import ends, prompt_ids, token_ids
from winnow.data.verify import check_rendering, check_spelled
from winnow.lm.ignore import IGNORE


def encode_prompt(example: Example, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = PLAIN) -> list[int]:
    """Token ids of the prompt, ready for the response to follow.

    Uses the tokenizer's chat template where it has one; otherwise the prompt and a line break.
    An empty prompt gives only what the tokenizer puts before any text.

    Args:
        example: the example.
        tokenizer: the model's tokenizer.
        encoding: as for :func:`encode`.

    Returns:
        The ids.

    Raises:
        BadRow: the chat template refuses the example's turns.
    """
    if not _templated(example, tokenizer):
        return prompt_ids(_joined(example, encoding)[0], tokenizer)
    text = template_of(example, tokenizer, encoding.date)(turns_of_example(example)[:-1], True)
    return token_ids(text, tokenizer, special=False)


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoding: Encoding = PLAIN,
    checked: bool = False,
) -> Encoded:
    """Tokenise one example, with loss on what the assistant says and on what ends it, and on nothing else.

    With a chat template the ids are those of ``apply_chat_template`` on the whole conversation, up to
    and including the token that ends the last turn; a turn's loss begins where the ids part from those a generation
    would be given. Without one, or where the template ends turns with plain text, the end-of-text token ends the
    response. Plain text is trained on whole.

    A row whose template drops or repeats part of it is refused, not trained on.

    Args:
        example: the example.
        tokenizer: the model's tokenizer.
        max_length: longest sequence kept, in tokens.
        encoding: what carries loss, what is cut.
        checked: the same was encoded before, by the same tokenizer and template, and not refused: nothing is held
            against the row again.

    Returns:
        Ids, labels and what was cut. A row without a response token cannot be chosen.

    Raises:
        BadRow: the chat template refuses the example's turns, or does not write them as they are; or there is none.
    """
    if _templated(example, tokenizer):
        rendered = render(example, tokenizer, encoding.loss_on, encoding.date)
        if not checked:
            check_rendering(example, rendered)
        return _cut_down(_labelled(rendered, tokenizer, False, checked), max_length, encoding, tokenizer)
    prompt, rendered = _joined(example, encoding)
    if len(rendered.spans) > 1:
        return _cut_down(_labelled(rendered, tokenizer, True, checked), max_length, encoding, tokenizer)
    cut = Cut(rendered.text, tokenizer, special=True)
    if prompt:
        before, after = cut.sides(len(prompt))
    else:
        first = len(prompt_ids("", tokenizer))
        before, after = cut.ids[:first], cut.ids[first:]
    loss = rendered.spans[0].loss
    labels = [IGNORE] * len(before) + (after if loss else [IGNORE] * len(after))
    made = Encoded(before + after, labels, False, 0, 1, int(loss), len(after))
    return _cut_down(_closed(made, loss, False, tokenizer), max_length, encoding, tokenizer)


def _joined(example: Example, encoding: Encoding) -> tuple[str, Rendered]:
    """Prompt, and the whole with its spans, where there is no template.

    Raises:
        BadRow: it is a chat of more than a question and an answer, and its turns are not to be joined.
    """
    turns = turns_of_example(example)
    simple = [turn["role"] for turn in turns] == ["user", "assistant"] and spoken(turns[1]) == turns[1]["content"]
    if not encoding.join_turns and (not simple or example.tools):
        raise BadRow(
            "a chat, and the model's tokenizer has no chat template",
            f"{len(turns)} turns; give one with model.chat_template=FILE or =chatml, or join the turns with {JOINED}",
        )
    text, spans = "", []
    for position, turn in enumerate(turns):
        words = spoken(turn)
        text += "\n" if text else ""
        if turn["role"] == "assistant":
            loss = carries_loss(turns, position, encoding.loss_on)
            spans.append(Span(len(text), len(text) + len(words), position, loss))
        text += words
    return text[: spans[-1].start], Rendered(text, tuple(spans), turns)


def _labelled(rendered: Rendered, tokenizer: PreTrainedTokenizerBase, special: bool, checked: bool) -> Encoded:
    """Tokens of a text with spans; loss from where the ids part from those of the text before a span."""
    cut = Cut(rendered.text, tokenizer, special)
    labels = [IGNORE] * len(cut.ids)
    said = 0
    for span in rendered.spans:
        start, end = cut.tokens(span.start)[0], cut.tokens(span.end)[0]
        said += end - start
        if not span.loss:
            continue
        labels[start:end] = cut.ids[start:end]
        if checked:
            continue
        wanted = rendered.text[span.start : span.end]
        spelled = cut.says(start, end)
        if wanted.strip() not in spelled:
            check_spelled(wanted, spelled, cut.again(wanted))
    trained = [span for span in rendered.spans if span.loss]
    parted = any(span.parted for span in trained)
    made = Encoded(cut.ids, labels, False, 0, len(rendered.spans), len(trained), said, parted)
    return _closed(made, rendered.spans[-1].loss, not special, tokenizer)


def _closed(made: Encoded, loss: bool, templated: bool, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """With the token that ends the last turn, where it has none."""
    eos, ids, labels = tokenizer.eos_token_id, made.input_ids, made.labels
    if eos is None or (ids and labels[-1] == ids[-1] and ends(ids[-1], tokenizer, templated)):
        return made
    if not loss and ids and ends(ids[-1], tokenizer, templated):
        return made
    added = Encoded([*ids, eos], [*labels, eos if loss else IGNORE], False, 0, made.turns, made.trained, made.said + 1)
    return replace(added, parted=made.parted)


def _cut_down(made: Encoded, longest: int, encoding: Encoding, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """At most ``longest`` tokens of it."""
    ids, labels, length = made.input_ids, made.labels, len(made.input_ids)
    if length <= longest:
        return replace(made, length=length)
    if encoding.truncate == "left":
        # What begins every text goes on beginning this one.
        first = 1 if ids[0] == tokenizer.bos_token_id and longest > 1 else 0
        ids, labels = ids[:first] + ids[length - longest + first :], labels[:first] + labels[length - longest + first :]
    else:
        ids, labels = ids[:longest], labels[:longest]
    if encoding.truncate == "drop":
        labels = [IGNORE] * len(labels)
    return replace(made, input_ids=ids, labels=labels, truncated=True, length=length)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a response, as this module trains them: generation stops there.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        End-of-text, and the chat template's end of turn where that is another token.
    """
    last = encode(Example("", "", "a", "b"), tokenizer, 2**31).input_ids[-1]
    stops = {last} if ends(last, tokenizer, templated=True) else set()
    return stops | ({tokenizer.eos_token_id} - {None})


def _templated(example: Example, tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.chat_template) and bool(example.messages or example.prompt)
