"""Finding mesh.toml and Procfiles, and what is read from them; mistakes have their own table."""

import os
from collections.abc import Mapping
from pathlib import Path
from signal import Signals

import pytest

from meshrun.proxy.intentions import HeaderMatch, Permission
from meshrun.proxy.messages import Ejection, Requests
from meshrun.supervisor.configuration import meshfile
from meshrun.supervisor.configuration.meshfile import find, load, load_procfile
from meshrun.supervisor.configuration.model import (
    Configuration,
    Dependency,
    ExecCheck,
    HttpCheck,
    LogCheck,
    NotifyCheck,
    PortRange,
    Probe,
    Stop,
    TcpCheck,
    UpstreamReference,
)
from meshrun.supervisor.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shop = tmp_path / "My Shop"
    shop.mkdir()
    monkeypatch.chdir(shop)
    return shop


def loaded(text: str, environ: Mapping[str, str] | None = None) -> Configuration:
    Path("mesh.toml").write_text(text)
    return load(Path("mesh.toml"), environ or {})


def findings(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refusal:
        loaded(text, environ)
    return str(refusal.value).splitlines()


def test_an_empty_file_is_a_mesh_without_apps() -> None:
    configuration = loaded("")
    assert configuration.mesh.name == "my-shop"
    assert configuration.mesh.trust_domain == "my-shop.mesh"
    assert configuration.mesh.default_intention == "deny"
    assert configuration.mesh.ports == PortRange(21000, 21999)
    assert configuration.mesh.app_ports == PortRange(20000, 20999)
    assert configuration.mesh.leaf_ttl_s == 86400
    assert configuration.mesh.state_dir == ".meshrun"
    assert (configuration.apps, configuration.services, configuration.intentions) == ({}, {}, ())
    assert configuration.file == "mesh.toml"
    assert configuration.folder == Path.cwd()


def test_an_app_needs_only_a_command() -> None:
    app = loaded("[apps.web]\ncommand = \"python -c 'print(1)'\"").apps["web"]
    assert app.command == ("python", "-c", "print(1)")
    assert (app.port, app.protocol, app.instances, app.restart) == (None, "tcp", 1, "on-failure")
    assert app.stop == Stop(signal=Signals.SIGTERM, timeout_s=5.0)
    assert app.ready is None
    assert (app.workers, app.max_connections) == (1, 10_000)
    assert app.line == 1


def test_everything_about_an_app_is_read() -> None:
    configuration = loaded(
        """
        [apps.web]
        command = "exec web | tee log"
        shell = true
        cwd = "${HOME}"
        port = 8080
        protocol = "grpc"
        instances = 2
        workers = 4
        max_connections = 500
        upstreams = [
            "db",
            { service = "web", as = "Me", port = 21010, connect_timeout = "1s" },
            { service = "db", as = "few", max_connections = 4 },
        ]
        depends_on = { db = "started" }
        ready = { http = "/ok", interval = "1s", timeout = "2s", failures = 4, successes = 2 }
        restart = "never"
        stop = { signal = "sigint", timeout = "500ms" }
        connect_timeout = "10s"
        env = { A = "${UPSTREAM_ME_URL}", N = 7 }
        [services.db]
        address = "${DB:-127.0.0.1:5432}"
        workers = 2
        max_connections = 100
        """,
        {"HOME": "/home/caller"},
    )
    app = configuration.apps["web"]
    assert app.command == ("exec web | tee log",)
    assert app.shell
    assert not app.expand
    assert app.cwd == "${HOME}"
    assert app.env == {"A": "${UPSTREAM_ME_URL}", "N": "7"}
    assert app.upstreams == (
        UpstreamReference(service="db", name="db"),
        UpstreamReference(service="web", name="Me", port=21010, connect_timeout_s=1.0),
        UpstreamReference(service="db", name="few", max_connections=4),
    )
    assert app.depends_on == {"db": Dependency(condition="started")}
    assert app.ready == Probe(
        check=HttpCheck("/ok"),
        interval_s=1.0,
        timeout_s=2.0,
        failures=4,
        successes=2,
        deadline_s=60.0,
    )
    assert app.stop == Stop(signal=Signals.SIGINT, timeout_s=0.5)
    assert (app.port, app.protocol, app.instances) == (8080, "grpc", 2)
    assert (app.restart, app.connect_timeout_s) == ("never", 10.0)
    assert (app.workers, app.max_connections) == (4, 500)
    database = configuration.services["db"]
    assert database.address == "${DB:-127.0.0.1:5432}"
    assert (database.workers, database.max_connections) == (2, 100)


def test_everything_about_the_requests_to_an_upstream_is_read() -> None:
    configuration = loaded(
        """
        [[apps.web.upstreams]]
        service = "reviews"
        request_timeout = "2s"
        retries = 3
        max_requests = 10
        max_pending = 20
        ejection = { failures = 7, time = "10m" }
        set_headers = { "X-Env" = "a, b\tc", "x-b" = "$HOME" }
        remove_headers = ["X-Debug", "x-c"]
        split = { reviews-v2 = 10, reviews = 90 }
        [[apps.web.upstreams]]
        service = "reviews-v2"
        request_timeout = "0s"
        ejection = { failures = 0 }
        [apps.web]
        command = "web"
        [apps.reviews]
        command = "reviews"
        protocol = "grpc"
        [services.reviews-v2]
        address = "127.0.0.1:8080"
        protocol = "grpc"
        """
    )
    first, second = configuration.apps["web"].upstreams
    assert first.requests == Requests(
        timeout_s=2.0,
        retries=3,
        most_in_flight=10,
        most_pending=20,
        ejection=Ejection(failures=7, first_s=600.0, longest_s=600.0),
        set_headers=(("X-Env", "a, b\tc"), ("x-b", "$HOME")),
        remove_headers=("x-debug", "x-c"),
    )
    assert first.split == (("reviews-v2", 10), ("reviews", 90))
    assert first.called == ("reviews-v2", "reviews")
    assert second.requests == Requests(timeout_s=None, ejection=Ejection(failures=0))
    assert second.called == ("reviews-v2",)


def test_a_list_of_dependencies_means_ready() -> None:
    text = '[apps.a]\ncommand="a"\ndepends_on=["b"]\nready.tcp=true\n[apps.b]\ncommand="b"'
    app = loaded(text).apps["a"]
    assert app.depends_on == {"b": Dependency(condition="ready")}
    assert app.ready == Probe(check=TcpCheck())


def test_a_dependency_says_what_its_restart_does() -> None:
    app = loaded(
        """
        [apps.a]
        command = "a"
        depends_on = { b = { on_restart = "restart" }, c = { condition = "started" }, d = "ready" }
        [apps.b]
        command = "b"
        [apps.c]
        command = "c"
        [apps.d]
        command = "d"
        """
    ).apps["a"]
    assert app.depends_on == {
        "b": Dependency(condition="ready", on_restart="restart"),
        "c": Dependency(condition="started", on_restart="ignore"),
        "d": Dependency(),
    }


def test_an_app_is_asked_by_a_command_or_says_itself_how_it_is() -> None:
    apps = loaded(
        """
        [apps.a]
        command = "a"
        ready = { exec = "pg_isready -h '${HOST:-my host}'", timeout = "2s" }
        alive = { exec = ["check", ""], failures = 1 }
        [apps.b]
        command = "b"
        ready = { log = "listening on .*:${PORT}$", deadline = "5s" }
        alive = { log = "tick", interval = "1s" }
        [apps.c]
        command = "c"
        port = 0
        ready = { notify = true }
        alive = { notify = true, interval = "2s", failures = 2, deadline = "3s" }
        """
    ).apps
    assert apps["a"].ready == Probe(
        check=ExecCheck(("pg_isready", "-h", "${HOST:-my host}")), timeout_s=2.0
    )
    assert apps["a"].alive == Probe(check=ExecCheck(("check", "")), failures=1)
    assert apps["b"].ready == Probe(check=LogCheck("listening on .*:${PORT}$"), deadline_s=5.0)
    assert apps["b"].alive == Probe(check=LogCheck("tick"), interval_s=1.0)
    assert apps["c"].ready == Probe(check=NotifyCheck())
    assert apps["c"].alive == Probe(check=NotifyCheck(), interval_s=2.0, failures=2, deadline_s=3.0)


def test_an_intention_of_the_file_knows_its_line_and_keeps_its_id() -> None:
    text = '[apps.web]\ncommand = "web"\n[[intentions]]\nfrom = "*"\nto = "web"\naction = "deny"'
    intention = loaded(text).intentions[0]
    assert (intention.source, intention.destination, intention.action) == ("*", "web", "deny")
    assert (intention.origin, intention.where) == ("file", "mesh.toml:3")
    assert loaded("\n" + text).intentions[0].id == intention.id


def test_words_of_a_command_may_be_empty() -> None:
    assert loaded('[apps.a]\ncommand = ["a", ""]').apps["a"].command == ("a", "")


def test_a_default_with_a_blank_is_kept_whole_by_quotes() -> None:
    assert loaded("""[apps.a]\ncommand = 'a "${X:-b c}"'""").apps["a"].command == ("a", "${X:-b c}")


def test_what_a_shell_expands_is_not_looked_up() -> None:
    assert loaded('[apps.a]\nshell = true\ncommand = "echo ${NOT_SET}"').apps["a"].shell


def test_an_env_file_is_read_and_its_variables_are_known() -> None:
    Path("web.env").write_text("A='1 $x'\n")
    text = '[apps.web]\ncommand = "web ${A} ${MESHRUN_INSTANCE}"\nenv_file = "${MESHRUN_APP}.env"'
    assert loaded(text).apps["web"].env_file == {"A": "1 $x"}


def test_mistakes_in_an_env_file_are_found_with_the_others() -> None:
    Path("web.env").write_text("A=1\nB\n")
    assert findings('[apps.web]\ncommand = ""\nenv_file = "web.env"') == [
        "mesh.toml:2:11: apps.web.command must not be empty",
        'web.env:2:1: not NAME=value: there is no "="',
    ]


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    Path("mesh.toml").write_bytes(b'\xef\xbb\xbf[apps.web]\r\ncommand = "web"\r\nprot = 1\r\n')
    with pytest.raises(ConfigError, match=r"^mesh\.toml:3:1: unknown key"):
        load(Path("mesh.toml"), {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a = 1\nb = "\xc3\xa9\xff"', "mesh.toml:2:7: not UTF-8: byte 0xff"),
        (b"# \0", "mesh.toml:1:3: not valid TOML: "),
        (b"#" * (1 << 20) + b"#", "mesh.toml: cannot be read: it is larger than 1 MiB"),
        (b"a = " + b"[" * 5000, "mesh.toml: cannot be read: arrays or keys are nested too deeply"),
    ],
    ids=["not UTF-8", "NUL", "huge", "deep"],
)
def test_unreadable_content_is_refused(content: bytes, message: str) -> None:
    Path("mesh.toml").write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        load(Path("mesh.toml"), {})
    assert str(refusal.value).startswith(message)


def test_an_integer_that_python_does_not_read_is_refused() -> None:
    assert findings(f"a = {'1' * 5000}")[0].startswith("mesh.toml: not valid TOML: Exceeds")


def test_a_folder_and_a_missing_file_are_refused() -> None:
    Path("mesh.toml").mkdir()
    for path, message in (
        ("mesh.toml", "mesh.toml: cannot be read: is a directory"),
        ("none.toml", "none.toml: cannot be read: no such file or directory"),
        ("a\0b", "a\0b: cannot be read: embedded null byte"),
    ):
        with pytest.raises(ConfigError) as refusal:
            load(Path(path), {})
        assert str(refusal.value) == message


def test_a_file_elsewhere_is_called_as_it_was_given(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("x = 1")
    for given in (other, Path("../other.toml")):
        with pytest.raises(ConfigError) as refusal:
            load(given, {})
        assert str(refusal.value).startswith(f"{given}:1:1: unknown key")
    other.write_text("")
    assert load(Path("../other.toml"), {}).folder == tmp_path.resolve()


def test_the_nearest_mesh_file_is_found(tmp_path: Path, folder: Path) -> None:
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "mesh.toml").touch()
    assert find(below, None, os.getuid()) == tmp_path / "mesh.toml"
    (folder / "mesh.toml").touch()
    assert find(below, None, os.getuid()) == folder / "mesh.toml"
    assert find(below, Path("x.toml"), os.getuid()) == Path("x.toml")


def test_a_strangers_file_is_taken_only_here_or_by_name(folder: Path) -> None:
    (folder / "mesh.toml").touch()
    below = folder / "a"
    below.mkdir()
    stranger = os.getuid() + 1
    assert find(folder, None, stranger) == folder / "mesh.toml"
    assert find(below, Path("../mesh.toml"), stranger) == Path("../mesh.toml")
    with pytest.raises(ConfigError, match=r"belongs to another user .* name it with -f"):
        find(below, None, stranger)


def test_without_a_file_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meshfile, "FILE_NAME", "no-such-mesh.toml")
    with pytest.raises(ConfigError, match=r"cannot find it in .* up --procfile"):
        find(Path.cwd(), None, os.getuid())


