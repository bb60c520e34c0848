"""Messages to people by webhook and e-mail: Prefect automations, for what nobody sees at night."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn
from uuid import UUID

import click
import httpx
from prefect.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.blocks.abstract import NotificationBlock, NotificationError
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_UI_URL
from pydantic import SecretStr

NAME = "dermtune"
"""Each block is called so and each automation begins so: what bears the name is written anew."""
STAGES = ("ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export")
"""Of dvc.yaml; a message names one of these or none, for what else begins an error may be an image."""
_RUN = "prefect.flow-run."
_ANY_RUN = ResourceSpecification({"prefect.resource.id": f"{_RUN}*"})
_LATE = timedelta(minutes=15)
_MISSED = 3  # heartbeats in a row, after which a run counts as dead


def automations(blocks: Sequence[UUID], heartbeat: int, pages: str) -> list[AutomationCore]:
    """What is told to people, and what is done, when runs end badly or not at all.

    A message names flow, run and state. It has no parameters, and of a failure's message the stage alone, for
    the rest may name images; what Refused and Drifted say counts, and is sent as it is.

    Args:
        blocks: notification blocks; each gets every message.
        heartbeat: seconds between two signs of life of a run.
        pages: address of the server's pages.
    """

    def tell(name: str, trigger: EventTrigger, description: str, words: str) -> AutomationCore:
        page = f"{pages}/runs/flow-run/{{{{ flow_run.id }}}}"
        actions = [
            SendNotification(
                block_document_id=block,
                subject=f"{NAME}: {{{{ flow.name }}}} {{{{ flow_run.state.name }}}}",
                body=f"{{{{ flow.name }}}}, run {{{{ flow_run.name }}}}: {words}\n{page}",
            )
            for block in blocks
        ]
        return AutomationCore(
            name=f"{NAME}: {name}", description=description, trigger=trigger, actions=[*actions]
        )

    state, message = "{{ flow_run.state.name }}", "{{ flow_run.state.message }}"
    stage = (
        '{% set stage = (flow_run.state.message or "").split(": ")[0] %}'
        f"{{% if stage in {STAGES} %}} in {{{{ stage }}}}{{% endif %}}"
    )
    return [
        tell("failed", _ends("Failed", "Crashed", "TimedOut"), "A run failed.", state + stage),
        tell("refused", _ends("Refused"), "A model was not promoted.", f"{state}: {message}"),
        tell(
            "drifted", _ends("Drifted"), "New images are unlike those of the training.", f"{state}: {message}"
        ),
        tell(
            "late",
            _silence("Late", _LATE),
            "No worker took a run.",
            f"Late for {_LATE.seconds // 60} minutes; is the worker up?",
        ),
        AutomationCore(
            name=f"{NAME}: zombie",
            description="A run whose process died is Crashed, so that it is told and keeps no slot.",
            trigger=_silence("heartbeat", timedelta(seconds=_MISSED * heartbeat)),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no sign of life for {_MISSED * heartbeat} seconds"
                )
            ],
        ),
    ]


def _ends(*states: str) -> EventTrigger:
    """A run of a deployment enters one of these states; who starts a flow by hand sees it."""
    return EventTrigger(
        posture=Posture.Reactive,
        expect={f"{_RUN}{state}" for state in states},
        match=_ANY_RUN,
        match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
        for_each={"prefect.resource.id"},
    )


def _silence(after: str, within: timedelta) -> EventTrigger:
    """Nothing is heard of a run for some time after an event: no state of whatever name, no heartbeat."""
    return EventTrigger(
        posture=Posture.Proactive,
        after={f"{_RUN}{after}"},
        expect={f"{_RUN}*"},
        match=_ANY_RUN,
        for_each={"prefect.resource.id"},
        within=within,
    )


def webhook_block(url: str) -> NotificationBlock:
    """JSON to an address: {"subject", "text"}, of which Slack, Mattermost and Teams show `text`."""
    return CustomWebhookNotificationBlock(
        name=NAME,
        url="{{url}}",
        secrets={"url": url},  # it often holds a token
        json_data={"subject": "{{subject}}", "text": "{{subject}}\n{{body}}"},
    )


def email_block(url: str) -> NotificationBlock:
    """An e-mail by SMTP. Prefect has no block of that name; Slack's hands any address of Apprise on to it."""
    return SlackWebhook(url=SecretStr(url), notify_type="warning")


async def write_alerts(blocks: Sequence[NotificationBlock], heartbeat: int, pages: str) -> list[str]:
    """Send a first message through every block, then keep the blocks and the automations on the server.

    What is there under the same names is replaced; the other arguments are those of automations.

    Returns:
        The automations' names.

    Raises:
        NotificationError: a block's first message was not taken; nothing was changed.
        HTTPError: the same, or the server does not answer.
    """
    for block in blocks:
        with block.raise_on_failure():
            await block.notify("Alerts come here from now on.", subject=f"{NAME}: alerts")
    wanted = automations([await block.asave(NAME, overwrite=True) for block in blocks], heartbeat, pages)
    async with get_client() as client:
        for automation in wanted:
            known = await client.read_automations_by_name(automation.name)
            if known:
                await client.update_automation(known[0].id, automation)
            else:
                await client.create_automation(automation)
    return [automation.name for automation in wanted]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--webhook", envvar="DERMTUNE_ALERTS_WEBHOOK", help="http(s):// address that takes JSON by POST."
)
@click.option(
    "--email",
    envvar="DERMTUNE_ALERTS_EMAIL",
    help="mailto(s)://USER:PASSWORD@HOST:PORT?from=ADDRESS&to=ADDRESS, as Apprise writes it.",
)
def main(webhook: str | None, email: str | None) -> None:
    """Let the server that PREFECT_API_URL names tell people what goes wrong; a first message proves the way.

    DERMTUNE_ALERTS_WEBHOOK and DERMTUNE_ALERTS_EMAIL give the addresses where others could read the command.
    """
    heartbeat = PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value()
    if not PREFECT_API_URL.value():
        raise click.UsageError("PREFECT_API_URL names no server, such as http://127.0.0.1:4200/api")
    if heartbeat is None:
        raise click.UsageError("PREFECT_FLOWS_HEARTBEAT_FREQUENCY is off; a dead run would not be seen")
    if not (webhook or email):
        raise click.UsageError("give --webhook, --email or both")
    if email and not email.startswith(("mailto://", "mailtos://")):
        raise click.BadParameter("must begin with mailto:// or mailtos://", param_hint="--email")
    with get_client(sync_client=True) as client:
        if client.api_healthcheck():
            _fail(f"{PREFECT_API_URL.value()}: no Prefect server answers; PREFECT_API_URL names it")
    blocks = [webhook_block(webhook)] if webhook else []
    blocks += [email_block(email)] if email else []
    try:
        names = asyncio.run(write_alerts(blocks, heartbeat, PREFECT_UI_URL.value()))
    except (httpx.HTTPError, httpx.InvalidURL, NotificationError) as error:
        why = str(error).splitlines() or ["no such server, or it refused"]
        _fail(f"the first message did not get through: {why[-1]}")
    click.echo("\n".join(names))


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
