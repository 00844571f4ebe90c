"""A file over HTTP that goes on where an earlier try stopped: what there is of it lies in a file of its own.

The rest is asked for with a Range request (RFC 9110, section 14). A server that knows none sends everything again.
"""

import http.client
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..errors import UserError

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much; 0 if nobody knows

PATIENCE = 30  # seconds without a byte
BROKEN = (URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@contextmanager
def alone(path: Path, busy: str | None = None) -> Iterator[IO[bytes]]:
    """The file at `path`, made if it is not there, to read and to append to, while nobody else has it.

    Who has it is waited for, or a UserError says that it is busy. Nobody knows of others where the system, or the
    file system, has no locks.
    """
    while True:
        with open(path, "a+b") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise UserError(busy or "") from None
            except (ImportError, OSError):
                pass
            if is_at(path, file):  # else whoever had it has taken it away meanwhile
                yield file
                return


def is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether that is the file which lies at the path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def fetch(url: str, part: IO[bytes], progress: Progress) -> None:
    """Append to `part` what it lacks of the file at url.

    A connection that breaks is taken up again as long as that brings more; then UserError says so, and `part` keeps
    what came.
    """
    reached, name = part.seek(0, os.SEEK_END), urlsplit(url).path.rpartition("/")[2]
    while (broken := transfer(url, part, lambda done, of: progress(f"downloading {name}", done, of))) is not None:
        if part.tell() <= reached:
            raise UserError(
                f"{place(url)}: {broken}; {part.tell() / 1e6:.1f} MB are kept, and the same command goes on there"
            )
        reached = part.tell()


def transfer(url: str, part: IO[bytes], progress: Callable[[int, int], None]) -> str | None:
    """What one connection brings, appended to `part`; None if that is the rest of the file, else why it is not."""
    done = part.seek(0, os.SEEK_END)
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={done}-"} if done else {}), timeout=PATIENCE) as answer:
            if answer.status != 206:  # everything comes again
                part.truncate(0)
                done = 0
            rest = answer.headers["Content-Length"]
            whole = done + int(rest) if rest else 0
            while piece := answer.read1(1 << 16):  # what has come, without waiting for more
                part.write(piece)
                done += len(piece)
                progress(done, whole)
    except HTTPError as error:
        error.close()
        if error.code == 416 and done:  # there is no more than what we have
            return None
        raise UserError(f"{place(url)} answers {error.code} {error.reason}") from None
    except BROKEN as error:
        return why(error)
    finally:
        part.flush()
    return None if not whole or done == whole else f"the connection ended after {done} of {whole} bytes"


def why(error: Any) -> str:
    """What is wrong with a connection, in a few words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"{reason.verify_message}; SSL_CERT_FILE can name a file of certificates to trust"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__


def place(url: str) -> str:
    """Who was asked, without what may be a password."""
    return urlsplit(url).hostname or url