def test_a_procfile_alone_is_a_configuration() -> None:
    Path("Procfile").write_text("web: ./web ${NOT_EXPANDED}\nWorker_2: ./worker\n")
    configuration = load_procfile(Path("Procfile"), {})
    web, worker = configuration.apps.values()
    assert (web.name, web.port, web.command) == ("web", 5000, ("./web ${NOT_EXPANDED}",))
    assert web.shell
    assert not web.expand
    assert web.cwd is None
    assert (worker.name, worker.port, worker.line) == ("worker-2", 5100, 2)
    assert (configuration.file, configuration.mesh.name) == ("Procfile", "my-shop")


def test_the_base_port_is_that_of_dotenv_then_of_the_caller() -> None:
    Path("Procfile").write_text("web: ./web\n")
    assert load_procfile(Path("Procfile"), {"PORT": "7000"}).apps["web"].port == 7000
    Path(".env").write_text("PORT=6000\nA=1\n")
    web = load_procfile(Path("Procfile"), {"PORT": "7000"}).apps["web"]
    assert web.port == 6000
    assert web.env_file == {"PORT": "6000", "A": "1"}


def test_mistakes_in_a_procfile_and_its_dotenv_are_found_together() -> None:
    Path("Procfile").write_text("web: ./web\nnonsense\n")
    Path(".env").write_text("PORT=http\n")
    with pytest.raises(ConfigError) as refusal:
        load_procfile(Path("Procfile"), {})
    assert str(refusal.value).splitlines() == [
        '.env:1:1: PORT must be a number from 1 to 65535, not "http"',
        'Procfile:2:1: not "name: command"; a name has letters, digits, _ and -',
    ]


