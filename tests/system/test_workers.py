from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme.system.workers import WorkerFailure, run_with_deadline
from tests.worker_tasks import TOIL_S, Order, obey


@pytest.fixture(autouse=True)
def _no_process_is_left_over() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_every_task_comes_back_with_its_result_from_few_processes() -> None:
    orders = [Order(number) for number in range(30)]
    results = dict(run_with_deadline(obey, orders, num_workers=2, deadline_s=60))
    assert set(results) == set(orders)
    pids = set()
    for order, result in results.items():
        assert not isinstance(result, WorkerFailure)
        assert result[0] == order.number
        pids.add(result[1])
    assert 1 <= len(pids) <= 2


def test_a_task_that_hangs_is_killed_and_the_others_are_done() -> None:
    orders = [Order(0, "hang"), *(Order(number) for number in range(1, 6)), Order(6, "hang")]
    begin = time.monotonic()
    results = dict(run_with_deadline(obey, orders, num_workers=1, deadline_s=0.5))
    assert time.monotonic() - begin < 60
    assert [order.number for order, result in results.items() if isinstance(result, WorkerFailure)] == [0, 6]
    assert results[Order(0, "hang")] == WorkerFailure("timed-out", "killed after 0.5 s")
    assert len(results) == 7


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux tells how long a process waited")
def test_waiting_for_a_processor_does_not_count() -> None:
    toiler = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    rivals = [subprocess.Popen([sys.executable, "-c", toiler]) for _ in range(4)]
    try:
        begin = time.monotonic()
        results = list(run_with_deadline(obey, [Order(0), Order(1, "toil")], num_workers=1, deadline_s=1.5 * TOIL_S))
        assert time.monotonic() - begin > 1.5 * TOIL_S, "there was no need to wait"
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert [result for _, result in results if isinstance(result, WorkerFailure)] == []


def test_a_task_that_spins_is_killed_as_well() -> None:
    results = dict(run_with_deadline(obey, [Order(0, "spin")], num_workers=1, deadline_s=TOIL_S))
    assert results[Order(0, "spin")] == WorkerFailure("timed-out", f"killed after {TOIL_S:g} s")


def test_a_crash_costs_one_task() -> None:
    results = dict(run_with_deadline(obey, [Order(0, "crash"), Order(1)], num_workers=1, deadline_s=60))
    assert results[Order(0, "crash")] == WorkerFailure("died", "its decoder died of SIGSEGV")
    assert not isinstance(results[Order(1)], WorkerFailure)


def test_an_exception_is_an_error_of_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        list(run_with_deadline(obey, [Order(3, "raise"), Order(4)], num_workers=1, deadline_s=60))
    assert "order 3 is wrong" in capfd.readouterr().err


def test_no_task_needs_no_process() -> None:
    assert list(run_with_deadline(obey, [], num_workers=4, deadline_s=1)) == []


def test_who_stops_listening_ends_the_processes() -> None:
    results = run_with_deadline(obey, [Order(0), Order(1, "hang")], num_workers=2, deadline_s=600)
    assert next(results)[0] == Order(0)
    results.close()  # type: ignore[attr-defined]


_WORKER = """
from mme.system.workers import WorkerFailure, call_with_deadline
from tests.worker_tasks import Order, obey

def call(what):
    return call_with_deadline(obey, Order(0, what), 1.0)

if __name__ == "__main__":
    first, second = call("answer"), call("answer")
    assert first == second, "the process is used again"
    assert call("hang") == WorkerFailure("timed-out", "killed after 1 s")
    assert call("crash") == WorkerFailure("died", "its decoder died of SIGSEGV")
    third = call("answer")
    assert third[1] != first[1]
    try:
        call("raise")
    except RuntimeError:
        assert call("answer")[1] not in {first[1], third[1]}
        print(call("answer")[1])
"""


def test_a_caller_that_is_a_worker_keeps_one_process_which_ends_with_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_WORKER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    assert "order 0 is wrong" in done.stderr
    process = int(done.stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
