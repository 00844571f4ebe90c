"""Chat templates: a checkpoint's own Jinja source turns messages into the text it was trained on."""

from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn, TypedDict

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import UserError


class Message(TypedDict):
    """One turn; role is `system`, `user` or `assistant`."""

    role: str
    content: str


def render_chat(template: str, messages: Sequence[Message], bos: str, eos: str) -> str:
    """The conversation as text, ending where the assistant speaks.

    The template comes with the checkpoint and is not trusted: it runs in Jinja's sandbox, without files,
    attributes of Python objects, or changes to what it is given. UserError if it refuses or fails.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
    )
    del environment.globals["lipsum"]  # writes as much text as it is asked to
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(template).render(
            messages=list(messages), bos_token=bos, eos_token=eos, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template that is not trusted may bring about
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the checkpoint's chat template failed: {reason}") from None


def refuse(reason: str) -> NoReturn:
    """What templates call to reject a conversation."""
    raise jinja2.TemplateError(reason)
