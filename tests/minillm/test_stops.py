import itertools

from hypothesis import given
from hypothesis import strategies as st

from minillm.stops import StopFilter

TEXT = st.text("abc", max_size=30)


@given(
    text=TEXT, stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), cuts=st.lists(st.integers(0, 30))
)
def test_pieces_join_to_the_text_before_the_first_stop_however_it_is_cut(text, stops, cuts):
    stop_filter, shown = StopFilter(stops), ""
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    for low, high in itertools.pairwise(places):
        shown += stop_filter.push(text[low:high])
        if stop_filter.hit:
            break
    shown += stop_filter.flush()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stop_filter.hit == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_text_that_cannot_become_a_stop_is_not_held_back():
    stop_filter = StopFilter(("END",))
    assert stop_filter.push("the E") == "the "
    assert stop_filter.push("N") == ""
    assert stop_filter.push("T ") == "ENT "
