"""What a run does with rows it cannot use, and with a template that writes the date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands import configured, save_base
from winnow.run import run
from winnow.run.instantiate import BuildError

TEMPLATE = (
    "On {{ strftime_now('%Y-%m-%d') }}:{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}\nassistant: {% endif %}"
)
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And 4?"},
        {"role": "assistant", "content": "It is 7."},
    ]
}


def given(stream: list[Any], *more: str) -> list[str]:
    """Overrides of a small run on these rows."""
    for name in ("val", "test"):
        rows = [{"prompt": f"{name} {at}?", "response": f"It is {at}."} for at in range(4)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    good = [{"prompt": f"What is {at}?", "response": f"It is {at}."} for at in range(16)]
    Path("stream.jsonl").write_text("\n".join(map(json.dumps, [*good, *stream])))
    save_base()
    return [
        "model=local", "model.path=base", "data=jsonl", "data.corpus.stream=stream.jsonl",
        "data.corpus.targets.target.val=val.jsonl", "data.corpus.targets.target.test=test.jsonl", "baseline=random",
        "selector.filter_size=2", "data.pool_size=4", "data.target_batch_size=2", "data.max_length=96",
        "trainer.max_steps=2", "evaluation.accuracy_limit=0", "callbacks.last.every=1", "logger=none", "export=false",
        *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "No response"}, "field `response` is missing or null"),  # met when the file is read
        (CHAT, "a chat, and the model's tokenizer has no chat template"),  # met when the model's tokenizer is there
    ],
    ids=["read", "encoded"],
)
def test_a_row_that_cannot_be_used_is_listed_whether_it_ends_the_run_or_not(row: dict[str, Any], said: str) -> None:
    with (
        configured(*given([row]), out="refused") as cfg,
        pytest.raises(BuildError, match=rf"stream\.jsonl, line 17: {said}"),
    ):
        run(cfg)
    with configured(*given([row], "data.on_bad_row=drop"), out="dropped") as cfg:
        run(cfg)
    for folder in ("refused", "dropped"):
        (listed,) = [json.loads(line) for line in (Path(folder) / "rejects.jsonl").read_text().splitlines()]
        assert listed["where"] == "stream.jsonl, line 17" and said in listed["reason"]
    assert json.loads((Path("dropped") / "status.json").read_text())["state"] == "finished"
    assert json.loads((Path("refused") / "status.json").read_text())["state"] == "failed"


def test_the_date_of_a_template_goes_on_with_the_run() -> None:
    Path("dated.jinja").write_text(TEMPLATE)
    with configured(*given([CHAT], "model.chat_template=dated.jinja", "data.date=2024-02-03"), out="run") as cfg:
        run(cfg)
    more = ("model.chat_template=dated.jinja", "ckpt_path=run/checkpoints/last.ckpt", "trainer.max_steps=4")
    with configured(*given([CHAT], *more), out="run") as cfg:
        run(cfg)
    assert json.loads((Path("run") / "config.json").read_text())["data"]["date"] == "2024-02-03"
    with (
        configured(*given([CHAT], "model.chat_template=dated.jinja", "data.date=today"), out="other") as cfg,
        pytest.raises(BuildError, match=r"data\.date must be a day such as 2026-11-26"),
    ):
        run(cfg)
