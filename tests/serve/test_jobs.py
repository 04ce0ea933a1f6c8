"""The queue of a server, with a worker that does not start again."""

from __future__ import annotations

import time

from labelwise.errors import CheckpointError
from labelwise.serve.audit import open_audit
from labelwise.serve.jobs import Jobs
from labelwise.serve.limits import Limits


class Gone:
    """A worker that has died, and whose models are gone."""

    def is_alive(self):
        return False

    def start(self):
        raise CheckpointError("not a model")

    def kill(self):
        pass


def test_a_worker_whose_models_are_gone_fails_each_job_and_not_the_queue(tmp_path):
    model = {"name": "heart", "id": "1"}
    with open_audit(tmp_path / "audit.jsonl") as log:
        jobs = Jobs(tmp_path, Gone(), [model], Limits(), log)
        try:
            for _ in range(2):
                job = jobs.arrive()
                jobs.submit(job, model)
                while not job.is_over:
                    assert jobs._thread.is_alive()
                    time.sleep(0.01)
                assert (job.state, job.error["error"], job.error["what"]) == (
                    "failed", "CheckpointError", "not a model",
                )  # fmt: skip
        finally:
            jobs.close()
