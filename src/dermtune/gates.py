"""The gates: what a model must reach on the test split before it may leave."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from dermtune.config import Config
from dermtune.model_card import describe_metric

Share = Annotated[float, Field(ge=0, le=1)]


class GatesConfig(Config):
    """The lowest value of each metric with which a model is exported."""

    auroc_macro: Share
    balanced_accuracy: Share


def missed_gates(metrics: Mapping[str, Any], gates: GatesConfig) -> list[str]:
    """Describe each gate that a model misses; an undefined metric misses its gate.

    Args:
        metrics: what `evaluate` wrote to metrics.json.
        gates: the lowest values allowed.
    """
    measured = {"auroc_macro": metrics["auroc"]["macro"], "balanced_accuracy": metrics["balanced_accuracy"]}
    return [
        f"{name} is {describe_metric(measured[name])}, at least {lowest:.3f} is needed"
        for name, lowest in gates
        if measured[name]["value"] is None or measured[name]["value"] < lowest
    ]
