"""The `train` flow: dvc.yaml's graph, one task run a stage, and artifacts with the metrics and the plots.

dvc.yaml is the only description of the graph; this reads it through DVC and never repeats it.
"""

import json
import signal
import sys
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro
from dvc.utils.hydra import apply_overrides
from omegaconf.errors import OmegaConfBaseException
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from scmrepo.exceptions import SCMError

from pipelines.artifacts import publish_results
from pipelines.locks import own_workspace
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
def train(
    project: Path = Path(),
    changes: dict[str, Any] | None = None,
    experiment: str = "",
    registry: str = "registry",
    hours: float = 24,
) -> State[None]:
    """Bring every stage of dvc.yaml up to date, in order; stop at the first that fails.

    Args:
        project: the folder of dvc.yaml.
        changes: values for params.yaml, by key, such as {"finetune.lr": 0.001}; they stay there.
        experiment: name under which DVC keeps the run (`dvc exp show`); empty: that of the flow run.
        registry: where the champion is, whose metrics are shown beside; folder, or place that fsspec reaches.
        hours: after which a stage is ended.
    """
    project = project.resolve()
    with own_workspace(project):
        try:
            change_params(project, changes or {})
        except (DvcException, OmegaConfBaseException) as error:
            why = str(error.__cause__ or error).partition("\n")[0]
            return Failed(message=f"changes, of {', '.join(changes or {})}: {why}")
        state = run_stages(project, experiment=experiment, hours=hours)
        if state.is_completed():
            publish_results(project, registry)
        return state


def run_stages(project: Path, *, experiment: str, hours: float) -> State[None]:
    """Bring every stage of dvc.yaml up to date, each as a task, and keep the run as an experiment.

    Returns:
        Completed, or Failed with the message of the stage that failed.
    """
    try:
        graph = read_graph(project)
    except DvcException as error:
        return Failed(message=str(error))
    states: dict[str, State[Any]] = {}
    for stage, upstream in graph.items():
        states[stage] = run_stage(
            stage, project, hours, wait_for=[states[name] for name in upstream], return_state=True
        )
        if not states[stage].is_completed():
            return Failed(message=f"{stage}: {states[stage].message}")
    save_experiment(project, experiment or flow_run.name or "train")
    cached = sum(state.name == "Cached" for state in states.values())
    return Completed(message=f"{len(states) - cached} stages ran, {cached} cached")


def change_params(project: Path, changes: Mapping[str, Any]) -> None:
    """Set values in params.yaml, as `dvc exp run --set-param` does; comments stay.

    Raises:
        DvcException: a key is none of params.yaml.
    """
    if changes:
        overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
        apply_overrides(project / "params.yaml", overrides)


def save_experiment(project: Path, name: str) -> None:
    """Keep params, metrics and lineage of the run as a DVC experiment, where the project has a commit."""
    with chdir(project), Repo() as repo:
        try:
            repo.experiments.save(targets=["dvc.yaml"], name=name, force=True)
        except (DvcException, SCMError) as error:
            get_run_logger().warning("the run is no DVC experiment: %s", error)


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
