"""`dermtune serve` under load: latency and rate at 1, 4 and 16 clients, errors, and memory.

    python benchmarks/serving.py BUNDLE IMAGE [--requests 5000]

The server is a process of its own on this machine's loopback; so are the clients' threads in this one, which
take some of the processor from it.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx
import numpy as np
import psutil

_PORT = 8765
_CLIENTS = (1, 4, 16)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("image", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=5000, show_default=True, help="In all.")
def main(bundle: Path, image: Path, requests: int) -> None:
    """Measure."""
    command = ["dermtune", "serve", str(bundle), "--port", str(_PORT), "--per-minute", "1000000"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    base, data = f"http://127.0.0.1:{_PORT}", image.read_bytes()
    try:
        _wait(base)
        process = psutil.Process(server.pid)
        _load(base, data, clients=2, requests=100)  # warm
        before = process.memory_info().rss
        done = 0
        for clients in _CLIENTS:
            seconds, errors, wall = _load(base, data, clients=clients, requests=requests // len(_CLIENTS))
            p50, p99 = np.percentile(seconds, [50, 99]) * 1000
            rate = len(seconds) / wall
            done += len(seconds)
            times = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"
            print(f"{clients:2} clients: {times}, {rate:.0f} images/s, {errors} errors")
        after = process.memory_info().rss
        print(f"memory: {before >> 20} MiB before, {after >> 20} MiB after {done} requests")
        print(f"ratio: {after / before:.2f}")
    finally:
        server.terminate()
        sys.exit(server.wait(20))


def _wait(base: str) -> None:
    for _ in range(200):
        try:
            if httpx.get(f"{base}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server does not start")


def _load(base: str, data: bytes, *, clients: int, requests: int) -> tuple[list[float], int, float]:
    """Seconds of each request, how many failed, and seconds in all."""

    def one_client(_: int) -> list[tuple[float, bool]]:
        found = []
        with httpx.Client(base_url=base, timeout=60) as client:
            for _ in range(requests // clients):
                start = time.perf_counter()
                response = client.post("/v1/predict", files={"file": ("x.jpg", data)})
                good = response.is_success and "predicted" in response.json()["results"][0]
                found.append((time.perf_counter() - start, good))
        return found

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [one for client in pool.map(one_client, range(clients)) for one in client]
    return [one for one, _ in found], sum(not good for _, good in found), time.perf_counter() - start


if __name__ == "__main__":
    main()
