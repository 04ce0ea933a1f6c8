"""The old place of the store says where it is now."""

from __future__ import annotations

import importlib
import sys

import pytest

from labelwise.loading.store import Store


def test_the_store_is_found_at_its_old_place_with_a_warning_that_names_the_new_one(monkeypatch):
    monkeypatch.delitem(sys.modules, "labelwise.data.cache", raising=False)
    with pytest.warns(DeprecationWarning, match=r"labelwise\.loading\.store.*version 0\.2"):
        old = importlib.import_module("labelwise.data.cache")
    assert old.Store is Store
