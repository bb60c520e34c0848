"""How much energy work takes, as codecarbon estimates it for this machine; no network is asked."""

import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dermtune.errors import ConfigError

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

T = TypeVar("T")
_JOULES = 3.6e6  # of a kilowatt hour


class Cost(NamedTuple):
    """What some work took."""

    seconds: float
    joules: float
    grams: float
    """Of CO2 equivalents, by the mix of a country's electricity."""


class Meter:
    """Measures one piece of work after another."""

    def __init__(self, country: str) -> None:
        """Measure by the electricity of a country, by its ISO 3166 code of three letters.

        Raises:
            ConfigError: codecarbon is not installed, or does not know the country.
        """
        try:
            from codecarbon.input import DataSource  # noqa: PLC0415 (the extra [study])
        except ImportError as error:
            raise ConfigError("studies need codecarbon: pip install 'dermtune[study]'") from error
        if country not in DataSource().get_global_energy_mix_data():
            raise ConfigError(f"country {country}: no electricity known; give an ISO code such as DEU or KEN")
        self._country = country

    @cached_property
    def _tracker(self) -> "OfflineEmissionsTracker":
        from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 (as above)

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads `log_level`
        return OfflineEmissionsTracker(
            # whatever a file in the home folder says: no other process is looked for, nothing is sent or kept
            allow_multiple_runs=True,
            output_methods=[],
            country_iso_code=self._country,
            measure_power_secs=1,
            log_level="critical",
        )

    def measure(self, work: Callable[[], T]) -> tuple[T, Cost]:
        """What the work gives, and what the machine took meanwhile."""
        self._tracker.start_task()
        started = time.perf_counter()
        try:
            found = work()
        finally:
            seconds = time.perf_counter() - started
            task = self._tracker.stop_task()
        return found, Cost(seconds, float(task.energy_consumed) * _JOULES, 1000 * float(task.emissions))


def joules_per_point(joules: float, auroc: float | None) -> float | None:
    """Joules for each hundredth of AUROC above guessing; None where there is no such gain."""
    points = 0.0 if auroc is None else 100 * (auroc - 0.5)
    return joules / points if points > 0 else None
