"""The `search` flow: better hyper-parameters of finetune, on the stored activations."""

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from pipelines.locks import own_workspace
from pipelines.stage import as_own, run_stage

STAGE = "search/dvc.yaml:search"


@flow(name="search")
def search(project: Path = Path(), hours: float = 24) -> State[None]:
    """Try values for keys of finetune, as section `search` of params.yaml says; params.yaml stays as it is.

    What it found is in data/search; the stages up to embed must be up to date.

    Args:
        project: the folder of dvc.yaml.
        hours: after which it is ended; its trials are kept, and the next run goes on.
    """
    project = project.resolve()
    with own_workspace(project):
        return as_own(run_stage(STAGE, project, hours, return_state=True))
