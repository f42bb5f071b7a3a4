"""Every key and value that tomli reports is found, at the place where it stands."""

import json
from collections.abc import Iterator

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.toml_positions import KeyPath, Position, locate

DOCUMENT = '''\
# a comment with = and [brackets]
title = "a # b"
"quoted key".'other [key]' = 1
dotted . name = """
two = "quotes" and \\""" inside
"""""

[apps.web] # a table
command = [
    "python",  # ]
    'a"b', [1, { x = 2 }],
]
env = { A = "}", "B.c" = 'd', e.f = 1979-05-27 07:32:00 }

[[intentions]]
from = "*"
[intentions.meta]
x = inf

[[intentions]]
to = \'\'\'
it's\'\'\'

[apps]
'''


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("title",), (2, 1), (2, 9)),
        (("quoted key",), (3, 1), (3, 1)),
        (("quoted key", "other [key]"), (3, 14), (3, 30)),
        (("dotted", "name"), (4, 10), (4, 17)),
        (("apps",), (24, 2), (24, 2)),
        (("apps", "web"), (8, 7), (8, 7)),
        (("apps", "web", "command"), (9, 1), (9, 11)),
        (("apps", "web", "command", 0), (10, 5), (10, 5)),
        (("apps", "web", "command", 2, 1, "x"), (11, 18), (11, 22)),
        (("apps", "web", "env", "B.c"), (13, 18), (13, 26)),
        (("apps", "web", "env", "e", "f"), (13, 33), (13, 37)),
        (("intentions",), (15, 3), (15, 3)),
        (("intentions", 0), (15, 1), (15, 1)),
        (("intentions", 0, "meta"), (17, 13), (17, 13)),
        (("intentions", 0, "meta", "x"), (18, 1), (18, 5)),
        (("intentions", 1), (20, 1), (20, 1)),
        (("intentions", 1, "to"), (21, 1), (21, 6)),
    ],
)
def test_places_are_where_a_reader_looks(
    path: KeyPath, key: tuple[int, int], value: tuple[int, int]
) -> None:
    tomli.loads(DOCUMENT)
    positions = locate(DOCUMENT)
    assert path in positions
    assert positions.key(path) == Position(*key)
    assert positions.value(path) == Position(*value)


def test_what_is_missing_has_the_place_of_what_it_is_missing_from() -> None:
    positions = locate(DOCUMENT)
    assert ("apps", "web", "port") not in positions
    assert positions.key(("apps", "web", "port")) == positions.key(("apps", "web"))
    assert positions.value(("apps", "web", "command", 9)) == Position(9, 11)
    assert locate("").key(("apps",)) == Position(1, 1)


def test_columns_count_characters() -> None:
    assert locate('"ключ" = { "é\\u0301" = 1 }').value(("ключ", "é\u0301")) == Position(1, 24)


@pytest.mark.parametrize("text", ["a", "a = ", "= 1", "[a", "[[a]", 'a = "', "a = [1", "[a]]"])
def test_what_is_not_toml_ends_in_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid document"):
        locate(text)


def test_deep_nesting_and_long_keys_are_cheap() -> None:
    depth = 20_000
    assert locate(f"a = {'[' * depth}{']' * depth}").value(("a", 0)) == Position(1, 6)
    assert locate("a." * depth + "a = 1").key(("a", "a")) == Position(1, 3)


KEYS = st.text(max_size=6) | st.sampled_from(["a", "b", "c-d", "1", "a.b", '"', "'", "é", "#", "="])
SCALARS = (
    st.integers(-(10**6), 10**6)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(['"""', "'''", "a\nb", "#", "]", "}", ",", "\\", '"', "'"])
    | st.dates()
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
GAPS = st.sampled_from(["", " ", "\n", " # ]}'\"\n", "\t"])


class Writer:
    """Writes a value as TOML, in one of the ways that TOML has, as hypothesis chooses."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def _one_of(self, *choices: str) -> str:
        return self._data.draw(st.sampled_from(choices))

    def key(self, name: str) -> str:
        forms = [self._basic(name)]
        if name and name.isascii() and name.replace("-", "").replace("_", "").isalnum():
            forms.append(name)
        if name.isprintable() and "'" not in name:
            forms.append(f"'{name}'")
        return self._one_of(*forms)

    def _basic(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

    def string(self, text: str) -> str:
        forms = [self._basic(text), f'"""\n{self._basic(text)[1:-1]}"""']
        if text.isprintable() and "'" not in text:
            forms += [f"'{text}'", f"'''{text}'''"]
        if text.isprintable() and '"' not in text and "\\" not in text:
            forms.append(f'"""{text}""""')
        return self._one_of(*forms)

    def inline(self, value: object) -> str:
        if isinstance(value, str):
            return self.string(value)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            gap = self._data.draw(GAPS)
            inner = f",{gap}".join(self.inline(element) for element in value)
            return f"[{gap}{inner}{gap}]"
        if isinstance(value, dict):
            pairs = (f"{self.key(name)} = {self.inline(inner)}" for name, inner in value.items())
            return f"{{ {', '.join(pairs)} }}"
        return str(value)

    def document(self, value: dict[str, object], prefix: str = "") -> str:
        """Write what fits on lines first, then the tables that get headers of their own."""
        lines, tables = [], []
        for name, inner in value.items():
            key = self.key(name)
            if (
                isinstance(inner, dict)
                and (inner or prefix)
                and self._one_of("line", "table") != "line"
            ):
                tables.append(f"[{prefix}{key}]\n{self.document(inner, f'{prefix}{key}.')}")
            elif isinstance(inner, list) and inner and all(isinstance(e, dict) for e in inner):
                header = f"[[ {prefix}{key} ]]\n"
                tables += [header + self.document(e, f"{prefix}{key}.") for e in inner]
            elif isinstance(inner, dict) and inner:
                lines += [
                    f"{key}{self._one_of('.', ' . ')}{self.key(deeper)} = {self.inline(v)}\n"
                    for deeper, v in inner.items()
                ]
            else:
                lines.append(f"{key} = {self.inline(inner)}{self._one_of('', ' # = [')}\n")
        return "".join(lines + tables)


def paths(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    if path:
        yield path, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*path, name))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


def begins_with(text: str, expected: dict[str, object], form: str) -> bool:
    """Whether some beginning of `text` is, put into `form`, the TOML of `expected`."""
    for end in range(1, len(text) + 1):
        try:
            if tomli.loads(form.replace("@", text[:end])) == expected:
                return True
        except tomli.TOMLDecodeError:
            pass
    return False


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.data())
def test_every_path_that_tomli_reports_is_found_where_it_stands(
    value: dict[str, object], data: st.DataObject
) -> None:
    text = Writer(data).document(value)
    parsed = tomli.loads(text)
    positions = locate(text)
    lines = text.split("\n")

    def rest(position: Position) -> str:
        line, column = position.line - 1, position.column - 1
        return "\n".join([lines[line][column:], *lines[line + 1 :]])

    for path, found in paths(parsed):
        assert path in positions
        if isinstance(path[-1], str):
            assert begins_with(rest(positions.key(path)), {path[-1]: 1}, "@ = 1")
        if not isinstance(found, dict | list):
            assert begins_with(rest(positions.value(path)), {"x": found}, "x = @")


@given(st.text(alphabet="a.=[]{}\"'\\#,\n 1"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = tomli.loads(text)
    except tomli.TOMLDecodeError:
        parsed = None
    try:
        positions = locate(text)
    except ValueError:
        assert parsed is None
    else:
        assert all(path in positions for path, _ in paths(parsed))
