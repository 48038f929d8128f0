"""The HTTP pages of the operator: /healthz for the kubelet and /metrics for Prometheus."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.observability.metrics import Metrics


async def serve(address: str, metrics: Metrics, health: Health) -> web.AppRunner:
    """Serve on `host:port` until `cleanup()` of what this gives; without a host, on every address of IPv4 and IPv6."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=200 if health.problem is None else 500, text=f"{health.problem or 'ok'}\n")

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", scrape)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    return runner
