import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner
from pipelines.alerts import main
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event
from prefect.flow_engine import run_flow_sync
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Completed, Failed, Running

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # Apprise's
TIMEOUT = 30
HEARTBEAT = 180  # Prefect's default
IMAGE = "/inbox/erika mustermann.png"


@pytest.fixture(scope="module")
def webhook() -> Iterator[tuple[str, "Queue[dict[str, str]]"]]:
    """An address that takes JSON, and what it was sent."""
    taken: Queue[dict[str, str]] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{receiver.server_port}/token", taken
        receiver.shutdown()


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[str, "Queue[str]"]]:
    """An address of Apprise's that leads to a mail server, and what it was sent."""
    taken: Queue[str] = Queue()

    class Receiver(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                command = line[:4].upper().strip()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    taken.put(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        port = receiver.server_address[1]
        yield f"mailto://127.0.0.1:{port}?from=dermtune@clinic.org&to=night@clinic.org", taken
        receiver.shutdown()


@pytest.fixture(scope="module")
def alerts(
    server: None,  # noqa: ARG001 - it has to be up
    webhook: tuple[str, "Queue[dict[str, str]]"],
    mailbox: tuple[str, "Queue[str]"],
) -> Iterator[list[str]]:
    """Alerts that were set up twice, and their names; gone with the module."""
    for _ in range(2):
        result = CliRunner().invoke(main, ["--webhook", webhook[0], "--email", mailbox[0]])
        assert result.exit_code == 0, result.output
        assert webhook[1].get(timeout=TIMEOUT)["subject"] == "dermtune: alerts"
        assert "Subject: dermtune: alerts" in mailbox[1].get(timeout=TIMEOUT)
    yield result.output.splitlines()
    with get_client(sync_client=True) as client:
        for name in result.output.splitlines():
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)


@flow
def watched() -> State[None]:
    return Completed(name="Refused", message="worse by 0.02 on 40 lesions")


def make_run(state: State[Any] | None = None, *, deployed: bool = True) -> FlowRun:
    """A run that nobody starts, in a state that the server is told."""
    with get_client(sync_client=True) as client:
        if deployed:
            deployment = client.create_deployment(client.create_flow(watched), "watched")
            run = client.create_flow_run_from_deployment(deployment)
        else:
            run = client.create_flow_run(watched)
        if state:
            client.set_flow_run_state(run.id, state, force=True)
    return run


def tell(run: FlowRun, event: str, *, ago: timedelta) -> None:
    """Let the server hear of a run what it would have heard some time ago."""
    told = Event(
        event=f"prefect.flow-run.{event}",
        resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        related=[{"prefect.resource.id": f"prefect.flow.{run.flow_id}", "prefect.resource.role": "flow"}],
        occurred=datetime.now(UTC) - ago,
        id=uuid4(),
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[told.model_dump(mode="json")])


@dataclass(frozen=True)
class Told:
    runs: dict[str, FlowRun]
    posts: list[dict[str, str]]
    mails: list[str]

    def post(self, name: str) -> dict[str, str]:
        (post,) = (post for post in self.posts if post["text"].endswith(f"/{self.runs[name].id}"))
        return post


@pytest.fixture(scope="module")
def told(
    alerts: list[str],
    webhook: tuple[str, "Queue[dict[str, str]]"],
    mailbox: tuple[str, "Queue[str]"],
) -> Told:
    """Runs that end in all ways, and what people were told."""
    runs = {
        "done": make_run(Completed()),
        "by hand": make_run(Failed(), deployed=False),
        "raised": make_run(Failed(message=f"Flow run encountered an exception: OSError: {IMAGE}")),
        "stage": make_run(Failed(message=f"finetune: {IMAGE}: broken")),
        "refused": make_run(),
        "dead": make_run(Running()),
        "alive": make_run(Running()),
        "late": make_run(),
    }
    run_flow_sync(watched, flow_run=runs["refused"], return_type="state")
    tell(runs["dead"], "heartbeat", ago=timedelta(seconds=3 * HEARTBEAT + 1))
    tell(runs["late"], "Late", ago=timedelta(minutes=15, seconds=1))
    tell(runs["alive"], "heartbeat", ago=timedelta(seconds=2.5 * HEARTBEAT))
    tell(runs["alive"], "heartbeat", ago=timedelta())
    runs["drifted"] = make_run(Completed(name="Drifted", message="2 of 9 quantities"))  # and all before is in
    posts = [webhook[1].get(timeout=TIMEOUT) for _ in range(4)]
    # The server looks for silence when an automation is switched on, then after its time.
    with get_client(sync_client=True) as client:
        for (automation,) in (client.read_automations_by_name(name) for name in alerts[-2:]):
            client.pause_automation(automation.id)
            client.resume_automation(automation.id)
    posts += [webhook[1].get(timeout=TIMEOUT) for _ in range(2)]
    mails = [mailbox[1].get(timeout=TIMEOUT) for _ in posts]
    time.sleep(1)
    assert webhook[1].empty()
    assert mailbox[1].empty()
    return Told(runs, posts, mails)


def test_who_is_named_is_told_of_each_bad_end_once_with_a_link(told: Told) -> None:
    assert told.post("refused")["subject"] == "dermtune: watched Refused"
    name, page = (
        told.runs["refused"].name,
        f"{PREFECT_UI_URL.value()}/runs/flow-run/{told.runs['refused'].id}",
    )
    assert told.post("refused")["text"] == (
        f"dermtune: watched Refused\nwatched, run {name}: Refused: worse by 0.02 on 40 lesions\n{page}"
    )
    assert ": Drifted: 2 of 9 quantities\n" in told.post("drifted")["text"]
    assert {post["text"].rpartition("/")[2] for post in told.posts} == {
        str(told.runs[name].id) for name in ("dead", "late", "raised", "stage", "drifted", "refused")
    }
    assert sum("Subject: dermtune: watched Failed" in mail for mail in told.mails) == 2
    assert sum("run " + name in mail for mail in told.mails) == 1


def test_a_failure_is_told_with_its_stage_and_without_names_of_images(told: Told) -> None:
    assert ": Failed in finetune\n" in told.post("stage")["text"]
    assert ": Failed\n" in told.post("raised")["text"]
    assert "erika" not in f"{told.posts} {told.mails}".lower()


def test_a_run_without_a_sign_of_life_is_crashed_and_one_that_missed_two_heartbeats_is_not(
    told: Told,
) -> None:
    with get_client(sync_client=True) as client:
        dead, alive = (client.read_flow_run(told.runs[name].id).state for name in ("dead", "alive"))
    assert dead is not None
    assert (dead.name, dead.message) == ("Crashed", f"no sign of life for {3 * HEARTBEAT} seconds")
    assert told.post("dead")["subject"] == "dermtune: watched Crashed"
    assert alive is not None
    assert alive.is_running()


def test_a_run_that_no_worker_takes_is_told(told: Told) -> None:
    assert ": Late for 15 minutes; is the worker up?\n" in told.post("late")["text"]


def test_setting_up_twice_leaves_one_of_each(alerts: list[str]) -> None:
    assert alerts == [f"dermtune: {name}" for name in ("failed", "refused", "drifted", "late", "zombie")]
    with get_client(sync_client=True) as client:
        assert [len(client.read_automations_by_name(name)) for name in alerts] == [1] * len(alerts)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --webhook, --email or both"),
        (["--email", "night@clinic.org"], "must begin with mailto:// or mailtos://"),
        (["--webhook", "http://127.0.0.1:9/"], "error: the first message did not get through: "),
        (["--email", "mailto://127.0.0.1:9?from=a@b.org&to=a@b.org"], "error: the first message did not get"),
    ],
)
def test_what_cannot_work_is_told_at_once(options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, options)
    assert result.exit_code != 0
    assert message in result.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [(None, "PREFECT_API_URL names no server"), ("http://127.0.0.1:9/api", "no Prefect server answers")],
)
def test_a_server_has_to_be_there(url: str | None, message: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        result = CliRunner().invoke(main, ["--webhook", "http://127.0.0.1:9/"])
    assert result.exit_code != 0
    assert message in result.stderr


def test_dead_runs_could_not_be_seen_without_heartbeats(server: None) -> None:  # noqa: ARG001 - it has to be up
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        result = CliRunner().invoke(main, ["--webhook", "http://127.0.0.1:9/"])
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY is off" in result.stderr
