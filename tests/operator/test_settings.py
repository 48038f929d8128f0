"""The operator's settings."""

import pytest

from paceline_operator import settings


def test_settings_come_from_the_environment() -> None:
    found = settings.read({"PACELINE_OPERATOR_WATCH": "team", "PACELINE_OPERATOR_POLL_SECONDS": "2"})
    assert (found.watch, found.poll_seconds, found.leader_election) == ("team", 2.0, False)
    with pytest.raises(ValueError, match="POLL_SECONDS is 'soon', and must be a number of seconds"):
        settings.read({"PACELINE_OPERATOR_POLL_SECONDS": "soon"})
