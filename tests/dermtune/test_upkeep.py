from typing import Any

import pytest

from dermtune.errors import ConfigError
from dermtune.upkeep import MonitorConfig, RetrainConfig

MARGIN = {"auroc": 0.02, "sensitivity": 0.03, "specificity": 0.05}
RETRAIN: dict[str, Any] = {"margin": MARGIN, "subgroup_margin": 0.1}
MONITOR: dict[str, Any] = {"days": 7, "least": 50, "level": 0.01, "effect": 0.2, "unanswered": 0.2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"margin": MARGIN | {"auroc": 0}}, "margin.auroc: .*greater than 0, got 0"),
        ({"margin": MARGIN | {"sensitivity": 1}}, "margin.sensitivity: .*less than 1, got 1"),
        ({"margin": {"auroc": 0.02, "sensitivity": 0.03}}, "margin.specificity: missing"),
        ({"subgroup_margin": -0.1}, "subgroup_margin: .*greater than 0"),
        ({"least": 30}, "least: unknown key"),
    ],
)
def test_a_margin_without_which_any_bundle_or_none_is_promoted_is_refused(
    changed: dict[str, Any], message: str
) -> None:
    RetrainConfig.parse(RETRAIN, source="retrain")
    with pytest.raises(ConfigError, match=f"retrain: {message}"):
        RetrainConfig.parse(RETRAIN | changed, source="retrain")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"days": 0}, "days: .*greater than or equal to 1"),
        ({"least": 9}, "least: .*greater than or equal to 10"),
        ({"level": 0.5}, "level: .*less than or equal to 0.2"),
        ({"effect": 1}, "effect: .*less than 1"),
        ({"unanswered": 0}, "unanswered: .*greater than 0"),
    ],
)
def test_a_watch_that_always_or_never_sounds_is_refused(changed: dict[str, Any], message: str) -> None:
    MonitorConfig.parse(MONITOR, source="monitor")
    with pytest.raises(ConfigError, match=f"monitor: {message}"):
        MonitorConfig.parse(MONITOR | changed, source="monitor")
