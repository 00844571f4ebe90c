"""Six public chat formats: each as a template and as a plain function that writes the same.

The templates are written for these tests, in the manner in which checkpoints write theirs.
"""

from collections.abc import Callable
from typing import NamedTuple

from minillm.chat import Message


class Format(NamedTuple):
    """A template, its BOS and EOS, its control tokens, what it writes, and whether a system message may begin."""

    template: str
    bos: str
    eos: str
    controls: tuple[str, ...]
    written: Callable[[list[Message]], str]
    system: bool = True


def chatml(messages: list[Message]) -> str:
    first = [] if messages[0]["role"] == "system" else [Message(role="system", content="You are helpful.")]
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in [*first, *messages])
    return "".join(turns) + "<|im_start|>assistant\n"


def llama3(messages: list[Message]) -> str:
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    turns = (head.format(m["role"]) + m["content"].strip() + "<|eot_id|>" for m in messages)
    return "<|begin_of_text|>" + "".join(turns) + head.format("assistant")


def mistral(messages: list[Message]) -> str:
    turns = (f"[INST] {m['content']}[/INST]" if m["role"] == "user" else f" {m['content']}</s>" for m in messages)
    return "<s>" + "".join(turns)


def gemma(messages: list[Message]) -> str:
    names = {"user": "user", "assistant": "model"}
    turns = (f"<start_of_turn>{names[m['role']]}\n{m['content'].strip()}<end_of_turn>\n" for m in messages)
    return "<bos>" + "".join(turns) + "<start_of_turn>model\n"


def phi4(messages: list[Message]) -> str:
    return "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages) + "<|assistant|>"


def qwen3(messages: list[Message]) -> str:
    def said(m: Message) -> str:
        _, mark, rest = m["content"].rpartition("</think>")
        return rest.lstrip("\n") if mark and m["role"] == "assistant" else m["content"]

    turns = (f"<|im_start|>{m['role']}\n{said(m)}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


FORMATS = {
    "chatml": Format(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>",
        "<|im_end|>",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        chatml,
    ),
    "llama3": Format(
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        llama3,
    ),
    "mistral": Format(
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if message.role == 'user' %}{{ '[INST] ' ~ message.content ~ '[/INST]' }}"
        "{% else %}{{ ' ' ~ message.content ~ eos_token }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        mistral,
        system=False,
    ),
    "gemma": Format(
        "{{ bos_token }}\n{%- if messages[0].role == 'system' %}\n    {{ raise_exception('no system') }}\n"
        "{%- endif %}\n{%- for message in messages %}\n"
        "    {%- set role = 'model' if message.role == 'assistant' else message.role %}\n"
        "    {{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<start_of_turn>model\n' }}\n{%- endif %}\n",
        "<bos>",
        "<eos>",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        gemma,
        system=False,
    ),
    "phi4": Format(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}",
        "<|endoftext|>",
        "<|endoftext|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        phi4,
    ),
    "qwen3": Format(
        "{%- for message in messages %}\n    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\n') %}\n    {%- endif %}\n"
        "    {{- '<|im_start|>' + message.role + '\n' + content }}{% generation %}{{- '' }}{% endgeneration %}\n"
        "    {{- '<|im_end|>\n' }}\n{%- endfor %}\n"
        "{%- if tools is not none %}{{ raise_exception('there are no tools') }}{% endif %}"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}",
        "<|im_start|>",
        "<|im_end|>",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        qwen3,
    ),
}