def test_a_bad_port_of_the_caller_is_found() -> None:
    Path("Procfile").write_text("web: ./web\n")
    with pytest.raises(ConfigError, match=r"^the environment: PORT must be a number"):
        load_procfile(Path("Procfile"), {"PORT": "99999"})


def test_a_folder_called_dotenv_is_no_dotenv() -> None:
    Path("Procfile").write_text("web: ./web\n")
    Path(".env").mkdir()
    assert load_procfile(Path("Procfile"), {}).apps["web"].env_file == {}


def test_tables_add_to_the_apps_of_a_procfile() -> None:
    Path("proc").mkdir()
    Path("proc/Procfile").write_text("web: ./web\napi: ./api\n")
    configuration = loaded(
        '[mesh]\nprocfile = "proc/Procfile"\n'
        '[apps.web]\ninstances = 2\nupstreams = ["api"]\n'
        '[apps.api]\ncommand = "api --port ${PORT}"\n'
        '[apps.extra]\ncommand = "extra"\n'
    )
    assert list(configuration.apps) == ["web", "api", "extra"]
    web, api, _ = configuration.apps.values()
    assert (web.command, web.shell, web.port, web.instances) == (("./web",), True, 5000, 2)
    assert web.cwd == str(Path.cwd() / "proc")
    assert (api.command, api.shell, api.expand) == (("api", "--port", "${PORT}"), False, True)


