"""A Prefect server and a worker of processes on this machine, for `make server`; both end together.

The database is SQLite in PREFECT_HOME, or PostgreSQL where PREFECT_API_DATABASE_CONNECTION_URL names one.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Collection
from contextlib import suppress

import click
import psutil

POOL = "dermtune"  # as in prefect.yaml
_SETTINGS = {
    # In memory, they would end with the server: a run that died with it would keep its slot of a limit.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # By default a server that was down for more than a minute forgets which runs owe it a sign of life.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # seconds; a stage may keep all cores busy
}
_GRACE = 15.0  # seconds to end in, of which a flow gives its stage ten


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=4200, show_default=True)
def main(host: str, port: int) -> None:
    """Run a server and a worker, and make the worker's pool if there is none, until Ctrl-C.

    Flows that run then are ended and shown as Crashed. If one of the two ends by itself, so does the other.
    """
    _check_free(host, port)
    # Both, for a job that a shell put in the background would ignore SIGINT.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    os.environ.update(_SETTINGS | os.environ | {"PREFECT_API_URL": f"http://{host}:{port}/api"})
    started: dict[str, psutil.Popen] = {}
    flows: set[psutil.Process] = set()
    try:
        started["server"] = _start("server", "--host", host, "--port", str(port))
        while not (ended := _ended(started)):
            time.sleep(0.2)
            if "worker" in started:
                with suppress(psutil.NoSuchProcess):
                    flows |= set(started["worker"].children())  # which outlive a worker that is killed
            elif _answers(host, port):
                started["worker"] = _start("worker", "--pool", POOL, "--type", "process")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not break this off
            signal.signal(number, signal.SIG_IGN)
        _end(flows)  # first, for each tells the server how it ended; a worker would kill it
        for name in reversed(started):
            _end({started[name]})
    name, code = ended
    click.echo(f"error: the {name} ended by itself with exit code {code}; its last lines say why", err=True)
    sys.exit(1)


def _start(name: str, *options: str) -> psutil.Popen:
    command = [sys.executable, "-m", "prefect", name, "start", *options]
    return psutil.Popen(command, start_new_session=True)  # Ctrl-C comes to us alone


def _ended(started: dict[str, psutil.Popen]) -> tuple[str, int] | None:
    """The first that runs no more, with its exit code."""
    codes = ((name, process.poll()) for name, process in started.items())
    return next(((name, code) for name, code in codes if code is not None), None)


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            click.echo(f"error: {host}:{port}: {error.strerror}; give another --host or --port", err=True)
            sys.exit(1)


def _answers(host: str, port: int) -> bool:
    """Whether the server listens, which it does once its database is ready."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def _end(processes: Collection[psutil.Process]) -> None:
    """Ask processes to end, wait, then insist."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=_GRACE)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
