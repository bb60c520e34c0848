"""Where independent pieces of work run: on this machine, or on a Ray cluster. What comes out is the same.

A piece of work is a pure function of one item; what it needs besides (a network, a bundle) is made once a
process. Ray schedules, spills and restarts; here is neither queue nor scheduler.
"""

import hashlib
import logging
import os
import pickle
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from dermtune.config import Config
from dermtune.errors import ConfigError, DataError
from dermtune_bundle.errors import DermtuneError

T = TypeVar("T")
R = TypeVar("R")
Make = Callable[[], Callable[[T], R]]
"""Makes the work's function; picklable, for other processes make it as well."""
_RETRIES = 3  # of a piece of work whose process was killed, or whose machine went
_PATIENCE = 10  # seconds
_ENOUGH = 2  # pieces under way, of each core, so that it finds its next one waiting


@dataclass(frozen=True)
class _Failed:
    """What a piece of work raised for people; on its way here an exception loses its cause."""

    error: DermtuneError
    reason: str | None
    """Of an OSError behind it, after which trying again may help."""


_Submit = Callable[[Sequence[T]], Callable[[], list[R] | _Failed]]


class ComputeConfig(Config):
    """Where ingest, augment, embed, search and scoring run; it changes no result.

    On Ray a trial of a search trains with one thread; with more (OMP_NUM_THREADS) here, sums may round
    otherwise.
    """

    engine: Literal["local", "ray"]
    workers: Annotated[int, Field(ge=0)]
    """Of Ray, pieces of work at once; 0: as many as it has cores, or GPUs where the work needs one."""
    address: str
    """Of a running Ray cluster, such as `auto` or ray://head:10001; empty: one on this machine is started."""


LOCAL = ComputeConfig(engine="local", workers=0, address="")


@contextmanager
def engine(
    compute: ComputeConfig, make: Make[T, R], *, chunk: int = 1, processes: bool = False, gpus: int = 0
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """Give a function that does the work on every item, and gives the results in the items' order.

    A piece of work whose process dies on Ray is done again, up to three times; the work must not mind. Few
    pieces are under way at a time, so that memory does not grow with their number.

    Args:
        compute: where.
        make: makes the work's function.
        chunk: items in one piece of work.
        processes: whether the local engine, too, uses a process a core, and not this one.
        gpus: that a piece of work needs.

    Raises:
        ConfigError: Ray is not installed or cannot be reached.
        DataError: a piece of work was killed again and again.
    """
    if compute.engine == "local" and not processes:
        work = make()
        yield lambda items: map(work, items)
        return
    with _ray(compute, make, gpus) if compute.engine == "ray" else _pool(make) as (submit, under_way):

        def run(items: Iterable[T]) -> Iterator[R]:
            waiting: deque[Callable[[], list[R] | _Failed]] = deque()
            coming = iter(items)
            while part := list(islice(coming, chunk)):
                waiting.append(submit(part))
                if len(waiting) >= under_way:
                    yield from _results(waiting.popleft())
            yield from chain.from_iterable(map(_results, waiting))

        yield run


def each(
    compute: ComputeConfig,
    make: Make[T, R],
    items: Iterable[T],
    *,
    chunk: int = 1,
    processes: bool = False,
    gpus: int = 0,
) -> Iterator[R]:
    """As `engine`, for one series of picklable items."""
    with engine(compute, make, chunk=chunk, processes=processes, gpus=gpus) as run:
        yield from run(items)


def _results(result: Callable[[], list[R] | _Failed]) -> list[R]:
    done = result()
    if isinstance(done, _Failed):
        raise done.error from (None if done.reason is None else OSError(done.reason))
    return done


@dataclass(frozen=True)
class _Making:
    """A pickled `Make`, told apart by its hash: it may hold a network."""

    sha256: str
    folder: Path
    """Where it is to be done: the paths of params.yaml begin there."""
    pickled: bytes = field(compare=False, repr=False)

    @classmethod
    def of(cls, make: Make[T, R]) -> "_Making":
        pickled = pickle.dumps(make)
        return cls(hashlib.sha256(pickled).hexdigest(), Path.cwd(), pickled)


@lru_cache(maxsize=1)
def _made(making: _Making) -> Callable[[Any], Any]:
    """The work's function, made once a process, which goes to the folder for that."""
    os.chdir(making.folder)
    work: Callable[[Any], Any] = pickle.loads(making.pickled)()  # noqa: S301 (our own process pickled it)
    return work


def _do(making: _Making, items: Sequence[Any]) -> list[Any] | _Failed:
    try:
        work = _made(making)
        return [work(item) for item in items]
    except DermtuneError as error:
        return _Failed(error, str(error.__cause__) if isinstance(error.__cause__, OSError) else None)


@contextmanager
def _pool(make: Make[T, R]) -> Iterator[tuple[_Submit[T, R], int]]:
    making = _Making.of(make)
    # spawn: the parent may already run threads of other libraries, which a fork would copy half-way
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    try:
        yield lambda items: pool.submit(_do, making, items).result, _ENOUGH * (os.cpu_count() or 1)
    except BrokenProcessPool as error:
        raise DataError("a worker process was killed, most likely for want of memory; run again") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ray(compute: ComputeConfig, make: Make[T, R], gpus: int) -> Iterator[tuple[_Submit[T, R], int]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it asks when it is imported
    if not compute.address:  # its ports are open to the network: let in who knows a secret of this process
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError("compute.engine: 'ray' needs Ray: pip install 'dermtune[ray]'") from error
    joins = not ray.is_initialized()
    if joins:
        _join(ray, compute)
    try:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # it is untyped
        cores = int(there.get("GPU" if gpus else "CPU", 0))
        if not cores:
            raise ConfigError(
                f"compute.engine: the Ray cluster has no {'GPU' if gpus else 'CPU'}, and the work asks for"
                " one; set embed.device and finetune.device to cpu, or join another cluster"
            )
        work = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(_do)
        making = ray.put(_Making.of(make))

        def submit(items: Sequence[T]) -> Callable[[], list[R] | _Failed]:
            return partial(_await, ray, work.remote(making, items))

        # a cluster of others has more cores than were asked for
        yield submit, compute.workers if compute.address and compute.workers else _ENOUGH * cores
    finally:
        if joins:
            ray.shutdown()


def _await(ray: Any, coming: Any) -> Any:  # noqa: ANN401 (Ray ships no types)
    try:
        return ray.get(coming)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OSError):
            raise DataError(
                f"compute: a worker of Ray: {error.cause}; every machine needs the project's folder, at the"
                " same place, and the images"
            ) from error
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"compute: Ray could not do a piece of work, {_RETRIES} retries included: {reason}"
        ) from error


def _join(ray: Any, compute: ComputeConfig) -> None:  # noqa: ANN401 (a module)
    here: dict[str, Any] = {}
    if not compute.address:
        here = {
            "num_cpus": compute.workers or None,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    host, colon, port = compute.address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray itself asks for many minutes
            socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
        ray.init(
            address=compute.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **here,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"compute.address: {compute.address!r}: no Ray cluster there: {reason}") from error
