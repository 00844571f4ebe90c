"""Contestants say the same text with a technique and without."""

import pytest

from bench.techniques import contests


@pytest.mark.usefixtures("quick_programs")
def test_blocks_and_drafts_say_what_is_said_without(monkeypatch):
    monkeypatch.setattr(contests, "MODEL", "tiny-draft")
    at_once = contests.rows.AT_ONCE
    monkeypatch.setattr(contests.rows, "AT_ONCE", at_once)  # what contestants set is set back
    prompt = [*range(10, 40)]
    said, seconds = contests.open_reader(at_once)(prompt, 4)
    assert len(said["text"]) == 5
    assert min(said["first"], said["after"], seconds) > 0
    texts = [contests.open_engine(draft)([prompt, prompt[::-1]], 6)[0] for draft in (None, contests.LOOKUP)]
    assert texts[0] == texts[1]
    assert texts[0][:5] == said["text"]
