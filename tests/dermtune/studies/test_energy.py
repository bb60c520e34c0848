import socket
import time

import pytest

from dermtune.studies.energy import Meter


def test_work_takes_energy_and_more_of_it_the_longer_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    meter = Meter()
    found, short = meter.measure(lambda: time.sleep(0.2) or "done")
    _, long = meter.measure(lambda: time.sleep(1.5))
    assert found == "done"
    assert 0 < short < long < 10_000


def test_work_that_fails_ends_its_measurement() -> None:
    meter = Meter()
    with pytest.raises(ZeroDivisionError):
        meter.measure(lambda: 1 / 0)
    assert meter.measure(lambda: 1)[0] == 1
