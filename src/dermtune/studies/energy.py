"""How much energy work takes, as codecarbon estimates it for this machine; no network is asked."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from dermtune.errors import ConfigError

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker

T = TypeVar("T")
_JOULES = 3.6e6  # of a kilowatt hour


class Meter:
    """Measures the energy of one piece of work after another."""

    @cached_property
    def _tracker(self) -> "OfflineEmissionsTracker":
        try:
            from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 (the extra [study])
        except ImportError as error:
            raise ConfigError("studies need codecarbon: pip install 'dermtune[study]'") from error
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads `log_level`
        return OfflineEmissionsTracker(
            # whatever a file in the home folder says: no other process is looked for, nothing is sent or kept
            allow_multiple_runs=True,
            output_methods=[],
            force_carbon_intensity_g_co2e_kwh=0.0,  # energy alone
            country_iso_code="DEU",  # it wants one
            measure_power_secs=1,
            log_level="critical",
        )

    def measure(self, work: Callable[[], T]) -> tuple[T, float]:
        """What the work gives, and the joules that the machine took meanwhile.

        Raises:
            ConfigError: codecarbon is not installed.
        """
        self._tracker.start_task()
        try:
            found = work()
        finally:
            task = self._tracker.stop_task()
        return found, float(task.energy_consumed) * _JOULES
