"""The `train` flow: dvc.yaml's graph, one task run a stage, and an artifact with the metrics.

dvc.yaml is the only description of the graph; this reads it through DVC and never repeats it.
"""

import json
import signal
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipelines.stage import run_stage


def read_graph(project: Path) -> dict[str, list[str]]:
    """Every stage of dvc.yaml in the order in which DVC would run it, with the stages that it waits for.

    Stages of other folders, such as search/dvc.yaml, are for people to start.

    Raises:
        DvcException: the folder holds no DVC project, or dvc.yaml or params.yaml is wrong.
    """
    with chdir(project), Repo() as repo:  # DVC names stages as seen from the current folder
        graph = get_active_graph(repo.index.graph)
        return {
            stage.addressing: [upstream.addressing for upstream in graph.successors(stage)]
            for stage in plan_repro(graph)
            if stage.path_in_repo == "dvc.yaml"
        }


@flow(name="train")
def train(project: Path = Path()) -> State[None]:
    """Bring every stage of dvc.yaml up to date, in order; stop at the first that fails."""
    project = project.resolve()
    try:
        graph = read_graph(project)
    except DvcException as error:
        return Failed(message=str(error))
    states: dict[str, State[Any]] = {}
    for stage, upstream in graph.items():
        states[stage] = run_stage(
            stage, project, wait_for=[states[name] for name in upstream], return_state=True
        )
        if not states[stage].is_completed():
            return Failed(message=f"{stage}: {states[stage].message}")
    publish_metrics(project)
    cached = sum(state.name == "Cached" for state in states.values())
    return Completed(message=f"{len(states) - cached} stages ran, {cached} cached")


def publish_metrics(project: Path) -> None:
    """Show the metrics, and where the report and the bundle are, on the page of the run."""
    evaluation = project / "data/evaluate"
    if not (evaluation / "metrics.json").exists():
        return
    from dermtune.report import headline  # noqa: PLC0415 - it loads what draws figures, for seconds

    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    rows = "\n".join(f"| {name} | {value} |" for name, value in headline(metrics))
    create_markdown_artifact(
        key="metrics",
        description="The test split, read once through the deployable graph",
        markdown=f"| metric | value |\n| --- | --- |\n{rows}\n\n"
        f"Report: `{evaluation / 'report.html'}`  \nBundle: `{project / 'data/export'}`\n",
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="The folder of dvc.yaml; the current one by default.",
)
def main(project: Path) -> None:
    """Run the DVC graph as a Prefect flow, one task a stage.

    Uses the server that PREFECT_API_URL names, else a temporary one that ends with the run.
    """
    # As an exit and not as a kill, SIGTERM also ends the temporary server.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    state = train(project, return_state=True)
    if not state.is_completed():
        click.echo(f"error: {state.message}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
