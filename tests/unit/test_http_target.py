"""What an app would make of a path in the end, the rules see from the start."""

import posixpath
import re
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.target import normalise_authority, normalise_path, split_target

PCHAR = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@"


# Paths.


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/a",
        "/a/",
        "/a/b.c/d..e/...",
        "/.well-known/x",
        "/..a/.b",
        f"/x{PCHAR}",
        "/a;v=1/b",
        "/%20",
        "/%25",
        "/%252e%252E/%252f",
        "/%C3%A9",
        "/%0A%7F%FF",
    ],
)
def test_a_normal_path_stays_as_it_is(path: str) -> None:
    assert normalise_path(path) == path


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        # dot segments
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/a/../../../b", "/b"),
        # repeated slashes; a dot segment takes away one segment, also an empty one
        ("//", "/"),
        ("//a", "/a"),
        ("/a//b///c//", "/a/b/c/"),
        ("/a//../b", "/a/b"),
        ("/a//..//../b", "/a/b"),
        ("//..//a", "/a"),
        ("/a/b//..", "/a/b/"),
        # slashes in disguise
        ("/a%2fb%2Fc", "/a/b/c"),
        ("/a\\b%5cc%5Cd", "/a/b/c/d"),
        ("/a\\..\\b", "/b"),
        ("/a/%2e%2e%2fb", "/b"),
        ("/a%2F%2Fb", "/a/b"),
        ("/a%5C..%2Fb", "/b"),
        # dots in disguise
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2E/b", "/a/b"),
        # what may stand as it is, does
        ("/%61dmin", "/admin"),
        ("/a%3Ab%40c%2Bd%3d", "/a:b@c+d="),
        ("/%7euser", "/~user"),
        # the rest is encoded, in capitals
        ("/%c3%a9", "/%C3%A9"),
        ('/"<>[]^`{|}', "/%22%3C%3E%5B%5D%5E%60%7B%7C%7D"),
        ("/a%3fb%23", "/a%3Fb%23"),
        # once only
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/%25%32%65", "/%252e"),
        ("/%255C", "/%255C"),
    ],
)
def test_a_path_gets_its_one_spelling(path: str, normal: str) -> None:
    assert normalise_path(path) == normal
    assert normalise_path(normal) == normal


@pytest.mark.parametrize("octet", range(1, 128))
def test_each_octet_has_one_spelling(octet: int) -> None:
    character = chr(octet)
    spellings = {f"/a%{octet:02x}b", f"/a%{octet:02X}b"}
    if character.isprintable() and character not in " #?%":
        spellings.add(f"/a{character}b")
    normal = {normalise_path(path) for path in spellings}
    if character in "/\\":
        assert normal == {"/a/b"}
    elif character in PCHAR:
        assert normal == {f"/a{character}b"}
    else:
        assert normal == {f"/a%{octet:02X}b"}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "does not begin with /"),
        ("a", "does not begin with /"),
        ("*", "does not begin with /"),
        ("\\a", "does not begin with /"),
        ("%2Fa", "does not begin with /"),
        ("/a%", "without two hex digits"),
        ("/a%4", "without two hex digits"),
        ("/a%g1", "without two hex digits"),
        ("/a%%41", "without two hex digits"),
        ("/a%u0041", "without two hex digits"),
        ("/a%00", "%00"),
        ("/a b", "a space"),
        ("/a\tb", "a control"),
        ("/a\0b", "a control"),
        ("/a\x7fb", "a control"),
        ("/a\r\nb", "a control"),
        ("/a\n", "a control"),
        ("/é", "no ASCII"),
        ("/a/\u2025/b", "no ASCII"),
        ("/a\uff0fb", "no ASCII"),
        ("/a#b", "a #"),
        ("/a?b", r"a \?"),
        ("/public/..;/admin", "a parameter"),
        ("/public/..;x=y/admin", "a parameter"),
        ("/public/.;/admin", "a parameter"),
        ("/public/%2e%2E%3b/admin", "a parameter"),
        ("/public\\..;", "a parameter"),
    ],
)
def test_a_path_that_could_be_read_otherwise_is_refused(path: str, why: str) -> None:
    with pytest.raises(HttpError, match=why) as refused:
        normalise_path(path)
    assert refused.value.status == 400


