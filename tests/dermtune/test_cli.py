import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dermtune.cli import cli, main

ROOT = Path(__file__).parents[2]
METRIC = {"value": 0.875, "low": 0.8, "high": 0.9}
METRICS = {
    "auroc": {"macro": METRIC},
    "balanced_accuracy": METRIC,
    "average_precision": {"macro": METRIC},
    "threshold": {"mel": 0.25},
    "sensitivity": {"mel": METRIC},
    "specificity": {"mel": METRIC},
    "accuracy": METRIC,
    "brier": METRIC,
    "ece": METRIC,
}


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    show = "from dermtune.cli import cli; cli(['--help'], standalone_mode=False)"
    code = f"{show}; import sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in cli.commands:
        assert f"\n  {name} " in shown
    loaded = set(shown.splitlines()[-1].split())
    assert not loaded & {"torch", "timm", "sklearn", "pandas", "matplotlib", "onnxruntime", "pydantic", "dvc"}


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_teaches(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 4


def test_the_projects_params_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, ["check"], catch_exceptions=False)
    assert result.output == "params.yaml: all keys known, all values possible\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"\n  lr: [\d.]+", "\n  lr: fast", "error: params.yaml: finetune.lr: "),
        (r"\n  lr: ", "\n  rate: ", "error: params.yaml: finetune.lr: missing; finetune.rate: unknown key\n"),
        (
            r"\n  cut: \d",
            "\n  cut: 8",
            "error: backbone.cut: tf_efficientnet_lite0 has 7 blocks, so at most ",
        ),
        (r"tf_efficientnet_lite0", "lite0", "error: backbone.name: timm has no model 'lite0'"),
        (r"seed: \d+", "seed: [1", "error: params.yaml: not valid YAML: "),
    ],
)
def test_a_mistake_in_params_is_one_line_and_exit_code_2(  # noqa: PLR0917 (fixtures)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    text, changes = re.subn(old, new, (ROOT / "params.yaml").read_text())
    assert changes == 1
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for command in (["check"], ["ingest", "--out", "data"]):
        monkeypatch.setattr(sys, "argv", ["dermtune", *command])
        with pytest.raises(SystemExit) as failed:
            main()
        assert failed.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(message)
        assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_summary_shows_the_headline_and_where_things_are(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate/metrics.json").write_text(json.dumps(METRICS))
    shown = CliRunner().invoke(cli, ["summary", "--data", str(tmp_path)], catch_exceptions=False).output
    assert "Balanced accuracy" in shown
    assert "0.875 [0.800, 0.900]" in shown
    for line in (f"bundle: {tmp_path}/export", f"report: {tmp_path}/evaluate/report.html", "plots: "):
        assert line in shown


def test_a_summary_without_a_run_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dermtune", "summary", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "no run to show yet; run `make run`" in capsys.readouterr().err
