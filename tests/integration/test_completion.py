"""What a shell gets that completes a command line of meshrun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.mesh import Mesh

pytestmark = pytest.mark.slow

CONFIG = """
[apps.web]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
[apps.worker]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
instances = 2
[services.postgres]
address = "127.0.0.1:5432"
"""


def completed(folder: Path, *words: str, shell: str = "bash") -> list[str]:
    """What could stand in the place of the last word."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "meshrun"],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("MESHRUN_")},
            "COMP_WORDS": " ".join(["meshrun", *words]),
            "COMP_CWORD": str(len(words)),
            "_MESHRUN_COMPLETE": f"{shell}_complete",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_options_apps_and_services_are_completed(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(CONFIG)
    assert completed(tmp_path, "lo") == ["logs"]
    assert completed(tmp_path, "up", "--exit") == ["--exit-code-from"]
    assert completed(tmp_path, "logs", "w") == ["web", "worker"]
    assert completed(tmp_path, "logs", "web", "w") == ["worker"]
    assert completed(tmp_path, "intentions", "create", "web", "po") == ["postgres"]
    assert completed(tmp_path, "up", "--scale", "wo") == ["worker="]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert completed(elsewhere, "-f", str(tmp_path / "mesh.toml"), "env", "") == ["web", "worker"]


def test_processes_of_a_procfile_are_completed_too(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[mesh]\nprocfile = "Procfile"\n[apps.web]\nport = 0\n')
    (tmp_path / "Procfile").write_text("web: ./web\nJob_1: ./job\n")
    assert completed(tmp_path, "restart", "") == ["web", "job-1"]


@pytest.mark.parametrize(
    "content", ["[apps", "apps = 3", '[apps."$(touch here)"]\n', '[apps."*"]\n', "\0", "[mesh]"]
)
def test_a_broken_file_completes_nothing_and_breaks_no_prompt(tmp_path: Path, content: str) -> None:
    (tmp_path / "mesh.toml").write_text(content)
    for words in (
        ("logs", ""),
        ("why", "a", ""),
        ("no-such", "x"),
        ("logs", "-n"),
        ("up", "--", ""),
    ):
        assert [word for word in completed(tmp_path, *words) if word != "-n"] == []
    assert completed(tmp_path, "logs", "", shell="none") == []


@pytest.mark.slow
def test_instances_are_those_of_the_running_mesh(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up(wait=False)
        assert completed(tmp_path, "logs", "worker.") == ["worker.1", "worker.2"]
        (tmp_path / "mesh.toml").write_text("[apps")
        assert completed(tmp_path, "stop", "") == ["web", "worker"]
        assert completed(tmp_path, "why", "web", "p") == ["postgres"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_takes_the_script_and_calls_it(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(CONFIG)
    program = tmp_path / "meshrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m meshrun "$@"\n')
    program.chmod(0o755)
    script = """
set -eu
PATH=.:$PATH
eval "$(meshrun completion bash)"
complete -p meshrun
COMP_WORDS=(meshrun logs w) COMP_CWORD=2
_meshrun_completion meshrun
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "complete -o nosort -F _meshrun_completion meshrun\nweb worker\n"


@pytest.mark.parametrize(("shell", "part"), [("zsh", "#compdef meshrun"), ("fish", "--command")])
def test_the_scripts_of_other_shells(tmp_path: Path, shell: str, part: str) -> None:
    with Mesh(tmp_path) as mesh:
        assert part in mesh.cli("completion", shell, check=True).stdout
