"""Several processes, one job: each has one device of the mesh, and all run the same program (`jax.distributed`).

Process 0 listens at the coordinator's address. The others call it, say who they are and what they were asked for,
and are told where JAX's own service is. That line stays open: when a process dies, the operating system closes it,
and whoever is left ends at once and says why. Without it they would wait in a collective operation for whom they
have lost, until JAX, after 100 seconds, aborts them. Like JAX's, the line trusts its network.
"""

import hashlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Container, Mapping
from typing import Any, NoReturn

import jax

from ..errors import UserError

BEAT = 1.0  # seconds between signs of life
SILENCE = 30.0  # seconds without one until a process counts as dead, where its line was not closed
START = 120.0  # seconds for all to come
LOST, WRONG, INTERRUPTED = 1, 2, 130  # exit codes


class Line:
    """A connection to another process: messages are lines of JSON."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.received, self.speaking = connection, connection.makefile("rb"), threading.Lock()

    def say(self, **message: Any) -> None:
        """Send a message; nothing if nobody is there to hear it, which `hear` will find."""
        try:
            with self.speaking:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next message; ConnectionError if the other has gone, or is silent for so long."""
        try:
            self.connection.settimeout(seconds)
            message = json.loads(self.received.readline(1 << 16))
        except (OSError, ValueError) as error:
            raise ConnectionError(str(error)) from None
        if not isinstance(message, dict):
            raise ConnectionError("that is no message")
        return message

    def close(self) -> None:
        """Hang up."""
        self.received.close()
        self.connection.close()


class Job:
    """What one of the processes knows of the others: a line to process 0, or from process 0 to each.

    Used as a context: when the block ends, all have ended it. Only process 0 prints to standard output; seed is a
    number that it drew.
    """

    def __init__(self, me: int, processes: int, lines: Mapping[int, Line], seed: int):
        self.me, self.processes, self.lines, self.seed = me, processes, lines, seed
        self.ending, self.closed, self.gone = threading.Lock(), threading.Event(), set[int]()
        self.watches = [
            threading.Thread(target=self._watch, args=(other, line), daemon=True) for other, line in lines.items()
        ]

    def begin(self) -> None:
        """Watch the others, and tell them of Ctrl-C here."""
        for thread in (*self.watches, threading.Thread(target=self._beat, daemon=True)):
            thread.start()
        signal.signal(signal.SIGINT, self._interrupted)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        if error is not None:
            self.fail(error)
        self._tell(done=True)
        for thread in self.watches:
            thread.join()
        jax.distributed.shutdown()
        self.closed.set()
        for line in self.lines.values():
            line.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def fail(self, error: BaseException) -> NoReturn:
        """End everything because of an error here."""
        if isinstance(error, KeyboardInterrupt):
            os._exit(INTERRUPTED)  # the others know
        if isinstance(error, BrokenPipeError):
            self.end("nobody reads on", INTERRUPTED)
        if isinstance(error, UserError):
            self.end(str(error), WRONG)
        time.sleep(2 * BEAT)  # likely it comes of another's death, and the watch is about to say so
        traceback.print_exception(error)
        self.end(f"{self._named(self.me)} has failed: {error}", LOST)

    def end(self, why: str, code: int) -> NoReturn:
        """End this process and all others, wherever they are; the first reason counts.

        An ordinary exit would wait for the others, and they for it.
        """
        with self.ending:  # and is never given back
            if code != INTERRUPTED:  # whoever did that knows
                print(f"minillm: {why}", file=sys.stderr, flush=True)
            self._end_others(why, code)
            os._exit(code)

    def _end_others(self, why: str, code: int) -> None:
        """Tell the others to end. JAX aborts those who outlive process 0, so that one waits for them a little."""
        self._tell(end=code, why=why)
        latest = time.monotonic() + (2 * BEAT if self.me == 0 else 0)
        while len(self.gone) < len(self.lines) and time.monotonic() < latest:
            time.sleep(0.01)

    def _watch(self, other: int, line: Line) -> None:
        """Listen until the other has done its part; if it never says so, it has not."""
        try:
            while "done" not in (message := line.hear(SILENCE)):
                if "end" in message:
                    self.end(str(message.get("why")), int(message["end"]))
        except ConnectionError:
            self.gone.add(other)
            self.end(f"{self._named(other)} has gone, so the job ends", LOST)

    def _beat(self) -> None:
        """Give signs of life."""
        while not self.closed.wait(BEAT):
            self._tell(alive=True)

    def _interrupted(self, number: int, frame: Any) -> NoReturn:
        """Ctrl-C here is Ctrl-C everywhere."""
        if not self.ending.acquire(blocking=False):  # all is ending already
            os._exit(INTERRUPTED)
        self._end_others("interrupted", INTERRUPTED)
        raise KeyboardInterrupt

    def _tell(self, **message: Any) -> None:
        for line in self.lines.values():
            line.say(**message)

    def _named(self, process: int) -> str:
        return f"process {process} of {self.processes}"


