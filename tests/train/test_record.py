"""The log of a run: strict JSON, and readable whatever a kill or another program left in it."""

from __future__ import annotations

import json
import math

from labelwise.train.record import Record, read_log


def test_a_score_that_is_undefined_is_null_in_strict_json(tmp_path):
    Record(tmp_path / "log.jsonl").write("validation", 5, score=math.nan)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    event = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert event["score"] is None


def test_what_is_no_event_is_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1, "event": "train"}\n7\n{"other": 1}\n\xff\xfe\n{"step": 2, "ev')
    assert [event["step"] for event in read_log(log)] == [1]
    Record(log, keep_until=(0, 1))
    assert [event["step"] for event in read_log(log)] == [1]
