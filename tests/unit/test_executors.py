"""Results as they come, and what Ctrl-C leaves of an executor."""

from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest

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
