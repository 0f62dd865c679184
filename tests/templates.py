"""Short stand-ins, written here, for what public chat templates do; generation marks say what the assistant writes."""

# ruff: noqa: E501 - a template is easier to read in one piece

from __future__ import annotations

import copy

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests import runs

MARKS = (
    "<|im_start|>", "<|im_end|>", "<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>",
    "</think>", "[TOOL_CALLS]", "[TOOL_RESULTS]", "<tool_call>", "</tool_call>",
)  # fmt: skip

LOOP, END, GEN, ENDGEN = "{% for m in messages %}", "{% endfor %}", "{% generation %}", "{% endgeneration %}"
CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
IM = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
IM_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
LAST_USER = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)

TEMPLATES = {
    "chatml": LOOP
    + "{% if m.role == 'assistant' %}<|im_start|>assistant\n" + GEN + "{{ m.content }}<|im_end|>" + ENDGEN + "\n"
    + "{% else %}" + IM + "{% endif %}" + END + IM_OPEN,
    "chatml, default system, tools": "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    + "{{ messages[0].content }}\n{% endif %}{{ tools | tojson }}<|im_end|>\n{% elif messages[0].role != 'system' %}"
    + "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + LOOP
    + "{% if m.role == 'assistant' %}<|im_start|>assistant\n" + GEN + "{{ m.content }}" + CALLS + "<|im_end|>" + ENDGEN
    + "\n{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    + "\n<tool_response>\n{{ m.content }}\n</tool_response>{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}"
    + "<|im_end|>\n{% endif %}{% elif m.role != 'system' or not (loop.first and tools) %}" + IM + "{% endif %}" + END
    + IM_OPEN,
    "chatml, thoughts of the last round": LAST_USER + LOOP
    + "{% if m.role == 'assistant' %}<|im_start|>assistant\n" + GEN + "{% if loop.index0 > ns.last %}<think>\n"
    + "{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}{{ m.content }}" + CALLS + "<|im_end|>" + ENDGEN
    + "\n{% else %}" + IM + "{% endif %}" + END + IM_OPEN,
    "chatml, every thought": LOOP
    + "{% if m.role == 'assistant' %}<|im_start|>assistant\n" + GEN + "{% if m.reasoning_content %}<think>\n"
    + "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>" + ENDGEN + "\n{% else %}" + IM
    + "{% endif %}" + END + IM_OPEN,
    "headers and date": "<|begin|><|start_header|>system<|end_header|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n"
    + "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot|>" + LOOP
    + "{% if m.role == 'assistant' %}<|start_header|>assistant<|end_header|>\n\n" + GEN + "{{ m.content | trim }}<|eot|>"
    + ENDGEN + "{% elif m.role != 'system' %}<|start_header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>"
    + "{% endif %}" + END + "{% if add_generation_prompt %}<|start_header|>assistant<|end_header|>\n\n{% endif %}",
    "no system": "<s>" + NO_SYSTEM + LOOP + "{% if m.role == 'assistant' %}<start_of_turn>model\n" + GEN
    + "{{ m.content | trim }}<end_of_turn>" + ENDGEN + "\n{% else %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}"
    + "<end_of_turn>\n{% endif %}" + END + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "system in the first question": "<s>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    + "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    + "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ first if loop.first else '' }}{{ m.content }} [/INST]"
    + "{% else %}" + GEN + " {{ m.content }}</s>" + ENDGEN + "{% endif %}" + END,
    "calls as lists": "<s>{% if tools %}[TOOLS]{{ tools | tojson }}{% endif %}" + LOOP
    + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}"
    + "{% elif m.role == 'system' %}{{ m.content }}\n{% elif m.tool_calls %}" + GEN
    + "[TOOL_CALLS]{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}</s>" + ENDGEN + "{% else %}" + GEN
    + "{{ m.content }}</s>" + ENDGEN + "{% endif %}" + END,
    "marks of roles": LOOP + "{% if m.role == 'assistant' %}<|assistant|>\n" + GEN + "{{ m.content }}<|end|>" + ENDGEN
    + "\n{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}" + END
    + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "opens a thought": "<s>" + LOOP + "{% if m.role == 'user' %}<|user|>{{ m.content }}{% elif m.role == 'system' %}"
    + "{{ m.content }}{% else %}<|assistant|>" + GEN + "{{ m.content.split('</think>')[-1] }}</s>" + ENDGEN + "{% endif %}"
    + END + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    "plain text": LOOP + "{% if m.role == 'assistant' %}### Assistant:\n" + GEN + "{{ m.content }}" + ENDGEN + "\n\n{% else %}"
    + "### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endif %}" + END
    + "{% if add_generation_prompt %}### Assistant:\n{% endif %}",
    "end of text": LOOP + "{% if m.role == 'assistant' %}assistant: " + GEN + "{{ m.content }}{{ eos_token }}" + ENDGEN + "\n"
    + "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}" + END + "{% if add_generation_prompt %}assistant: {% endif %}",
}  # fmt: skip


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    """The tests' tokenizer with the special tokens of the templates.

    Args:
        template: the chat template.

    Returns:
        A tokenizer of its own.
    """
    tokenizer = copy.deepcopy(runs.tokenizer())
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    tokenizer.chat_template = template
    return tokenizer
