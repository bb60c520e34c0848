"""How often a client may ask, by a clock of the test's own; the rest of the guard is tested through HTTP."""

import pytest

from dermtune_server.guard import _CLIENTS, _Rates


def test_a_minutes_worth_at_once_and_then_at_the_rate() -> None:
    rates = _Rates(per_minute=6)
    assert [rates.wait("one", 100.0) for _ in range(6)] == [0] * 6
    assert rates.wait("one", 100.0) == pytest.approx(10)
    assert rates.wait("other", 100.0) == 0, "clients do not wait for each other"
    assert rates.wait("one", 105.0) == pytest.approx(5)
    assert rates.wait("one", 110.0) == 0
    assert [rates.wait("one", 10_000.0) for _ in range(7)].count(0) == 6, "no more is saved up"


def test_the_longest_silent_is_forgotten() -> None:
    rates = _Rates(per_minute=1)
    for number in range(_CLIENTS + 50):
        rates.wait(str(number), float(number))
    assert len(rates.buckets) == _CLIENTS
    assert "0" not in rates.buckets
