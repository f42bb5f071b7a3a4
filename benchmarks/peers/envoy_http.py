"""What Envoy does with requests: the HTTP connection manager, RBAC and router, as Consul sets them.

Consul builds these for a service whose protocol is not tcp; where meshrun is stricter about a
request (paths, names of header fields) Envoy is told to be, too.
"""

from benchmarks.peers.peer import Side
from benchmarks.rule import Rule

__all__ = ["cluster_options", "inbound_manager", "outbound_manager"]

Json = dict[str, object]
TYPES = "type.googleapis.com/envoy"
HTTP_OPTIONS = "extensions.upstreams.http.v3.HttpProtocolOptions"


def inbound_manager(side: Side, rule: Rule) -> Json:
    """Return the filter of the server side: who may call how, and telling the app who it was."""
    strict: Json = {
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
    }
    identity: Json = {
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
    }
    return _manager(rule, [_rbac(side, rule)], {**strict, **identity})


def outbound_manager(rule: Rule) -> Json:
    """Return the filter of the client side, which makes the id of each request (by default)."""
    return _manager(rule, [], {})


def cluster_options(rule: Rule) -> Json:
    """Return what a cluster says of the protocol to its endpoints."""
    version = "http_protocol_options" if rule.protocol == "http" else "http2_protocol_options"
    options = {"@type": f"{TYPES}.{HTTP_OPTIONS}", "explicit_http_config": {version: {}}}
    return {"typed_extension_protocol_options": {f"envoy.{HTTP_OPTIONS}": options}}


def _manager(rule: Rule, filters: list[Json], more: Json) -> Json:
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "target"}}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3"
            ".HttpConnectionManager",
            "stat_prefix": "sidecar",
            "codec_type": "HTTP1" if rule.protocol == "http" else "HTTP2",
            "route_config": {
                "virtual_hosts": [{"name": "target", "domains": ["*"], "routes": [everything]}]
            },
            "http_filters": [*filters, _router()],
            **more,
        },
    }


def _rbac(side: Side, rule: Rule) -> Json:
    method = {"name": ":method", "string_match": {"exact": rule.method}}
    caller = {"authenticated": {"principal_name": {"exact": side.peer_identity}}}
    policy = {"permissions": [{"header": method}], "principals": [caller]}
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": f"{TYPES}.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {"caller": policy}},
        },
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
    }
