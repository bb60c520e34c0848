import socket
import time

import pytest

from dermtune.errors import ConfigError
from dermtune.studies.energy import Meter, joules_per_point


def test_work_takes_energy_and_more_of_it_the_longer_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *given: asked.append(given))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: asked.append(given))
    meter = Meter("DEU")
    found, short = meter.measure(lambda: time.sleep(0.2) or "done")
    _, long = meter.measure(lambda: time.sleep(1.5))
    assert found == "done"
    assert short.seconds == pytest.approx(0.2, abs=0.15)
    assert 0 < short.joules < long.joules < 10_000
    assert not asked


def test_the_same_energy_weighs_as_the_countrys_electricity_does() -> None:
    grams = {}
    for country in ("ISL", "POL"):  # water and heat of the earth; coal
        _, cost = Meter(country).measure(lambda: time.sleep(0.3))
        grams[country] = cost.grams / cost.joules
    assert 0 < 5 * grams["ISL"] < grams["POL"] < 1 / 3600  # below a kilogram a kilowatt hour


def test_work_that_fails_ends_its_measurement() -> None:
    meter = Meter("DEU")
    with pytest.raises(ZeroDivisionError):
        meter.measure(lambda: 1 / 0)
    assert meter.measure(lambda: 1)[0] == 1


def test_an_unknown_country_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"XYZ.*DEU"):
        Meter("XYZ")


def test_a_cost_is_held_against_what_is_gained_over_guessing() -> None:
    assert joules_per_point(800.0, 0.9) == pytest.approx(20.0)
    assert joules_per_point(800.0, 0.5) is None
    assert joules_per_point(800.0, None) is None
