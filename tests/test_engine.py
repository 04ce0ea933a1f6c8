"""Where jobs run, and what becomes of those that fail."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from math import ceil, inf
from pathlib import Path
from types import SimpleNamespace

import pytest

import labelwise
from labelwise import engine
from labelwise.engine import (
    InThisProcess,
    OnSlurm,
    Outcome,
    _Again,
    available_cpus,
    executor,
    own_code,
    run_jobs,
)
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
        def __init__(self, address: str, timeout: int):
            assert address == "tcp://host:8786"

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            return None

        def get_executor(self):
            return InThisProcess()

        def run(self, question, on_error):
            return {"tcp://worker": question()}

        def run_on_scheduler(self, question):
            return question()

    monkeypatch.setattr(
        "labelwise.engine.importlib.import_module", lambda name: type("M", (), {"Client": Client})
    )
    assert [outcome.result for outcome in run_jobs(halve, [4], engine="dask://host:8786")] == [2.0]


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="unknown engine 'slurn'"):
        list(run_jobs(halve, [1], engine="slurn"))
    with pytest.raises(ConfigError, match="unknown engine 'slurm:here'"):
        list(run_jobs(halve, [1], engine="slurm:here"))


def test_cpus_are_counted():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


GROUPS = {
    "none": ({}, inf),
    "container of version 2": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    "no limit": ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "max 100000"}, inf),
    "the group above is limited": (
        {
            "proc/self/cgroup": "0::/slice/job",
            "sys/fs/cgroup/slice/job/cpu.max": "400000 100000",
            "sys/fs/cgroup/slice/cpu.max": "200000 100000",
        },
        2.0,
    ),
    "container of version 1, whose group is the root": (
        {
            "proc/self/cgroup": "5:memory:/docker/7\n4:cpu,cpuacct:/docker/7\n0::/",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        0.5,
    ),
    "no limit in version 1": (
        {
            "proc/self/cgroup": "4:cpu:/job",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
        },
        inf,
    ),
}


@pytest.mark.parametrize(("files", "expected"), GROUPS.values(), ids=GROUPS)
def test_a_container_allows_as_many_cpus_as_its_control_groups_say(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    assert engine._allowed_cpus(tmp_path) == expected
    monkeypatch.setattr(engine, "_allowed_cpus", lambda: expected)
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available_cpus() == min(64, max(1, ceil(expected) if expected < inf else 64))


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


# clusters and processes that die


class Cluster:
    """Stands in for the client of Dask: what its workers do is what a test says."""

    def __init__(self, execute, workers=1, answer=None, of_scheduler=None):
        self.execute, self.workers, self.answer, self.of_scheduler = execute, workers, answer, of_scheduler

    def __call__(self, address, timeout):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        return None

    def get_executor(self):
        return self

    def submit(self, function, item):
        future = Future()
        self.execute(future, function, item)
        return future

    def scheduler_info(self):
        return {"workers": {str(number): {} for number in range(self.workers)}}

    def run(self, question, on_error):
        return {"tcp://worker": self.answer(question) if self.answer else question()}

    def run_on_scheduler(self, question):
        return self.of_scheduler(question) if self.of_scheduler else question()


def on(monkeypatch, cluster):
    monkeypatch.setattr(
        "labelwise.engine.importlib.import_module", lambda name: type("M", (), {"Client": cluster})
    )


@pytest.mark.parametrize("name", ["KilledWorker", "CancelledError", "CommClosedError"])
def test_an_item_over_which_workers_die_is_an_outcome_and_the_others_go_on(monkeypatch, name):
    def execute(future, function, item):
        error = type(name, (Exception,), {})("attempted 4 times")
        future.set_exception(error) if item == 2 else future.set_result(function(item))

    on(monkeypatch, Cluster(execute))
    found = {outcome.item: outcome for outcome in run_jobs(halve, [1, 2, 3], engine="dask://host:1")}
    assert (found[1].result, found[3].result) == (0.5, 1.5)
    assert isinstance(found[2].error, ResourceError)
    assert "memory-limit" in str(found[2].error)


def test_without_a_worker_the_command_says_that_it_waits(monkeypatch, caplog):
    monkeypatch.setattr("labelwise.engine._SCHEDULER_SECONDS", 0.01)
    kept = []
    cluster = Cluster(lambda *arguments: kept.append(arguments), workers=0)
    on(monkeypatch, cluster)

    class Worker(logging.Handler):
        """Comes when it is called."""

        def emit(self, record):
            cluster.workers = 1
            for future, function, item in kept:
                if not future.done():
                    future.set_result(function(item))

    logger, worker = logging.getLogger("labelwise"), Worker()
    logger.addHandler(worker)
    try:
        with caplog.at_level("WARNING", logger="labelwise"):
            assert [outcome.result for outcome in run_jobs(halve, [4], engine="dask://host:1")] == [2.0]
    finally:
        logger.removeHandler(worker)
    assert "no worker is connected" in caplog.text


@pytest.mark.parametrize("error", [OSError("timed out"), TimeoutError(), ValueError("bad address")])
def test_a_missing_scheduler_is_told_with_its_address(monkeypatch, error):
    def refuse(address, timeout):
        raise error

    on(monkeypatch, refuse)
    with pytest.raises(ResourceError, match="no Dask scheduler") as caught:
        list(run_jobs(halve, [1], engine="dask://host:8786"))
    assert "tcp://host:8786" in str(caught.value)


def without(folder):
    """An answer of a worker for which `folder` is not there."""

    def answer(question):
        folder.rmdir()
        return question()

    return answer


def test_a_worker_that_does_not_see_the_shared_folder_is_refused(monkeypatch, tmp_path):
    on(monkeypatch, Cluster(None, answer=without(tmp_path / "shared")))
    with pytest.raises(ResourceError, match="does not see a folder") as caught:
        list(run_jobs(halve, [1], engine="dask://host:1", shared=[tmp_path / "shared"]))
    assert "tcp://worker" in str(caught.value)
    assert str(tmp_path / "shared") in str(caught.value)


def as_other_code(question):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "own_code", lambda: "labelwise 0.0.9 (source 12345678)")
        return question()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (as_other_code, "labelwise 0.0.9 (source 12345678)"),
        (lambda question: Exception("No module named 'labelwise'"), "No module named 'labelwise'"),
        (lambda question: Exception("Can't get attribute '_Alike'"), "Can't get attribute"),
    ],
    ids=["other source", "no labelwise", "an older labelwise"],
)
def test_a_worker_that_runs_other_code_is_refused_before_the_first_job(monkeypatch, answer, found):
    on(monkeypatch, Cluster(None, answer=answer))
    with pytest.raises(ResourceError, match="runs other code") as caught:
        list(run_jobs(halve, [1], engine="dask://host:1"))
    message = str(caught.value)
    assert found in message
    assert own_code() in message
    assert "tcp://worker" in message


def has_no_labelwise(question):
    raise Exception("No module named 'labelwise'")


def test_a_scheduler_that_could_not_unpack_the_jobs_is_refused(monkeypatch):
    on(monkeypatch, Cluster(None, of_scheduler=has_no_labelwise))
    with pytest.raises(ResourceError, match="runs other code") as caught:
        list(run_jobs(halve, [1], engine="dask://host:1"))
    assert "the scheduler: No module named 'labelwise'" in str(caught.value)


def test_a_worker_that_comes_later_and_runs_other_code_refuses_its_job(monkeypatch):
    def execute(future, function, item):
        try:
            future.set_result(as_other_code(lambda: function(item)) if item == 2 else function(item))
        except ResourceError as error:
            future.set_exception(error)

    on(monkeypatch, Cluster(execute))
    found = {outcome.item: outcome for outcome in run_jobs(halve, [1, 2], engine="dask://host:1")}
    assert found[1].result == 0.5
    assert "labelwise 0.0.9" in str(found[2].error)


def test_what_a_process_runs_is_known_by_its_source(tmp_path):
    """A copy is the same code, wherever it lies and however its lines end; a changed line makes it another one."""
    package = Path(labelwise.__file__).parent
    ask = [sys.executable, "-c", "from labelwise.engine import own_code; print(own_code())"]
    told = []
    for name in ("copy", "changed"):
        for file in package.rglob("*.py*"):
            if file.suffix in (".py", ".pyi"):
                there = tmp_path / name / "labelwise" / file.relative_to(package)
                there.parent.mkdir(parents=True, exist_ok=True)
                text = file.read_bytes().replace(b"\n", b"\r\n")
                there.write_bytes(
                    text + (b"# changed\r\n" if name == "changed" and file.name == "lock.py" else b"")
                )
        told.append(
            subprocess.run(
                ask, env=os.environ | {"PYTHONPATH": str(tmp_path / name)}, capture_output=True, text=True
            ).stdout.strip()
        )
    assert told[0] == own_code()
    assert told[1].startswith(f"labelwise {labelwise.__version__} (source ")
    assert told[1] != own_code()


PARENT = """
import os, sys, time
from labelwise.engine import executor

