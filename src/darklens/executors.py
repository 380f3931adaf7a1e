"""Executors with the interface of `concurrent.futures`: this process, a pool of processes, or a Dask cluster.

A task is a function call with picklable arguments. Tasks finish in any order and must not depend on each other.
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
IN_FLIGHT = 4096  # more than the cores of most clusters; a few MB of small tasks
_CONNECT_TIMEOUT = 6  # s
_CONTINUE = "finished work is kept; repeat the command to continue."
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://.+:\d+")


def usable_cores() -> int:
    """Return the number of cores that this process may use; on a shared node it is less than that of the machine."""
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
    """Call `function(*task)` for each task and yield the results in the order of completion.

    Args:
        executor: Executor of the tasks; None runs each task in this process when its result is requested.
        function: Function defined at module level, so that other processes can import it.
        tasks: Arguments of each call. They are consumed lazily, so there may be very many.
        in_flight: Largest number of submitted tasks.

    Raises:
        StoppedError: If the workers of the executor are lost.
    """
    if executor is None:
        for task in tasks:
            yield function(*task)
        return
    pending: set[Future[R]] = set()
    # Not concurrent.futures.wait: it acquires the locks of all pending futures one by one. Ctrl-C in between would
    # leave them locked, and the pool could never shut down.
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
        raise StoppedError(f"A worker was killed, perhaps because it ran out of memory; {_CONTINUE}") from None
    except CancelledError:
        raise StoppedError(f"The connection to the cluster was lost; {_CONTINUE}") from None
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def local(workers: int) -> Iterator[Executor | None]:
    """Open a pool of processes on this machine, or yield None for one worker, which is this process.

    On exit, running tasks finish and pending ones are dropped.
    """
    if workers <= 1:
        yield None
        return
    # spawn, because the threads of torch do not survive a fork
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
        ConfigError: If the extra `cluster` is not installed, or no scheduler with workers responds at the address.
        StoppedError: If the scheduler or its workers are lost while tasks are running.
    """
    try:
        import distributed
    except ImportError:
        raise ConfigError('A cluster needs Dask: pip install "darklens[cluster]".') from None
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"{address!r} is not the address of a Dask scheduler, such as tcp://host:8786.")
    # The loggers of Dask print a traceback for each lost connection; the exceptions are sufficient.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    client = _connect(address)
    try:
        # Tasks write files, so they are not pure: Dask must not return the result of an earlier run.
        yield client.get_executor(pure=False)
    except (distributed.KilledWorker, distributed.scheduler.NoWorkerError, distributed.comm.CommClosedError) as error:
        raise StoppedError(f"The cluster at {address} lost its workers ({type(error).__name__}); {_CONTINUE}") from None
    except (ValueError, TypeError, AttributeError) as error:
        if not _is_result_taken_for_error(error):
            raise
        raise StoppedError(f"The connection to the cluster at {address} was lost; {_CONTINUE}") from None
    finally:
        client.close(timeout=_CONNECT_TIMEOUT)


def _is_result_taken_for_error(error: Exception) -> bool:
    """Return whether Dask unpacked the result of a task as if it were an exception.

    Dask reads the state of a task after its result, and a connection lost in between changes the state.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return (
        bool(frames) and frames[-1].name == "_cascade_future" and re.search("unpack|traceback", str(error)) is not None
    )


def _connect(address: str) -> Any:
    try:
        client = _client(address).result(timeout=_CONNECT_TIMEOUT)
    except Exception as error:  # another server at the address may respond with anything
        raise ConfigError(
            f"No Dask scheduler responds at {address} ({' '.join(str(error).split()) or 'no response'}); start one "
            "with `dask scheduler` or dask-jobqueue and give the address that it prints, such as tcp://host:8786."
        ) from None
    if not client.ncores():
        client.close()
        raise ConfigError(f"The cluster at {address} has no workers; start some and wait until they have joined.")
    return client


def _client(address: str) -> "Future[Any]":
    """Connect in a separate thread: the timeout of Dask has no effect if the server is not a scheduler."""
    import distributed

    client: Future[Any] = Future()

    def connect() -> None:
        try:
            client.set_result(distributed.Client(address, timeout=_CONNECT_TIMEOUT - 2, set_as_default=False))
        except Exception as error:
            client.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    return client


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with(parent: Any = parent) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with, daemon=True).start()
