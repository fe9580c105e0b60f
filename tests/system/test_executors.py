from __future__ import annotations

import time

import pytest

from mme.system.executors import open_process_pool
from tests.worker_tasks import WorkerTask, run_task


@pytest.mark.timeout(60)
def test_an_interrupt_ends_the_calls_that_have_begun() -> None:
    with pytest.raises(KeyboardInterrupt), open_process_pool(1, run_task.__module__) as pool:
        calls = [pool.submit(run_task, WorkerTask(number, "hang")) for number in range(3)]
        while not calls[0].running():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert all(call.done() for call in calls)


def test_an_error_waits_for_the_calls_that_have_begun() -> None:
    with pytest.raises(LookupError), open_process_pool(1, run_task.__module__) as pool:
        call = pool.submit(run_task, WorkerTask(7, "work"))
        while not call.running():
            time.sleep(0.01)
        raise LookupError
    assert call.result()[0] == 7
