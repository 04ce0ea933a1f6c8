"""The public surface is small, and adding to it is a visible decision."""

from __future__ import annotations

from pathlib import Path

import labelwise
from labelwise import run

HERE = Path(__file__).parent


def test_public_names():
    names = [*labelwise.__all__, *(f"run.{name}" for name in run.__all__)]
    assert names == (HERE / "public_names.txt").read_text().split()


def test_every_public_name_can_be_imported():
    for name in labelwise.__all__:
        assert getattr(labelwise, name) is not None
    for name in run.__all__:
        assert callable(getattr(run, name))
