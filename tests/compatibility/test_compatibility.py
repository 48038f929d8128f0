"""Every row of the table in every mode: one process' weights, or refused before the first step in words."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.compatibility.rows import ROWS
from tests.compatibility.runner import Hosts, Ran, Weights
from tests.compatibility.table import MODES, Row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    it = Hosts()
    yield it
    it.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_script_means_the_same(hosts: Hosts, row: Row, mode: str, tmp_path: Path) -> None:
    ran = hosts.together(row, mode, tmp_path)
    if mode in row.refused:
        assert ran.errors
        assert re.search(row.refused[mode], ran.errors[0]), ran.errors
        return
    assert not ran.errors, ran.errors
    check_workers(row, mode, ran)
    alone = hosts.alone(row, tmp_path)
    assert not alone.errors, alone.errors
    if row.same(mode):
        differs(alone.of_workers[0], ran.of_workers[0], row)
        expected = alone.answers[0]["result"]
        assert ran.answers[0]["result"] == (expected if expected is None else pytest.approx(expected, rel=1e-5))


def check_workers(row: Row, mode: str, ran: Ran) -> None:
    """No run in which workers end with different weights says Succeeded, and what is saved is what they have."""
    if row.alike and mode != "Asynchronous":
        for model, other in zip(*ran.of_workers, strict=True):
            assert [k for k in model if not torch.equal(model[k], other[k])] == []
    if row.saved:
        assert len(ran.saved) >= len(ran.of_workers[0])
        for found, model in zip(ran.saved, ran.of_workers[0], strict=False):
            assert [k for k in model if not torch.equal(model[k], found[k])] == []


def differs(alone: Weights, ours: Weights, row: Row) -> None:
    for expected, found in zip(alone, ours, strict=True):
        for name, tensor in expected.items():
            assert found[name].dtype is tensor.dtype
            if row.exact or not tensor.is_floating_point():
                assert torch.equal(found[name], tensor), name
            else:
                difference = (found[name].double() - tensor.double()).abs().max() if tensor.numel() else 0.0
                assert difference <= row.tolerance * max(1e-3, float(tensor.abs().max())), f"{name}: {difference}"
