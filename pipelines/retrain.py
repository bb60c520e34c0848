"""The `retrain` flow: new images → the DVC graph → a paired comparison → a new champion, or why not."""

import hashlib
from contextlib import chdir
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from dvc.repo import Repo
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from dermtune.registry import Registry
from dermtune_bundle.bundle import Bundle
from dermtune_bundle.errors import DermtuneError
from pipelines.artifacts import publish_results
from pipelines.locks import own_workspace
from pipelines.retries import UNREACHABLE, patient_task
from pipelines.stage import as_own
from pipelines.train import run_stages

if TYPE_CHECKING:
    from dermtune.promotion import Verdict

REFUSED = "Refused"
_NOT_EXPORTED = "export: not exported: "
_GONE = "the source is not there; nothing was changed"


@flow(name="retrain")
def retrain(
    project: Path = Path(), registry: str = "registry", experiment: str = "", hours: float = 24
) -> State[None]:
    """Train on what is new, and make the bundle champion if it is no worse than the one in use.

    Ends as Unchanged where there is nothing new, as Promoted, or as Refused, with the reason; section
    `retrain` of params.yaml says how much worse is still no worse.

    Args:
        project: the folder of dvc.yaml.
        registry: folder, or place that fsspec reaches.
        experiment: name under which DVC keeps the run; empty: that of the flow run.
        hours: after which a stage is ended.
    """
    project = project.resolve()
    with own_workspace(project):
        return _retrain(project, registry, experiment, hours)


def _retrain(project: Path, registry: str, experiment: str, hours: float) -> State[None]:
    looked = look_at_source(project, registry, return_state=True)
    if not looked.is_completed():
        return as_own(looked)
    changed, known = cast("tuple[list[str], str]", looked.result())
    if known:
        return Completed(name="Unchanged", message=f"nothing new; {known}")
    if "ingest" in changed:
        try:
            _keep_splits(project)
        except DermtuneError as error:
            return Failed(message=str(error))
    state = run_stages(project, experiment=experiment, hours=hours)
    if str(state.message).startswith(_NOT_EXPORTED):
        return as_own(note_gate(project, registry, str(state.message), return_state=True))
    if not state.is_completed():
        return state
    publish_results(project, registry)
    return as_own(judge(project, registry, return_state=True))


@patient_task("source")
def look_at_source(project: Path, registry: str) -> tuple[list[str], str] | State[None]:
    """What has something new to read, and what was decided before; what cannot be reached is tried again.

    Returns:
        The stages of dvc.yaml that changed, and, where none did, what was decided of the bundle that lies
        there; or a failed state, where what ingest reads is not there. Nothing was changed then.
    """
    with chdir(project), Repo() as repo:
        changed = {name: what for name, what in repo.status().items() if not name.startswith("search/")}
    for what in changed.get("ingest", []):
        deps = what.get("changed deps", {}) if isinstance(what, dict) else {}  # else a word
        for dep, state in deps.items():
            if state == "deleted" or _is_empty_source(project, dep):
                return Failed(name=UNREACHABLE, message=f"{dep}: {_GONE}")
    # A model that missed a gate has no bundle: to DVC its export is always still to be made.
    is_old = [*changed] == ["export"] and "params" not in str(changed["export"])
    return [*changed], _known(project, registry) if is_old or not changed else ""


def _is_empty_source(project: Path, dep: str) -> bool:
    """A share that is not mounted is an empty folder."""
    from dermtune.params import read_params  # noqa: PLC0415 - it loads scikit-learn

    config = read_params(project / "params.yaml").ingest
    folder = project / dep
    if config.source == "synthetic" or dep != config.path or not folder.is_dir():
        return False
    return all(path.name == "README.md" for path in folder.iterdir())


def _known(project: Path, registry: str) -> str:
    """What was decided of the bundle that lies there; empty: nothing yet."""
    bundles = Registry(registry)
    version, promoted = _candidate(project), [one.version for one in bundles.history()]
    champion = promoted[-1] if promoted else None
    if version == champion:
        return "the champion is of these images"
    if version in promoted:
        return f"{version[:12]} was champion until somebody went back; `dermtune registry promote` overrules"
    for past in reversed(bundles.comparisons()):
        if (past["candidate"], past["champion"]) == (version, champion) and past["reasons"]:
            return f"comparison {past['number']} refused this bundle: {past['reasons'][0]}"
    return ""


