"""The operator's HTTP pages, and those of trainings that it polls, on IPv4 and IPv6."""

import asyncio
import socket

import aiohttp
import pytest
from kubernetes.aio import client

from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.observability import http_pages
from paceline_operator.observability.metrics import Metrics
from tests.operator.api import Api, Operator, answer, run, running


def test_the_operator_serves_on_ipv4_and_ipv6() -> None:
    async def main() -> list[int]:
        metrics = Metrics()
        runner = await http_pages.serve(":0", metrics, Health(metrics))
        try:
            async with aiohttp.ClientSession() as session:
                places = [f"[{a[0]}]:{a[1]}" if ":" in a[0] else f"{a[0]}:{a[1]}" for a in runner.addresses]
                return [(await session.get(f"http://{place}/healthz")).status for place in places]
        finally:
            await runner.cleanup()

    assert asyncio.run(main()) == [200] * (2 if socket.has_dualstack_ipv6() else 1)


def test_a_training_is_asked_at_its_address_of_ipv6() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")

    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        server = api.pods["digits-ps-0"]
        server["status"]["podIP"] = "::1"
        api.answer = answer(20)
        await operator.reconcile(1)
        await operator.poll_until_step(20)

    run(test)
