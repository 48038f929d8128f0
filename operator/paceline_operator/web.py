"""/healthz for the kubelet and /metrics for Prometheus."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from paceline_operator.health import Health


async def serve(address: str, registry: CollectorRegistry, health: Health) -> web.AppRunner:
    """Serve on `host:port` until `cleanup()` of what this gives."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=200 if health.problem is None else 500, text=f"{health.problem or 'ok'}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = address.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    return runner
