"""How much is drafted follows what it gains and costs; no clock is asked here."""

from itertools import pairwise

import pytest

from minillm.speculative.pace import COLD, FIRST_REST, LENGTHS, LONGEST_REST, Cost, Pace


def play(pace: Pace, kept: int, costs: dict[int, Cost], rounds: int, room: int = 100) -> list[int]:
    """The lengths chosen when every draft keeps so many tokens."""
    chosen = []
    for _ in range(rounds):
        length = pace.choose(room)
        pace.observe(length, min(kept, length), costs[pace.width(length)])
        chosen.append(length)
    return chosen


COSTS = {0: Cost(0, 1.0), 3: Cost(0.1, 2.0), 7: Cost(0.1, 2.3), 15: Cost(0.1, 2.7)}


def test_before_anything_is_drafted_a_plain_step_is_measured():
    assert Pace().choose(100) == 0


def test_the_first_draft_is_a_short_one_after_a_few_plain_steps():
    assert play(Pace(), 0, COSTS, COLD + 1) == [0] * COLD + [3]


def test_a_first_run_that_was_slow_is_forgotten():
    pace = Pace()
    for seconds in (9.0, 1.0, 1.1, 1.2):
        pace.observe(0, 0, Cost(0, seconds))
    assert pace.costs[0] == Cost(0, 1.0)


def test_drafts_that_hold_become_as_long_as_there_are():
    assert play(Pace(), 15, COSTS, 60)[-10:] == [15] * 10


def test_drafts_of_which_the_first_three_hold_settle_where_they_pay():
    """4 tokens for 2.1 is 1.9 a second; for 2.4 it is 1.7."""
    assert play(Pace(), 3, COSTS, 200)[-20:] == [3] * 20


def test_drafts_that_never_hold_are_given_up_but_for_a_try_now_and_then():
    chosen = play(Pace(), 0, COSTS, 3000)
    tries = [place for place, length in enumerate(chosen) if length]
    rests = [b - a for a, b in pairwise(tries)]
    assert len(tries) < 40
    assert max(rests) == LONGEST_REST + 1
    assert FIRST_REST + 1 in rests


def test_a_drafter_that_has_become_good_is_taken_up_again():
    pace = Pace()
    play(pace, 0, COSTS, 500)
    assert play(pace, 15, COSTS, 3000)[-20:] == [15] * 20


def test_what_costs_too_much_is_not_used_however_good_it_is():
    dear = {0: Cost(0, 1.0), 3: Cost(7.0, 2.0), 7: Cost(15.0, 2.3), 15: Cost(30.0, 2.7)}
    chosen = play(Pace(), 15, dear, 1000)
    assert sum(length > 0 for length in chosen[-500:]) < 10


def test_no_more_is_drafted_than_there_is_room_for():
    assert all(length <= 5 for length in play(Pace(), 15, COSTS, 50, room=5))
    assert Pace(fixed=True, most=7).choose(4) == 4
    assert Pace(fixed=True, most=7).choose(0) == 0


def test_a_width_is_the_least_length_that_is_enough():
    assert [Pace().width(length) for length in (0, 1, 3, 4, 15)] == [0, 3, 3, 7, 15]
    assert Pace(most=5).lengths == (0, 3, 5)
    assert Pace(most=LENGTHS[1]).lengths == LENGTHS[:2]


def test_the_predicted_speed_up_is_leviathans_formula_for_equal_rates():
    pace, rate = Pace(), 0.8
    for one in pace.rates:
        one.kept, one.tried = rate, 1.0
    pace.costs = {0: Cost(0.0, 1.0), 7: Cost(0.4, 2.0)}
    assert pace.speed_up == pytest.approx((1 - rate**8) / (1 - rate) / 2.4)
