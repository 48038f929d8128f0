"""Last of all: what the operator did in all these tests is exactly what it may do."""

import os

import pytest

from tests.charts.test_chart import render
from tests.cluster import audit
from tests.cluster.conftest import OWN

pytestmark = [pytest.mark.slow]
ACCOUNT = "system:serviceaccount:paceline-system:paceline"


def test_no_right_is_missing_and_none_is_unused(cluster: None) -> None:
    if not OWN:
        pytest.skip("reads the audit log of the tests' own cluster")
    used, forbidden = audit.asked(ACCOUNT, render())
    meant = ("PriorityClass with name", "because it is being terminated")  # refused whatever the rights are
    missing = [m for m in forbidden if not any(words in m for words in meant)]
    assert missing == []
    rights = audit.granted(render())
    if ("", "events", "list") not in used and "CI" not in os.environ:
        pytest.skip("only after all other tests of the cluster, which use every right")
    assert used - rights == set()
    assert rights - used == set()
