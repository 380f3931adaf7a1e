"""Order of results, Ctrl-C, and lost connections."""

import asyncio
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

from darklens import executors
from darklens.errors import StoppedError
from darklens.executors import as_finished


class Interrupted(Executor):
    """Finishes tasks at once; acquiring the lock of the third future, as in a wait for several, is interrupted."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *task):
        future = Future()
        if len(self.futures) == 2:
            future._condition.acquire = self._interrupt
        future.set_result(function(*task))
        self.futures.append(future)
        return future

    def _interrupt(self, *_):
        raise KeyboardInterrupt


def test_results_arrive_as_they_finish_and_tasks_are_consumed_lazily():
    consumed = []

    def tasks():
        for i in range(50):
            consumed.append(i)
            yield (i,)

    with ThreadPoolExecutor(2) as pool:
        results = as_finished(pool, lambda i: i * i, tasks(), in_flight=4)
        assert next(results) in {i * i for i in range(4)} and len(consumed) <= 5
        assert sorted(results)[-1] == 49 * 49
    assert sorted(as_finished(None, lambda i: i * i, tasks())) == [i * i for i in range(50)]


def test_ctrl_c_while_waiting_leaves_no_lock():
    executor = Interrupted()
    assert sorted(as_finished(executor, abs, [(i,) for i in range(3)], in_flight=3)) == [0, 1, 2]
    for future in executor.futures:
        assert future._condition._lock.acquire(blocking=False)


def test_a_cancelled_task_is_a_lost_connection():
    class Lost(Executor):
        def submit(self, function, /, *task):
            future = Future()
            future.cancel()
            return future

    with pytest.raises(StoppedError, match="connection to the cluster was lost"):
        list(as_finished(Lost(), abs, [(1,)]))


class DaskFuture:
    """A finished Dask future whose state has changed since."""

    def __init__(self, status, result):
        self.status, self._value = status, result

    async def _result(self, raiseit=True):
        return self._value


def outcome(dask_future):
    """Return the future of `concurrent.futures` that the executor of Dask makes of a Dask future."""
    from distributed.cfexecutor import _cascade_future

    future = Future()
    asyncio.run(awaited(_cascade_future, dask_future, future))
    return future


async def awaited(function, *arguments):
    await function(*arguments)


@pytest.fixture
def scheduler(monkeypatch):
    """A client whose executor returns the futures that the test appends."""
    futures = []

    class Client:
        def get_executor(self, **_):
            class Prepared(Executor):
                def submit(self, function, /, *task):
                    return outcome(futures.pop())

            return Prepared()

        def close(self, timeout=None):
            pass

    monkeypatch.setattr(executors, "_connect", lambda address: Client())
    return futures


def tasks_on_a_cluster():
    with executors.cluster("tcp://host:8786") as executor:
        return list(as_finished(executor, abs, [(1,)]))


@pytest.mark.parametrize("result", [(3, "shard"), 7, ("a", "b", "c")])
def test_a_connection_lost_between_result_and_state_is_not_an_error_of_the_task(scheduler, result):
    scheduler.append(DaskFuture("lost", result))
    with pytest.raises(StoppedError, match="connection to the cluster at tcp://host:8786 was lost"):
        tasks_on_a_cluster()
    scheduler.append(DaskFuture("finished", result))
    assert tasks_on_a_cluster() == [result]


def test_an_error_of_a_task_is_raised_unchanged(scheduler):
    def fail():
        raise ValueError("not enough values to unpack")

    try:
        fail()
    except ValueError as error:
        scheduler.append(DaskFuture("error", (type(error), error, error.__traceback__)))
    with pytest.raises(ValueError, match="not enough values"):
        tasks_on_a_cluster()
