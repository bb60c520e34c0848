import json

from pipelines.artifacts import metrics_table

METRIC = '{"value": 0.875, "low": 0.8, "high": 0.9}'
METRICS = f"""{{
 "auroc": {{"macro": {METRIC}}}, "balanced_accuracy": {METRIC}, "average_precision": {{"macro": {METRIC}}},
 "threshold": {{"mel": 0.25}}, "sensitivity": {{"mel": {METRIC}}}, "specificity": {{"mel": {METRIC}}},
 "accuracy": {METRIC}, "brier": {METRIC}, "ece": {METRIC}}}"""


def test_a_table_without_a_champion_has_values_alone() -> None:
    table = metrics_table(json.loads(METRICS), None).splitlines()
    assert table[0] == "| metric | value |"
    assert "| Balanced accuracy | 0.875 [0.800, 0.900] |" in table


def test_differences_are_to_the_champion_whatever_its_threshold() -> None:
    champion = json.loads(METRICS.replace("0.25", "0.4").replace("0.875", "0.8"))
    del champion["specificity"]["mel"]
    champion["specificity"]["mel"] = {"value": None, "low": None, "high": None}
    table = metrics_table(json.loads(METRICS), champion).splitlines()
    assert table[0] == "| metric | value | champion | difference |"
    assert "| Sensitivity, mel ≥ 0.250 | 0.875 [0.800, 0.900] | 0.800 [0.800, 0.900] | +0.075 |" in table
    assert "| Specificity, mel ≥ 0.250 | 0.875 [0.800, 0.900] | undefined |  |" in table
