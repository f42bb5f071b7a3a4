"""The units of systemd: what stands in them, and that systemd reads it as it was meant."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor import systemd_unit
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.systemd_unit import Service

SERVICE = Service(
    mesh="shop",
    meshrun=("/opt/shop/.venv/bin/meshrun",),
    arguments=("--config=/srv/shop/mesh.toml",),
    folder="/srv/shop",
    user="shop",
    writable=("/srv/shop", "/var/lib/shop"),
    search=("/usr/bin", "/bin"),
    ports=(),
    longest_stop_s=20.5,
)
# What a path may be called whose characters systemd has a use for.
HOSTILE = "a b%n$HOME${X};#é"
WORSE = f"{HOSTILE}\"q\"'r'\\x41"
TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=30)


def settings(unit: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all of its values."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def words(value: str, *, command: bool) -> list[str]:
    """Read a value as systemd does (extract-word.c, then specifiers, then variables)."""
    found: list[str] = []
    word, quote, escaped, inside = "", "", False, False
    for character in value:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = inside = True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "\"'":
            quote, inside = character, True
        elif character in " \t":
            found += [word] if inside else []
            word, inside = "", False
        else:
            word, inside = word + character, True
    assert not quote
    assert not escaped
    found += [word] if inside else []
    plain = [one.replace("%%", "\0") for one in found]
    assert not any("%" in one for one in plain), "a specifier"
    plain = [one.replace("\0", "%") for one in plain]
    if command:
        arguments = [one.replace("$$", "\0") for one in plain[1:]]
        assert not any("$" in one for one in arguments), "a variable"
        plain[1:] = [one.replace("\0", "$") for one in arguments]
    return plain


def test_the_service_says_when_it_is_ready_and_stops_in_order() -> None:
    found = settings(systemd_unit.service(SERVICE))
    assert found["Type"] == ["notify"]
    assert found["User"] == ["shop"]
    assert found["KillMode"] == ["mixed"]
    assert found["TimeoutStopSec"] == ["31"]
    assert found["ReadWritePaths"] == ["/srv/shop", "/var/lib/shop"]
    assert found["PrivateTmp"] == ["yes"]
    assert found["ExecStart"] == ["/opt/shop/.venv/bin/meshrun --config=/srv/shop/mesh.toml up"]
    assert found["ExecReload"] == [
        "/opt/shop/.venv/bin/meshrun --config=/srv/shop/mesh.toml reload"
    ]
    assert "Requires" not in found


def test_the_cgroups_of_the_run_and_its_apps_are_its_own() -> None:
    found = settings(systemd_unit.service(SERVICE))
    assert found["Delegate"] == ["yes"]
    assert "ProtectControlGroups" not in found


def test_every_setting_that_restricts_an_app_has_its_reason_above_it() -> None:
    lines = systemd_unit.service(SERVICE).splitlines()
    for name in ("ProtectSystem", "PrivateTmp", "NoNewPrivileges", "ProtectKernelTunables"):
        (at,) = (n for n, line in enumerate(lines) if line.startswith(f"{name}="))
        assert lines[at - 1].startswith("#")


def test_as_root_there_is_no_user_and_in_tmp_no_private_one() -> None:
    found = settings(systemd_unit.service(replace(SERVICE, user=None, folder="/tmp/shop")))
    assert "User" not in found
    assert "PrivateTmp" not in found


def test_fixed_ports_of_upstreams_have_a_socket_unit_that_the_service_needs() -> None:
    assert systemd_unit.sockets(SERVICE) is None
    given_ports = replace(SERVICE, ports=(21010, 21011))
    socket = systemd_unit.sockets(given_ports)
    assert socket is not None
    assert settings(socket)["ListenStream"] == ["127.0.0.1:21010", "127.0.0.1:21011"]
    assert settings(systemd_unit.service(given_ports))["Requires"] == ["meshrun-shop.socket"]


@given(TEXT.filter(lambda text: not set(text) & set("\"'\\")), TEXT, TEXT)
def test_systemd_reads_every_word_as_it_was_meant(program: str, file: str, folder: str) -> None:
    unit = systemd_unit.service(
        replace(
            SERVICE,
            meshrun=(f"/{program}",),
            arguments=(f"--config={file}",),
            writable=(f"/{folder}",),
            search=(f"/{folder}", "/bin"),
        )
    )
    found = settings(unit)
    assert words(found["ExecStart"][0], command=True) == [f"/{program}", f"--config={file}", "up"]
    reload = words(found["ExecReload"][0], command=True)
    assert reload == [f"/{program}", f"--config={file}", "reload"]
    assert words(found["ReadWritePaths"][0], command=False) == [f"/{folder}"]
    assert words(found["Environment"][0], command=False) == [f"PATH=/{folder}:/bin"]


@pytest.mark.parametrize("folder", ["/srv/a\nExecStartPre=/bin/evil", "/srv/a\0", "/srv/\udcff"])
def test_what_no_unit_can_hold_is_refused(folder: str) -> None:
    for changed in (
        replace(SERVICE, folder=folder),
        replace(SERVICE, writable=(folder,)),
        replace(SERVICE, arguments=(folder,)),
        replace(SERVICE, search=(folder,)),
    ):
        with pytest.raises(MeshrunError, match="cannot write"):
            systemd_unit.service(changed)
    with pytest.raises(MeshrunError, match="systemd takes no program"):
        systemd_unit.service(replace(SERVICE, meshrun=("/opt/it's/meshrun",)))
    for ending in ("/srv/a ", "/srv/a\\"):
        with pytest.raises(MeshrunError, match="cannot write"):
            systemd_unit.service(replace(SERVICE, folder=ending))


@pytest.mark.parametrize("name", ["shop", HOSTILE])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_verifies_the_units(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    program = folder / "meshrun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    service = replace(
        SERVICE,
        meshrun=(str(program),),
        arguments=(f"--config={tmp_path}/{WORSE}/mesh.toml",),
        folder=f"{tmp_path}/{WORSE}",
        user=None,
        writable=(f"{tmp_path}/{WORSE}",),
        search=(str(folder), "/bin"),
        ports=(21010,),
    )
    socket = systemd_unit.sockets(service)
    assert socket is not None
    units = tmp_path / "units"
    units.mkdir()
    (units / "meshrun-shop.service").write_text(systemd_unit.service(service))
    (units / "meshrun-shop.socket").write_text(socket)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    # It complains about units of the machine, too.
    assert [line for line in done.stderr.splitlines() if "meshrun-shop" in line] == []
    assert done.returncode == 0, done.stderr
