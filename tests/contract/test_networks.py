"""The contract that every registered network keeps, without being asked."""

from __future__ import annotations

import pytest

from labelwise.nets.factory import NETS, find_net
from labelwise.testing import SMALL_NETS, check_network


@pytest.mark.parametrize("name", NETS)
def test_a_network_keeps_the_contract(name):
    check_network(find_net(name), settings=SMALL_NETS[name])
