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
from tests.worker_tasks import CPU_WORK_S, WorkerTask, run_task


@pytest.fixture(autouse=True)
def _no_process_is_left_over() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_tasks_and_results_of_reused_processes() -> None:
    tasks = [WorkerTask(number) for number in range(30)]
    results = dict(run_with_deadline(run_task, tasks, num_workers=2, deadline_s=60))
    assert set(results) == set(tasks)
    pids = set()
    for task, result in results.items():
        assert not isinstance(result, WorkerFailure)
        assert result[0] == task.number
        pids.add(result[1])
    assert 1 <= len(pids) <= 2


def test_hanging_task_is_killed_and_others_finish() -> None:
    tasks = [WorkerTask(0, "hang"), *(WorkerTask(number) for number in range(1, 6)), WorkerTask(6, "hang")]
    begin = time.monotonic()
    results = dict(run_with_deadline(run_task, tasks, num_workers=1, deadline_s=0.5))
    assert time.monotonic() - begin < 60
    assert [task.number for task, result in results.items() if isinstance(result, WorkerFailure)] == [0, 6]
    assert results[WorkerTask(0, "hang")] == WorkerFailure("timed-out", "killed after 0.5 s")
    assert len(results) == 7


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux reports how long a process waited")
def test_waiting_for_a_processor_does_not_count_towards_the_deadline() -> None:
    # Ordinary scheduling: a machine may start tests with real-time priority, under which nothing else would run.
    ordinary = "os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))"
    busy_loop = f"import os\n{ordinary}\nos.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})\nwhile True: pass"
    rivals = [subprocess.Popen([sys.executable, "-c", busy_loop]) for _ in range(4)]
    try:
        begin = time.monotonic()
        results = list(
            run_with_deadline(
                run_task, [WorkerTask(0), WorkerTask(1, "work")], num_workers=1, deadline_s=1.5 * CPU_WORK_S
            )
        )
        assert time.monotonic() - begin > 1.5 * CPU_WORK_S, "there was no need to wait"
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert [result for _, result in results if isinstance(result, WorkerFailure)] == []


def test_spinning_task_is_killed() -> None:
    results = dict(run_with_deadline(run_task, [WorkerTask(0, "spin")], num_workers=1, deadline_s=CPU_WORK_S))
    assert results[WorkerTask(0, "spin")] == WorkerFailure("timed-out", f"killed after {CPU_WORK_S:g} s")


def test_crash_fails_one_task() -> None:
    results = dict(run_with_deadline(run_task, [WorkerTask(0, "crash"), WorkerTask(1)], num_workers=1, deadline_s=60))
    assert results[WorkerTask(0, "crash")] == WorkerFailure("died", "its decoder died of SIGSEGV")
    assert not isinstance(results[WorkerTask(1)], WorkerFailure)


def test_exception_in_a_task_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        list(run_with_deadline(run_task, [WorkerTask(3, "raise"), WorkerTask(4)], num_workers=1, deadline_s=60))
    assert "task 3 is wrong" in capfd.readouterr().err


def test_no_tasks() -> None:
    assert list(run_with_deadline(run_task, [], num_workers=4, deadline_s=1)) == []


def test_closing_the_results_ends_the_processes() -> None:
    results = run_with_deadline(run_task, [WorkerTask(0), WorkerTask(1, "hang")], num_workers=2, deadline_s=600)
    assert next(results)[0] == WorkerTask(0)
    results.close()  # type: ignore[attr-defined]


_WORKER = """
from mme.system.workers import WorkerFailure, call_with_deadline
from tests.worker_tasks import WorkerTask, run_task

def call(what):
    return call_with_deadline(run_task, WorkerTask(0, what), 1.0)

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


def test_call_with_deadline_reuses_one_process_that_ends_with_its_caller(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_WORKER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    assert "task 0 is wrong" in done.stderr
    process = int(done.stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
