"""Where work runs: in this process, on a pool of processes, or on a Dask cluster, all shaped like `concurrent.futures`.

A task is a function of picklable arguments. Tasks finish in any order, so they must not depend on each other.
"""

import logging
import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from darklens.errors import ConfigError, StoppedError

R = TypeVar("R")
IN_FLIGHT = 4096  # more than most clusters have cores; as small tasks, a few MB
_CONNECT_SECONDS = 6
_GO_ON = "what is finished is kept, and the same command goes on from there."
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://.+:\d+")


def usable_cores() -> int:
    """Return the number of cores this process may use, which on a shared node is fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_finished(
    executor: Executor | None,
    function: Callable[..., R],
    tasks: Iterable[tuple[Any, ...]],
    *,
    in_flight: int = IN_FLIGHT,
) -> Iterator[R]:
    """Call `function(*task)` for every task and yield the results as they come.

    Args:
        executor: Where to run; None runs each task in this process when its result is asked for.
        function: A function of a module, so that other processes can import it.
        tasks: Arguments; taken only as there is room, so they may be very many.
        in_flight: Tasks handed to the executor at a time.

    Raises:
        StoppedError: If the executor's workers are gone.
    """
    if executor is None:
        for task in tasks:
            yield function(*task)
        return
    pending: set[Future[R]] = set()
    # Not concurrent.futures.wait: it takes the locks of all pending futures, one after the other, and Ctrl-C in between
    # leaves them taken, so that the pool can never be shut down.
    done: SimpleQueue[Future[R]] = SimpleQueue()

    def next_result() -> R:
        future = done.get()
        pending.remove(future)
        return future.result()

    try:
        for task in tasks:
            if len(pending) >= in_flight:
                yield next_result()
            future = executor.submit(function, *task)
            pending.add(future)
            future.add_done_callback(done.put)
        while pending:
            yield next_result()
    except BrokenExecutor:
        raise StoppedError(f"A worker was killed, perhaps for lack of memory; {_GO_ON}") from None
    except CancelledError:
        raise StoppedError(f"The connection to the cluster was lost; {_GO_ON}") from None
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def local(workers: int) -> Iterator[Executor | None]:
    """Open a pool of processes on this machine; one worker is this process itself.

    On leaving, tasks that have begun are finished and the others are dropped.
    """
    if workers <= 1:
        yield None
        return
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """Connect to a running Dask cluster, such as tcp://host:8786.

    Raises:
        ConfigError: If the extra `cluster` is not installed, or no scheduler with workers answers at the address.
        StoppedError: If the scheduler or its workers are lost while tasks run.
    """
    try:
        import distributed
    except ImportError:
        raise ConfigError('A cluster needs Dask: pip install "darklens[cluster]".') from None
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"{address!r} is not the address of a Dask scheduler, such as tcp://host:8786.")
    # Its loggers print every lost connection with a traceback; what matters comes as an exception.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client = _connect(address)
    try:
        # Not pure: a task writes files, so a second run must not be given the first one's answer.
        yield client.get_executor(pure=False)
    except (distributed.KilledWorker, distributed.scheduler.NoWorkerError, distributed.comm.CommClosedError) as error:
        raise StoppedError(f"The cluster at {address} lost its workers ({type(error).__name__}); {_GO_ON}") from None
    except (ValueError, TypeError, AttributeError) as error:
        if not _taken_for_an_error(error):
            raise
        raise StoppedError(f"The connection to the cluster at {address} was lost; {_GO_ON}") from None
    finally:
        client.close(timeout=_CONNECT_SECONDS)


def _taken_for_an_error(error: Exception) -> bool:
    """Return whether Dask unpacked a task's result as if it were an exception.

    It looks at a task's state only after it has its result, and a connection that is lost in between changes the state.
    """
    where = traceback.extract_tb(error.__traceback__)
    return bool(where) and where[-1].name == "_cascade_future" and re.search("unpack|traceback", str(error)) is not None


def _connect(address: str) -> Any:
    try:
        client = _client(address).result(timeout=_CONNECT_SECONDS)
    except Exception as error:  # whatever listens at the address may answer anything
        raise ConfigError(
            f"No Dask scheduler answers at {address} ({' '.join(str(error).split()) or 'no answer'}); start one with "
            "`dask scheduler` or dask-jobqueue and give the address that it prints, such as tcp://host:8786."
        ) from None
    if not client.ncores():
        client.close()
        raise ConfigError(f"The cluster at {address} has no workers; start some and wait until one has joined.")
    return client


def _client(address: str) -> "Future[Any]":
    """Connect in a thread of its own: facing a server that is no scheduler, Dask's own time limit does not act."""
    import distributed

    found: Future[Any] = Future()

    def connect() -> None:
        try:
            found.set_result(distributed.Client(address, timeout=_CONNECT_SECONDS - 2, set_as_default=False))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    return found


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with(parent: Any = parent) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with, daemon=True).start()
