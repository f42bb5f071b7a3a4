"""Apps that write, and what a mesh has kept of it, for tests."""

from support.mesh import Mesh

from meshrun.supervisor.logreading import LogLine, Reader

__all__ = ["kept", "talker", "written"]


def talker(name: str, *words: str, stop: str = "3s", more: str = "") -> str:
    """Return the table of an app that writes (`tests/apps/talker.py`)."""
    return f"""
[apps.{name}]
command = "${{PYTHON}} -S ${{APPS}}/talker.py {" ".join(words)}"
port = 0
stop = {{ timeout = "{stop}" }}
{more}
"""


def kept(mesh: Mesh, *instances: str) -> list[LogLine]:
    """Return what the log files have of instances, markers too."""
    reader = Reader(mesh.state)
    reader.add(instances)
    found: list[LogLine] = []
    while lines := reader.read():
        found += map(LogLine.of, lines)
    reader.close()
    return found


def written(mesh: Mesh, instance: str) -> list[str]:
    """Return what the log files have of the lines of an app."""
    return [line.line for line in kept(mesh, instance) if line.stream != "marker"]