some_path = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("/", "//", ".", "..", "...", "/./", "/../", "\\", "%2e", "%2E", "%2f", "%2F"),
                *("%5c", "%5C", "%25", "%252e", "%00", "%41", "%7e", "%C3%A9", "%3b", ";", "a"),
                *("b", "%3A", ":", "[", '"', "%22", "%3f", "%", "%4", "%zz", " ", "#", "é"),
            ]
        ),
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"),
        st.integers(0, 255).map("%{:02x}".format),
        st.integers(1, 255).map("%{:02X}".format),
    ),
    max_size=12,
).map(lambda parts: "/" + "".join(parts))


def normal(path: str) -> str | None:
    """Return the path as rules see it, and the app gets it; None where it is refused."""
    try:
        return normalise_path(path)
    except HttpError:
        return None


@given(some_path)
def test_to_normalise_twice_is_to_normalise_once(path: str) -> None:
    if (once := normal(path)) is not None:
        assert normalise_path(once) == once


@given(some_path)
def test_nothing_in_a_normal_path_can_be_read_in_two_ways(path: str) -> None:
    if (path := normal(path) or "/") != "/":
        assert re.fullmatch(rf"(/([{re.escape(PCHAR)}]|%[0-9A-F]{{2}})+)+/?", path)
        assert not {".", "..", ""} & set(path.removesuffix("/").split("/")[1:])
        for encoded in re.findall("%[0-9A-F]{2}", path):
            assert chr(int(encoded[1:], 16)) not in PCHAR + "/\\\0"


@given(some_path)
@example("/%25%32%65%252e/%2525")
def test_what_an_app_decodes_is_what_was_decided_about(path: str) -> None:
    if (path := normal(path) or "/") != "/":
        seen = urllib.parse.unquote_to_bytes(path)
        # Nothing is left for the app to resolve, and it sees one thing for one path:
        # that is how the standard library's server and whatever stands on WSGI look at it.
        assert posixpath.normpath(seen) == seen.removesuffix(b"/")
        assert b"\\" not in seen
        assert urllib.parse.quote(seen, safe=f"/{PCHAR}") == path


@given(some_path, some_path)
@example("/a:b", "/a%3Ab")
@example("/a//b", "/a/b")
@example("/x/../a", "/a")
@example("/a%2fb", "/a/b")
@example("/%7Ea", "/~a")
def test_two_paths_that_apps_route_alike_are_one_to_the_rules(one: str, other: str) -> None:
    first, second = normal(one), normal(other)
    if first is None or second is None:
        return
    if urllib.parse.unquote_to_bytes(first) == urllib.parse.unquote_to_bytes(second):
        assert first == second


@given(some_path)
def test_yarl_finds_nothing_to_change_in_a_normal_path(target: str) -> None:
    if (path := normal(target)) is not None:
        # aiohttp looks for a route by the raw path, as it came or requoted.
        assert URL.build(path=path, encoded=True).raw_path == path
        assert URL(f"http://a{path}").raw_path == path


# Targets.


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/", ("", "/", "")),
        ("/a?", ("", "/a", "?")),
        ("/a?b=c&d", ("", "/a", "?b=c&d")),
        ("/a?b?c", ("", "/a", "?b?c")),
        ("/a/../b?c/../d", ("", "/b", "?c/../d")),
        ("/?%2e%2f\\\"|{}'%", ("", "/", "?%2e%2f\\\"|{}'%")),
        ("/a//b?c//d", ("", "/a/b", "?c//d")),
        ("/http://a/b", ("", "/http:/a/b", "")),
        ("//host/a", ("", "/host/a", "")),
        ("*", ("", "*", "")),
        ("http://a.b:8080/c/./d?e", ("a.b:8080", "/c/d", "?e")),
        ("HtTpS://A/", ("A", "/", "")),
        ("http://a", ("a", "/", "")),
        ("http://a?b=/c", ("a", "/", "?b=/c")),
        ("http://[::1]:80/a", ("[::1]:80", "/a", "")),
    ],
)
def test_a_target_has_an_authority_a_path_and_a_query(
    target: str, parts: tuple[str, str, str]
) -> None:
    assert split_target(target) == parts