def join(coordinator: str, processes: int, me: int, asked: Mapping[str, Any]) -> Job:
    """Take part in a job of so many processes as number `me`; returns when all are there.

    coordinator is HOST:PORT, where process 0 listens. asked is what this process was asked for, by the names that a
    user knows: it has to be the same for all. UserError if it is not, if a number is wrong, or if the others do
    not come; this must happen before JAX is used.
    """
    host, port = address(coordinator)
    if processes < 2:
        raise UserError(f"--num-processes is {processes}, expected 2 or more; alone, leave --coordinator out")
    if not 0 <= me < processes:
        raise UserError(f"--process-id is {me}, expected 0 to {processes - 1} with --num-processes {processes}")
    asked = {name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in asked.items()}
    hello = {"process": me, "of": processes, "asked": asked}
    if me == 0:
        lines = answered(host, port, hello)
        agreed = {"port": free_port(host), "seed": secrets.randbits(31)}
        for line in lines.values():
            line.say(**agreed)
    else:
        line, agreed = called(host, port, hello)
        lines = {0: line}
    job = Job(me, processes, lines, agreed["seed"])
    job.begin()
    keep_output(first=me == 0)
    try:
        connect(f"{host}:{agreed['port']}", processes, me)
    except BaseException as error:
        job.fail(error)
    return job


def keep_output(first: bool) -> None:
    """From now on only what Python prints in the first process goes to standard output.

    The library that moves numbers between CPUs (gloo) greets there, too, in the middle of the text.
    """
    ours, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    sys.stdout.flush()
    os.dup2(nowhere, 1)
    sys.stdout = os.fdopen(ours if first else nowhere, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def connect(service: str, processes: int, me: int) -> None:
    """Join JAX's own service, which process 0 offers at that address."""
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, and the process live on
    jax.distributed.initialize(
        service, processes, me, cluster_detection_method="deactivate", coordinator_bind_address=service
    )
    if jax.local_device_count() != 1:
        raise UserError(
            f"process {me} has {jax.local_device_count()} devices, expected one; show each process one of its own"
        )


def address(coordinator: str) -> tuple[str, int]:
    """HOST:PORT in two parts."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator is {coordinator!r}, expected HOST:PORT, as 127.0.0.1:9876")
    return host, int(port)


def free_port(host: str) -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]


def answered(host: str, port: int, hello: Mapping[str, Any]) -> dict[int, Line]:
    """Wait for all others to call process 0, and hold what they say against its own."""
    lines: dict[int, Line] = {}
    try:
        server = socket.create_server((host, port))
    except OSError as error:
        expected = "expected a free port of this machine"
        raise UserError(f"--coordinator {host}:{port}: {error.strerror}; {expected}") from None
    with server:
        latest = time.monotonic() + START
        while len(lines) < hello["of"] - 1:
            server.settimeout(max(latest - time.monotonic(), 0.001))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                here = f"{len(lines) + 1} of {hello['of']} processes are there after {START:.0f} seconds"
                raise UserError(f"--coordinator {host}:{port}: {here}; start them all") from None
            try:
                said = line.hear(BEAT)
            except ConnectionError:  # whoever that was
                line.close()
                continue
            if reason := disagreement(hello, said, lines):
                for one in (*lines.values(), line):
                    one.say(refused=reason)
                    one.close()
                raise UserError(reason)
            lines[said["process"]] = line
    return lines


def called(host: str, port: int, hello: Mapping[str, Any]) -> tuple[Line, dict[str, Any]]:
    """Call process 0 until it is there, and wait for its answer."""
    latest = time.monotonic() + START
    while True:
        try:
            line = Line(socket.create_connection((host, port), timeout=START))
            break
        except OSError as error:
            if time.monotonic() > latest or isinstance(error, socket.gaierror):
                reason = f"{error.strerror}; expected process 0 there"
                raise UserError(f"--coordinator {host}:{port}: {reason}") from None
            time.sleep(0.1)
    line.say(**hello)
    try:
        answer = line.hear(START)
    except ConnectionError:
        raise UserError(f"--coordinator {host}:{port}: process 0 came, and went before all were there") from None
    if "refused" in answer:
        line.close()
        raise UserError(str(answer["refused"]))
    return line, answer


def disagreement(mine: Mapping[str, Any], other: Mapping[str, Any], known: Container[Any]) -> str:
    """Why a process that says this cannot take part, empty if it can."""
    process, of = other.get("process"), mine["of"]
    if other.get("of") != of:
        return f"process {process} has --num-processes {other.get('of')}, but process 0 has {of}; give all the same"
    if process not in range(1, of) or process in known:
        return f"--process-id {process} was given to two processes, expected each of 0 to {of - 1} once"
    for name, value in mine["asked"].items():
        if other["asked"].get(name) != value:
            return f"process {process} has another {name} than process 0; give all the same"
    return ""
