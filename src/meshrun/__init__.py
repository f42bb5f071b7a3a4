"""meshrun runs the apps of one machine as a service mesh.

Two packages do the work: `meshrun.supervisor`, the control plane and the commands, and
`meshrun.proxy`, the sidecar. `supervisor` imports pure modules of `proxy`, never the other way.
"""

__all__ = ["version"]


def version() -> str:
    """Return the version of the installed package."""
    # Imported here: it costs more than all else that a short command does.
    from importlib import metadata

    return metadata.version("meshrun")