def tell(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(3600)

if __name__ == "__main__":
    with executor(workers=2) as pool:
        jobs = [pool.submit(tell, sys.argv[1]) for _ in range(2)]
        jobs[0].result()
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_workers_end_with_the_process_that_started_them_however_it_ends(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "told").mkdir()
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path / "told"])
    while len(list((tmp_path / "told").iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for process in (int(file.name) for file in (tmp_path / "told").iterdir()):
        while (
            Path(f"/proc/{process}").exists()
            and "(zombie)" not in Path(f"/proc/{process}/status").read_text()
        ):
            time.sleep(0.05)  # for ever, if they stay


# jobs of SLURM, in processes of this machine


def halve_far(number: int) -> float:
    if number == 97:
        os._exit(3)
    return halve(number)


def test_jobs_of_slurm_hand_back_results_and_errors_as_they_are(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    items = [4, -1, 99, 97]
    found = {o.item: o for o in run_jobs(halve_far, items, engine="slurm:local", shared=[tmp_path])}
    assert found[4].result == 2.0
    assert isinstance(found[-1].error, DataError)
    assert isinstance(found[99].error, ResourceError)
    assert "died over this item" in str(found[97].error)
    assert (tmp_path / "slurm").is_dir()


def test_slurm_without_its_package_or_with_unknown_settings_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="submitit refuses"):
        list(run_jobs(halve, [1], engine="slurm:local", shared=[tmp_path], slurm={"partitoin": "gpu"}))

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("labelwise.engine.importlib.import_module", missing)
    with pytest.raises(ResourceError, match=r"labelwise\[slurm\]"):
        list(run_jobs(halve, [1], engine="slurm"))


def test_a_job_of_slurm_that_ran_out_of_time_is_submitted_again():
    submitted = _Again(halve).checkpoint(4)
    assert submitted.function(*submitted.args) == (2.0, None)


class Ranks:
    """A job of two tasks that is done."""

    job_id, paths = "8", SimpleNamespace(folder=Path("logs"))

    def __init__(self, *answers):
        self.answers = answers

    def done(self):
        return True

    def results(self):
        return list(self.answers)


def test_of_several_tasks_an_error_counts():
    answers = [(1, None), (2, None)]
    one = OnSlurm(SimpleNamespace(submit=lambda *_: Ranks(*answers)), seconds=0.001)
    assert one.submit(halve, 4).result(timeout=60) == 1
    lost = OnSlurm(
        SimpleNamespace(submit=lambda *_: Ranks((1, None), (None, OSError("lost")))), seconds=0.001
    )
    with pytest.raises(OSError, match="lost"):
        lost.submit(halve, 4).result(timeout=60)


class Vanished:
    """A job that SLURM has forgotten, where no accounting says how it ended."""

    job_id, state = "7", "UNKNOWN"
    paths = SimpleNamespace(stderr=Path("7_0_log.err"), folder=Path("logs"))

    def done(self):
        return False


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        (
            {"returncode": 1, "stdout": b"", "stderr": b"slurm_load_jobs error: Invalid job id specified"},
            True,
        ),
        ({"returncode": 0, "stdout": b"", "stderr": b""}, True),
        ({"returncode": 0, "stdout": b" 7 all RUNNING", "stderr": b""}, False),
        ({"returncode": 1, "stdout": b"", "stderr": b"Unable to contact slurm controller"}, False),
    ],
)
def test_a_job_that_slurm_no_longer_knows_is_an_error_and_not_waited_for_for_ever(monkeypatch, said, gone):
    monkeypatch.setattr("labelwise.engine.subprocess.run", lambda *_, **__: SimpleNamespace(**said))
    jobs = OnSlurm(SimpleNamespace(submit=lambda *_: Vanished()), seconds=0.001)
    if gone:
        with pytest.raises(ResourceError, match="ended without a result") as lost:
            jobs.submit(halve, 4).result(timeout=60)
        assert "7_0_log.err" in str(lost.value)
    else:
        assert not any(jobs._is_gone(Vanished()) for _ in range(100))
