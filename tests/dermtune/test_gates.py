from typing import Any

import pytest

from dermtune.gates import GatesConfig, missed_gates


def metrics(area: float | None, balanced: float | None) -> dict[str, Any]:
    def metric(value: float | None) -> dict[str, Any]:
        return {"value": value, "low": value, "high": value, "reason": "no such image"}

    return {"auroc": {"macro": metric(area)}, "balanced_accuracy": metric(balanced)}


@pytest.mark.parametrize(
    ("area", "balanced", "missed"),
    [
        (0.9, 0.6, []),
        (0.8, 0.5, []),
        (0.79, 0.6, ["auroc_macro is 0.790"]),
        (0.79, 0.4, ["auroc_macro is 0.790", "balanced_accuracy is 0.400"]),
        (None, 0.6, ["auroc_macro is undefined (no such image)"]),
    ],
)
def test_each_gate_that_is_missed_is_described(
    area: float | None, balanced: float | None, missed: list[str]
) -> None:
    found = missed_gates(metrics(area, balanced), GatesConfig(auroc_macro=0.8, balanced_accuracy=0.5))
    assert len(found) == len(missed)
    assert all(line.startswith(start) for line, start in zip(found, missed, strict=True))
