"""Where jobs run, and what becomes of those that fail."""

from __future__ import annotations

import errno
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from labelwise.engine import InThisProcess, Outcome, available_cpus, executor, run_jobs
from labelwise.errors import ConfigError, DataError, LabelwiseError, ResourceError, naming


def halve(number: int) -> float:
    """Fails in every way a job can."""
    if number < 0:
        raise DataError("negative", case=str(number))
    if number == 99:
        raise PermissionError(errno.EACCES, "Permission denied", "scan.nii")
    if number == 98:
        raise ZeroDivisionError
    return number / 2


def process_of(number: int) -> int:
    return os.getpid()


def fail_or_name(number: int, end: bool) -> int:
    if end and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_failures_are_outcomes_and_the_rest_goes_on():
    found = {outcome.item: outcome for outcome in run_jobs(halve, [1, -1, 99, 2], workers=1)}
    assert found[1] == Outcome(1, result=0.5)
    assert found[2].result == 1.0
    assert isinstance(found[-1].error, DataError)
    assert isinstance(found[99].error, ResourceError)
    assert "PermissionError: Permission denied" in str(found[99].error)
    assert found[99].error.file == "scan.nii"


def test_a_defect_of_the_program_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(halve, [98], workers=1))


def test_no_items_need_no_engine():
    assert list(run_jobs(halve, [], engine="no engine at all")) == []


def test_one_worker_works_here_and_one_item_at_a_time():
    outcomes = run_jobs(process_of, [1, 2, 3], workers=1)
    assert next(outcomes).result == os.getpid()
    with executor(workers=1) as pool:
        assert isinstance(pool, InThisProcess)


def test_two_workers_are_two_other_processes_and_a_dead_one_is_explained():
    found = {
        outcome.item: outcome.result
        for outcome in run_jobs(partial(fail_or_name, end=False), [0, 1], workers=2)
    }
    assert set(found) == {0, 1}
    assert os.getpid() not in found.values()
    with pytest.raises(ResourceError, match="a worker process has died") as caught:
        list(run_jobs(partial(fail_or_name, end=True), [0, 1], workers=2))
    assert "__main__" in str(caught.value)


def test_dask_without_its_package_names_the_extra(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("labelwise.engine.importlib.import_module", missing)
    with pytest.raises(ResourceError, match=r"labelwise\[cluster\]"):
        list(run_jobs(halve, [1], engine="dask://localhost:8786"))


def test_dask_hands_jobs_to_the_cluster(monkeypatch):
    class Client:
        def __init__(self, address: str):
            assert address == "tcp://host:8786"

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            return None

        def get_executor(self):
            return InThisProcess()

    monkeypatch.setattr(
        "labelwise.engine.importlib.import_module", lambda name: type("M", (), {"Client": Client})
    )
    assert [outcome.result for outcome in run_jobs(halve, [4], engine="dask://host:8786")] == [2.0]


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="unknown engine 'slurm'"):
        list(run_jobs(halve, [1], engine="slurm"))


def test_cpus_are_counted():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


# errors


def test_an_error_gets_the_name_of_its_case_once():
    with (
        pytest.raises(ConfigError, match="case 'a': wrong") as caught,
        naming("b", "b.nii"),
        naming("a", "a.nii"),
    ):
        raise ConfigError("wrong", found=1, expected=2, do="mend it")
    error = caught.value
    assert (error.case, error.file, error.found, error.expected, error.do) == ("a", "a.nii", 1, 2, "mend it")


def test_an_error_keeps_the_file_it_names():
    with pytest.raises(LabelwiseError) as caught, naming("a", "a.nii"):
        raise DataError("wrong", file="mask.nii")
    assert caught.value.file == "mask.nii"


# interruption


def wait_for_the_end(number: int, folder: Path) -> int:
    (folder / str(number)).touch()
    while number and not (folder / "ended").exists():
        time.sleep(0.01)
    return number


def test_what_has_not_begun_when_the_user_interrupts_is_not_done(tmp_path, monkeypatch):
    shutdown = ProcessPoolExecutor.shutdown

    def watched(pool, wait=True, *, cancel_futures=False):
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        (tmp_path / "ended").touch()  # from here on jobs end: what is not cancelled now would be done
        shutdown(pool, wait=wait)

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", watched)
    outcomes = run_jobs(partial(wait_for_the_end, folder=tmp_path), list(range(40)), workers=2)
    assert next(outcomes).item == 0  # the only one that ends by itself
    outcomes.close()  # as an exception in the loop over the outcomes does
    assert (
        len(list(tmp_path.iterdir())) < 10
    )  # two jobs at work, one handed over, and one for each that ended


def is_deaf_to_ctrl_c(number: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_ctrl_c_is_the_business_of_the_first_process_alone():
    assert [outcome.result for outcome in run_jobs(is_deaf_to_ctrl_c, [0, 1], workers=2)] == [True, True]


def hoard(number: int) -> None:
    raise MemoryError("Unable to allocate 9 TiB")


def test_an_item_that_needs_too_much_memory_is_an_outcome():
    (outcome,) = run_jobs(hoard, [1], workers=1)
    assert isinstance(outcome.error, ResourceError)
    assert "memory ran out: Unable to allocate 9 TiB" in str(outcome.error)