def test_clashes_with_a_procfile_name_its_line() -> None:
    Path("Procfile").write_text("web: ./web\n")
    text = '[mesh]\nprocfile = "Procfile"\n[apps.web]\ninstances = 2\n[apps.a]\n'
    assert findings(text + 'command = "a"\nport = 5001') == [
        "mesh.toml:7:8: port 5001 is needed twice: by apps.web.port (5000-5001, Procfile:1) "
        "and by apps.a.port (5001, mesh.toml:7)"
    ]


def test_a_procfiles_command_stays_in_its_shell() -> None:
    Path("Procfile").write_text("web: ./web\n")
    assert findings('[mesh]\nprocfile = "Procfile"\n[apps.web]\nshell = false') == [
        "mesh.toml:4:9: apps.web.shell = false needs a command: the Procfile's is for a shell"
    ]


def test_what_an_intention_says_of_requests() -> None:
    apps = '[apps.web]\ncommand = "web"\nprotocol = "http"\n[apps.api]\ncommand = "api"\n'
    short = loaded(
        apps
        + """
[[intentions]]
from = "api"
to = "web"
methods = ["GET", "HEAD"]
path_prefix = "/v1"
headers = [{ name = "X-Role", exact = "admin", ignore_case = true }]
[[intentions]]
from = "*"
to = "web"
dry_run = true
permissions = [
    { action = "deny", path_prefix = "/." },
    { action = "allow", path_regex = "/v[12]/.*", headers = [
        { name = "x-tenant", present = true, invert = true },
        { name = "x-name", contains = "é" },
    ] },
]
[[intentions]]
from = "web"
to = "web"
action = "deny"
dry_run = true
"""
    ).intentions
    assert [str(i) for i in short] == [
        "api => web (1 permission)",
        "* => web (2 permissions, dry run)",
        "web => web (deny, dry run)",
    ]
    assert [i.action for i in short] == ["deny", "deny", "deny"]
    role = HeaderMatch(name="x-role", exact="admin", ignore_case=True)
    assert short[0].permissions == (
        Permission(action="allow", methods=("GET", "HEAD"), path_prefix="/v1", headers=(role,)),
    )
    assert short[1].permissions == (
        Permission(action="deny", path_prefix="/."),
        Permission(
            action="allow",
            path_regex="/v[12]/.*",
            headers=(
                HeaderMatch(name="x-tenant", present=True, invert=True),
                HeaderMatch(name="x-name", contains="é"),
            ),
        ),
    )
