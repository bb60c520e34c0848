"""A server of a bundle, on a port of its own, in a thread."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from dermtune_bundle import Bundle
from dermtune_server.app import create_app

Start = Callable[..., httpx.Client]


@pytest.fixture
def start(tiny_bundle: Path) -> Iterator[Start]:
    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def run(**options: Any) -> httpx.Client:  # noqa: ANN401 (create_app's)
        app = create_app(Bundle.open(tiny_bundle, threads=1), **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        running.append((server, thread, client))
        return client

    yield run
    for server, thread, client in running:
        client.close()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
