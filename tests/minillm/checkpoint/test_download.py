"""A file arrives whole or not at all, however often the connection breaks, and what came is not sent again."""

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import serving

from minillm.checkpoint.download import alone, fetch
from minillm.errors import UserError

CONTENT = random.Random(1).randbytes(60_000)


def download(shelf, path, progress=lambda *_: None):
    with alone(path) as part:
        fetch(f"{shelf.url}/f", part, progress)
    return path.read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_comes_whole_and_says_how_far_it_is(tmp_path, ranges):
    seen = []
    with serving({"/f": CONTENT}, ranges) as shelf:
        assert download(shelf, tmp_path / "part", lambda *one: seen.append(one)) == CONTENT
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1] == ("downloading f", len(CONTENT), len(CONTENT))


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(1, 20_000), max_size=4), had=st.integers(0, len(CONTENT)))
def test_connections_that_break_anywhere_are_taken_up_again_and_nothing_is_sent_twice(tmp_path_factory, cuts, had):
    path = tmp_path_factory.mktemp("d") / "part"
    path.write_bytes(CONTENT[:had])
    with serving({"/f": CONTENT}) as shelf:
        shelf.cuts = list(cuts)
        assert download(shelf, path) == CONTENT
        assert shelf.sent == len(CONTENT) - had


def test_a_server_without_ranges_sends_everything_again(tmp_path):
    (tmp_path / "part").write_bytes(b"x" * 1000)
    with serving({"/f": CONTENT}, ranges=False) as shelf:
        shelf.cuts = [5_000, 9_000]
        assert download(shelf, tmp_path / "part") == CONTENT
        assert shelf.asked == [("/f", 0)] * 3


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_brings_nothing_more_is_given_up_and_what_came_is_kept(tmp_path, ranges):
    with serving({"/f": CONTENT}, ranges) as shelf:
        shelf.cuts = [40_000, 0] if ranges else [40_000, 40_000]
        with pytest.raises(
            UserError, match=r"127\.0\.0\.1: .*0\.0 MB are kept, and the same command goes on there"
        ):
            download(shelf, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT[:40_000]


def test_a_server_that_has_died_is_one_sentence(tmp_path):
    with serving({}) as shelf:
        pass
    with pytest.raises(UserError, match=r"127\.0\.0\.1: Connection refused"):
        download(shelf, tmp_path / "part")


def test_what_a_server_refuses_is_one_sentence(tmp_path):
    with serving({}) as shelf, pytest.raises(UserError, match=r"^127\.0\.0\.1 answers 404"):
        download(shelf, tmp_path / "part")


def test_of_several_at_once_one_has_the_file_and_the_others_wait(tmp_path):
    order, waiting = [], threading.Event()

    def second() -> None:
        waiting.set()
        with alone(tmp_path / "part") as file:
            order.append(("second", file.tell()))

    thread = threading.Thread(target=second)
    with alone(tmp_path / "part") as file:
        file.write(b"mine")
        thread.start()
        waiting.wait()
        order.append("first")
        (tmp_path / "part").unlink()
    thread.join()
    assert order == ["first", ("second", 0)]  # with a file of its own: the first took the other away