def _candidate(project: Path) -> str:
    """The bundle's version; of a model that missed a gate, the SHA-256 of its metrics."""
    bundle = project / "data/export"
    if bundle.exists():
        return Bundle.open(bundle).version
    return hashlib.sha256((project / "data/evaluate/metrics.json").read_bytes()).hexdigest()


@patient_task("gate")
def note_gate(project: Path, registry: str, message: str) -> State[None]:
    """Keep that a model missed a gate, so that it is told once and not every night.

    Returns:
        Refused, completed.
    """
    bundles = Registry(registry)
    told = {"champion": bundles.champion(), "candidate": _candidate(project), "passed": False}
    bundles.note({"at": _now(), **told, "reasons": [message], "lesions": 0, "judged": []})
    return Completed(name=REFUSED, message=message)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _keep_splits(project: Path) -> None:
    """Before images come in: what is a test lesion stays one."""
    from dermtune.splits import keep_splits  # noqa: PLC0415 - it loads scikit-learn
    from dermtune.table import read_table  # noqa: PLC0415

    table = project / "data/ingest/images.parquet"
    if table.exists():
        keep_splits(read_table(table), project / "data/splits.csv")


@patient_task("compare")
def judge(project: Path, registry: str) -> State[None]:
    """Compare the bundle with the champion, and promote it or not.

    Returns:
        Promoted, Refused or Unchanged, all completed.
    """
    from dermtune.params import read_params  # noqa: PLC0415 - these load torch and what draws figures
    from dermtune.promotion import LEARNED, compare_with_champion, kept_beside  # noqa: PLC0415

    images, candidate = project / "data/ingest", project / "data/export"
    params, bundles = read_params(project / "params.yaml"), Registry(registry)
    champion = bundles.champion()
    if known := _known(project, registry):  # the new images changed nothing in it
        return Completed(name="Unchanged", message=known)
    version = bundles.add(candidate, beside=kept_beside(candidate, images))
    if champion is None:
        bundles.promote(version, over=None, reason="the first that passed the gates")
        return Completed(name="Promoted", message=f"{version[:12]} is the first champion")
    learned = bundles.beside(champion, LEARNED)
    with TemporaryDirectory() as folder:
        verdict = compare_with_champion(
            bundles.fetch(champion, Path(folder, "champion.zip")),
            candidate,
            params.retrain,
            images=images,
            learned=None if learned is None else frozenset(learned.decode().split()),
            draws=params.evaluate.bootstrap,
            seed=params.seed,
        )
    bundles.note(
        {
            "at": _now(),
            "champion": champion,
            "candidate": version,
            "passed": verdict.is_promoted,
            "reasons": verdict.reasons,
            "lesions": verdict.lesions,
            "judged": [asdict(one) for one in verdict.judged],
        }
    )
    uses = sum(one["lesions"] > 0 for one in bundles.comparisons())
    if verdict.is_promoted:
        bundles.promote(version, over=champion, reason=f"no worse than {champion[:12]} on test lesions")
    _publish_verdict(verdict, champion, version, uses)
    if not verdict.is_promoted:
        return Completed(
            name=REFUSED, message=f"{len(verdict.reasons)} reasons, such as: {verdict.reasons[0]}"
        )
    return Completed(name="Promoted", message=f"{version[:12]} replaces {champion[:12]}")


def _publish_verdict(verdict: "Verdict", champion: str, candidate: str, uses: int) -> None:
    """The reasons, and what was found on the way, on the page of the run."""
    from dermtune.promotion import TOO_FEW  # noqa: PLC0415 - it loads torch

    word = "Promoted" if verdict.is_promoted else "Refused"
    told = [one.sentence() for one in verdict.judged if one.is_met and one.verdict != TOO_FEW]
    untold = sum(one.is_met and one.verdict == TOO_FEW for one in verdict.judged)
    lines = [*(f"- **{reason}**" for reason in verdict.reasons), "", *(f"- {one}" for one in told)]
    lines += ["", f"{untold} more conditions, of small groups, have too few lesions to tell."]
    create_markdown_artifact(
        key="verdict",
        description="The candidate against the champion, on the same test lesions",
        markdown=f"**{word}.** Champion before: `{champion[:12]}`, candidate: `{candidate[:12]}`,"
        f" {verdict.lesions} test lesions that neither has learned from.\n\n"
        f"Comparisons that the test split was used for so far: {uses}. The more there are, the less its"
        " figures are worth; new test lesions renew it.\n\n" + "\n".join(lines),
    )