@pytest.mark.parametrize(
    "target",
    [
        "",
        "?a",
        "a",
        "a/b",
        "**",
        "*/",
        "*?a",
        "a:443",
        "ftp://a/",
        "http:/a",
        "http:a",
        "http://",
        "http:///a",
        "http://?a",
        "http://u@a/",
        "http://u:p@a/",
        "http://a\\b/",
        "http://a b/",
        "http://a:b/",
        "http://a#b",
        "http://a/b#c",
        "/a#b",
        "/a?b#c",
        "/a?b c",
        "/a?b\x00",
        "/a?b\xe9",
        "/a?b\r\n",
        "/a b",
        "/%00?a",
        "\\a",
        ".",
        "../a",
    ],
)
def test_any_other_target_is_refused(target: str) -> None:
    with pytest.raises(HttpError) as refused:
        split_target(target)
    assert refused.value.status == 400


@given(some_path, st.sampled_from(["", "?", "?a=%2f..//\\", "?a?b"]))
def test_all_forms_of_a_target_give_the_same_path(path: str, query: str) -> None:
    path = normal(path) or "/"
    assert split_target(path + query) == ("", path, query)
    assert split_target(f"http://a{path}{query}") == ("a", path, query)


@given(st.text())
def test_whatever_comes_is_a_target_or_refused(target: str) -> None:
    try:
        _, path, query = split_target(target)
    except HttpError:
        return
    assert path == "*" or normalise_path(path) == path
    assert query[:1] in ("", "?")


# Hosts.


@pytest.mark.parametrize(
    ("authority", "comparable"),
    [
        ("a", "a"),
        ("EXAMPLE.Com", "example.com"),
        ("a.b.", "a.b"),
        ("a.:80", "a"),
        ("a:80", "a"),
        ("a:8080", "a:8080"),
        ("a:443", "a:443"),
        ("a_b-c~d.e", "a_b-c~d.e"),
        ("127.0.0.1:21000", "127.0.0.1:21000"),
        ("[::1]", "[::1]"),
        ("[FE80::A]:80", "[fe80::a]"),
        ("[::ffff:1.2.3.4]:65535", "[::ffff:1.2.3.4]:65535"),
    ],
)
def test_hosts_are_compared_in_one_form(authority: str, comparable: str) -> None:
    assert normalise_authority(authority) == comparable
    assert normalise_authority(comparable) == comparable


@pytest.mark.parametrize(
    "authority",
    [
        *("", ".", "..", "a..b", ".a", "a..", ":80", "a:", "a:0", "a:080", "a:65536", "a:123456"),
        *("a:+8", "a:8x", "a:8:9", "::1", "[::1", "::1]", "[::1].", "[]", "[g::]", "[fe80::1%25e]"),
        *("u@a", "u:p@a", "a/b", "a?b", "a#b", "a\\b", "a b", " a", "a ", "a\tb", "a\0", "a\n"),
        *("a,b", "a;b", "a%41", "a\x7f", "é", "\uff41", "a\u3002b", "http://a", "a:80/", "a:٨٠"),
    ],
)
def test_what_is_no_host_is_refused(authority: str) -> None:
    with pytest.raises(HttpError, match="cannot take the host") as refused:
        normalise_authority(authority)
    assert refused.value.status == 400


@given(st.text(max_size=20) | st.text("ab.:[]08-_@/", max_size=12))
def test_the_form_of_a_host_is_final(authority: str) -> None:
    try:
        comparable = normalise_authority(authority)
    except HttpError:
        return
    assert normalise_authority(comparable) == comparable == comparable.lower()
