"""A process that renders chat templates and can do nothing else; `minillm.chat` starts it and talks to it in JSON.

A chat template is a program from a stranger. Jinja's sandbox keeps it from files and from the insides of Python,
but not from work: 'x' * 10**9 is one call into C, which nothing in its own process can stop. So the kernel does it:
here time, memory and open files are counted, and what dies of too much is this process alone.

It also says which control tokens the template wrote. They are marked in the template's own strings before it runs,
and messages are left as they are; so whatever it does to a message, cuts it or changes its case, no mark comes out.
"""

import json
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 << 20  # bytes of address space
FIRST = "<a>{{ 'a' | tojson }}{{ strftime_now('%c') }}{{ nothing.at_all }}"
LONGEST = 8 << 20  # characters of a rendered conversation


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, around what an assistant said: a mark for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for, as transformers sets it up."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON as it is; Jinja's own filter writes it for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(reason: str) -> NoReturn:
    """What templates call to reject a conversation."""
    raise jinja2.TemplateError(reason)


@lru_cache(maxsize=8)
def compiled(source: str, controls: frozenset[str], left: str, right: str) -> jinja2.Template:
    """A template that writes marks around every control token of its own."""
    jinja, mark = environment(), marker(controls, left, right)
    tree = jinja.parse(source)
    for text in tree.find_all(nodes.TemplateData):
        text.data = mark(text.data)
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            constant.value = mark(constant.value)
    return jinja.from_string(tree)


def marker(controls: Iterable[str], left: str, right: str) -> Callable[[str], str]:
    """What puts marks around the control tokens in a string.

    Some templates put a token together, as in '<|' + role + '|>'. So the left mark also stands before what could
    begin one at a string's end, the right one behind what could end one at its start, two characters or more.
    """
    heads = {name[:n] for name in controls for n in range(2, len(name))}
    tails = {name[-n:] for name in controls for n in range(2, len(name))}
    longest = max(map(len, heads), default=0)

    def mark(text: str) -> str:
        names = sorted((name for name in controls if name in text), key=len, reverse=True)
        if names:
            text = re.sub("|".join(map(re.escape, names)), lambda found: left + found[0] + right, text)
        sizes = range(min(longest, len(text)), 1, -1)
        head = next((n for n in sizes if text[-n:] in heads), 0)
        text = text[: len(text) - head] + left * (head > 0) + text[len(text) - head :]
        tail = next((n for n in sizes if text[:n] in tails), 0)
        return text[:tail] + right * (tail > 0) + text[tail:]

    return mark


def render(template: str, messages: list[dict], bos: str, eos: str, controls: list[str]) -> list[str]:
    """The conversation as text, control token, text, …, text, ending where the assistant speaks."""
    known = frozenset(controls)
    left, right = unused([template, bos, eos, *controls, *(text for one in messages for text in one.values())])
    bos, eos = (left + name + right if name in known else name for name in (bos, eos))
    rendered = compiled(template, known, left, right).render(
        messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True, tools=None, documents=None
    )
    if len(rendered) > LONGEST:
        raise jinja2.TemplateError(f"it writes {len(rendered)} characters, expected at most {LONGEST}")
    parts = [""]
    for place, piece in enumerate(re.split(f"{left}([^{left}{right}]*){right}", rendered)):
        if place % 2 and piece in known:
            parts += [piece, ""]
        else:
            parts[-1] += piece.replace(left, "").replace(right, "")
    return parts


def unused(texts: list[str]) -> list[str]:
    """Two characters for private use that are in none of the texts."""
    every = set().union(*texts)
    return [*islice((one for one in map(chr, range(0xF0000, 0x10FFFE)) if one not in every), 2)]


def answer(line: bytes) -> dict[str, Any]:
    """The parts that were asked for, or the reason why there are none."""
    try:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))  # it kills, unless there is an end before
        return {"parts": render(**request)}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY >> 20} MB of memory"}
    except Exception as error:  # whatever a template that is not trusted may bring about
        return {"error": str(error)[:1000] or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    first = {"template": FIRST, "messages": [], "bos": "", "eos": "", "controls": ["<a>"], "seconds": 60}
    answer(json.dumps(first).encode())  # what is loaded when it is first needed is loaded now
    with suppress(ValueError, OSError):  # macOS does not count it; there, time bounds memory too
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # from here on nothing can be opened
    for line in sys.stdin.buffer:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
