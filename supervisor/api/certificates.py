"""Leaves and roots."""

import asyncio

from aiohttp import web

from meshrun.proxy.leaf import serial_text
from meshrun.supervisor.api.answers import RUN, Handler, body, json
from meshrun.supervisor.api.instances import Names
from meshrun.supervisor.run import Run

__all__ = ["ROUTES"]


def _leaves(run: Run) -> list[dict[str, object]]:
    return [
        {
            "service": worker.instance.service,
            "instance": worker.instance.name,
            "worker": worker.number,
            "identity": str(leaf.identity),
            "serial": leaf.serial,
            "not_before": leaf.not_before,
            "not_after": leaf.not_after,
            "issued_at": leaf.issued_at,
        }
        for worker, leaf in run.control.leaves()
    ]


async def show_leaves(request: web.Request) -> web.StreamResponse:
    """Show the leaf that each worker of a sidecar serves."""
    return json(_leaves(request.app[RUN]))


async def show_roots(request: web.Request) -> web.StreamResponse:
    """Show the roots that every sidecar trusts."""
    run = request.app[RUN]
    root = run.prepared.root
    certificate = root.certificate
    return json(
        [
            {
                "trust_domain": run.plan.configuration.mesh.trust_domain,
                "serial": serial_text(certificate.serial_number),
                "not_before": certificate.not_valid_before_utc.timestamp(),
                "not_after": certificate.not_valid_after_utc.timestamp(),
                "active": True,
                "pem": root.certificate_pem.decode(),
            }
        ]
    )


async def rotate(request: web.Request) -> web.StreamResponse:
    """Give sidecars new leaves, and answer when they serve them."""
    run = request.app[RUN]
    names = (await body(request, Names)).names
    await asyncio.shield(run.rotate(names))
    return json(_leaves(run))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/meshrun/certs", show_leaves),
    ("GET", "/v1/meshrun/roots", show_roots),
    ("POST", "/v1/meshrun/certs/rotate", rotate),
)
