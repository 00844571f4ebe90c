"""Chat templates: a checkpoint's own Jinja source turns messages into the text it was trained on.

The template comes with the checkpoint and is not trusted; `minillm.template` runs it, in a process of its own.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

from .errors import UserError

SECONDS = 2  # of computing that a template may take
ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn; role is `system`, `user` or `assistant`."""

    role: str
    content: str


def render_chat(
    template: str, messages: Sequence[Message], bos: str, eos: str, controls: Iterable[str] = ()
) -> list[str]:
    """The conversation as text, control token, text, …, text, ending where the assistant speaks.

    Only what the template itself wrote counts as a control token: a message that spells one is text. UserError if a
    message is none, if the template refuses or fails, or if it takes more than its share of time or memory.
    """
    asked = {"template": template, "messages": checked(messages), "bos": bos, "eos": eos, "controls": [*controls]}
    answer = renderer.ask(asked | {"seconds": SECONDS})
    if "error" in answer:
        raise UserError(f"the checkpoint's chat template failed: {in_a_line(answer['error'])}")
    return answer["parts"]


def checked(messages: Sequence[Message]) -> list[Message]:
    """The messages, each a role that is one and a text."""
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(f"{where} is not an object of role and content alone")
        if message["role"] not in ROLES:
            raise UserError(f"{where}: role is {message['role']!r:.80}, expected one of: {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise UserError(f"{where}: content is a {type(message['content']).__name__}, expected a string")
    return [*messages]


def in_a_line(complaint: str) -> str:
    """What a library has to say, however long and whatever of a file is in it."""
    return "".join(sign for sign in " ".join(complaint.split()) if sign.isprintable())[:200]


class Renderer:
    """The process that renders: started when there is something to render, and again if it died."""

    def __init__(self):
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = Lock()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer to a request, or why there is none."""
        with self.lock:
            try:
                process = self.process = self.process or started()
                assert process.stdin
                assert process.stdout
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if answer.endswith(b"\n"):
                    return json.loads(answer)
            except BrokenPipeError:
                pass
            except BaseException:  # perhaps Ctrl-C, with an answer under way that nobody would expect
                self.close()
                raise
            code = self.close()
        return {"error": "it takes too long" if code == -signal.SIGPROF else f"its process ended with code {code}"}

    def close(self) -> int | None:
        """End the process; its exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        with suppress(BrokenPipeError), process:  # which waits, and closes its pipes
            process.kill()
        return process.returncode


def started() -> subprocess.Popen[bytes]:
    """A process that renders, deaf to this terminal's Ctrl-C."""
    path = [str(Path(__file__).parent.parent), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, "-SP", "-m", "minillm.template"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,
    )


renderer = Renderer()
atexit.register(renderer.close)
