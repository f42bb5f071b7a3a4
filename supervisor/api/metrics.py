"""What the mesh has counted, for Prometheus: asked of the sidecars when somebody asks."""

from aiohttp import web

from meshrun import version
from meshrun.proxy.messages import Stats
from meshrun.supervisor import metrics
from meshrun.supervisor.api.answers import RUN, Handler
from meshrun.supervisor.metrics import InstanceMetrics
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.run import Run

__all__ = ["ROUTES"]

# Prometheus gives the whole page 10 s; a sidecar needs a millisecond.
ANSWER_TIMEOUT_S = 1.0


def _of(
    run: Run, instance: Instance, stats: Stats | None, expires_at: float | None
) -> InstanceMetrics:
    app = run.apps.get(instance.name)
    return InstanceMetrics(
        service=instance.service,
        instance=instance.name,
        ready=run.standing.is_ready(instance),
        stats=stats,
        expires_at=expires_at,
        restarts=None if app is None else app.status.restarts,
        sidecar_restarts=sum(worker.restarts for worker in run.sidecars.of(instance.name)),
    )


async def show(request: web.Request) -> web.StreamResponse:
    """Show every metric in Prometheus' text format."""
    run = request.app[RUN]
    stats = await run.control.stats(ANSWER_TIMEOUT_S)
    expiry: dict[str, float] = {}
    for worker, leaf in run.control.leaves():
        name = worker.instance.name
        expiry[name] = min(leaf.not_after, expiry.get(name, leaf.not_after))
    instances = [_of(run, i, stats[i.name], expiry.get(i.name)) for i in run.plan.instances]
    page = metrics.render(run.plan.configuration.mesh.name, version(), run.started_at, instances)
    return web.Response(body=page.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})


ROUTES: tuple[tuple[str, str, Handler], ...] = (("GET", "/metrics", show),)
