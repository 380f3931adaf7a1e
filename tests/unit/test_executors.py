"""Results as they come, and what Ctrl-C leaves of an executor."""

import asyncio
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

from darklens import executors
from darklens.errors import StoppedError
from darklens.executors import as_finished


class Interrupted(Executor):
    """Answers each task at once; whoever waits by taking the locks of several futures is interrupted at the third."""

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


def test_results_come_as_they_are_finished_and_tasks_are_taken_as_there_is_room():
    taken = []

    def tasks():
        for i in range(50):
            taken.append(i)
            yield (i,)

    with ThreadPoolExecutor(2) as pool:
        results = as_finished(pool, lambda i: i * i, tasks(), in_flight=4)
        assert next(results) in {i * i for i in range(4)} and len(taken) <= 5
        assert sorted(results)[-1] == 49 * 49
    assert sorted(as_finished(None, lambda i: i * i, tasks())) == [i * i for i in range(50)]


def test_waiting_takes_no_lock_that_ctrl_c_could_leave_taken():
    executor = Interrupted()
    assert sorted(as_finished(executor, abs, [(i,) for i in range(3)], in_flight=3)) == [0, 1, 2]
    for future in executor.futures:
        assert future._condition._lock.acquire(blocking=False)


def test_a_task_that_was_cancelled_is_a_lost_connection():
    class Lost(Executor):
        def submit(self, function, /, *task):
            future = Future()
            future.cancel()
            return future

    with pytest.raises(StoppedError, match="connection to the cluster was lost"):
        list(as_finished(Lost(), abs, [(1,)]))


class Answer:
    """A Dask future with a result that is in, and a state that has changed since."""

    def __init__(self, status, result):
        self.status, self._given = status, result

    async def _result(self, raiseit=True):
        return self._given


def outcome(answer):
    """What Dask's executor makes of an answer, as a future of `concurrent.futures`."""
    from distributed.cfexecutor import _cascade_future

    future = Future()
    asyncio.run(awaited(_cascade_future, answer, future))
    return future


async def awaited(function, *arguments):
    await function(*arguments)


@pytest.fixture
def scheduler(monkeypatch):
    """A client of which the executor gives what the test puts in."""
    answers = []

    class Client:
        def get_executor(self, **_):
            class Given(Executor):
                def submit(self, function, /, *task):
                    return outcome(answers.pop())

            return Given()

        def close(self, timeout=None):
            pass

    monkeypatch.setattr(executors, "_connect", lambda address: Client())
    return answers


def tasks_on_a_cluster():
    with executors.cluster("tcp://host:8786") as executor:
        return list(as_finished(executor, abs, [(1,)]))


@pytest.mark.parametrize("result", [(3, "shard"), 7, ("a", "b", "c")])
def test_a_connection_lost_between_a_result_and_its_state_is_no_error_of_the_task(scheduler, result):
    scheduler.append(Answer("lost", result))
    with pytest.raises(StoppedError, match="connection to the cluster at tcp://host:8786 was lost"):
        tasks_on_a_cluster()
    scheduler.append(Answer("finished", result))
    assert tasks_on_a_cluster() == [result]


def test_an_error_of_a_task_comes_as_it_is(scheduler):
    def fail():
        raise ValueError("not enough values to unpack")

    try:
        fail()
    except ValueError as error:
        scheduler.append(Answer("error", (type(error), error, error.__traceback__)))
    with pytest.raises(ValueError, match="not enough values"):
        tasks_on_a_cluster()
