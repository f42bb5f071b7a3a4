"""Where each key and value of a TOML document stands; tomli says only what they are.

The document must be one that tomli has accepted: what is not told apart here (numbers, dates,
booleans) is checked there. Nothing recurses, and a document of n characters costs O(n), also with
deep nesting and long dotted keys.
"""

import bisect
import re
from dataclasses import dataclass, field

import tomli

__all__ = ["KeyPath", "Position", "Positions", "locate"]

KeyPath = tuple[str | int, ...]
"""Names of tables and keys, and indexes in arrays, from the top of a document."""

# No possessive quantifiers: Python 3.11.2, that of Debian 12, matches some of them wrongly (CPython
# issue 106052). Nor are they needed: no part of these can be matched in two ways.
_BLANK = re.compile(r"[ \t\r\n]*(?:#[^\n]*[ \t\r\n]*)*")
_SEPARATOR = re.compile(r"[ \t\r\n,]*(?:#[^\n]*[ \t\r\n,]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"\\\n]*(?:\\.[^"\\\n]*)*"|'[^'\n]*'""", re.ASCII)
_SCALAR = re.compile(
    r'"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*""""{0,2}'
    r"|'''[^']*(?:'(?!'')[^']*)*''''{0,2}"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\n]*'"
    r"|[^\s,\[\]{}#\"'](?:[^,\[\]{}#\n]*[^\s,\[\]{}#])?",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a text; line and column are 1-based and count characters."""

    line: int
    column: int


@dataclass(slots=True)
class _Node:
    """A key or an element of an array, by the offsets of its key and its value."""

    key: int
    value: int
    is_array: bool = False
    children: "dict[str | int, _Node]" = field(default_factory=dict)


class Positions:
    """The places of a document's keys and values.

    A path that is not in the document has the place of its nearest ancestor that is. A table's
    value stands where its name does; the element of an array of tables at its `[[`.
    """

    def __init__(self, text: str, root: _Node) -> None:
        self._root = root
        self._line_ends = [match.start() for match in re.finditer("\n", text)]

    def __contains__(self, path: KeyPath) -> bool:
        return self._nearest(path)[1] == len(path)

    def key(self, path: KeyPath) -> Position:
        """Return where the key `path` stands; an element of an array is its own key."""
        return self._position(self._nearest(path)[0].key)

    def value(self, path: KeyPath) -> Position:
        """Return where the value of `path` begins."""
        return self._position(self._nearest(path)[0].value)

    def _nearest(self, path: KeyPath) -> tuple[_Node, int]:
        node = self._root
        for depth, part in enumerate(path):
            child = node.children.get(part)
            if child is None:
                return node, depth
            node = child
        return node, len(path)

    def _position(self, offset: int) -> Position:
        line = bisect.bisect_left(self._line_ends, offset)
        start = self._line_ends[line - 1] + 1 if line else 0
        return Position(line + 1, offset - start + 1)


def locate(text: str) -> Positions:
    """Return the places in a TOML document. Raises ValueError on what tomli would refuse."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._offset = 0
        self._root = _Node(0, 0)

    def scan(self) -> Positions:
        table = self._root
        while not self._at_end():
            if self._text.startswith("[[", self._offset):
                table = self._array_of_tables_header()
            elif self._text.startswith("[", self._offset):
                table = self._header()
            else:
                self._assignment(table)
        return Positions(self._text, self._root)

    def _at_end(self) -> bool:
        self._match(_BLANK)
        return self._offset == len(self._text)

    def _header(self) -> _Node:
        self._offset += 1
        *parents, (name, offset) = self._dotted_key()
        self._expect("]")
        parent = self._descend(self._root, parents)
        node = parent.children.setdefault(name, _Node(offset, offset))
        # A table may be mentioned by its children's headers first; its own is where it stands.
        node.key = node.value = offset
        return node

    def _array_of_tables_header(self) -> _Node:
        start = self._offset
        self._offset += 2
        *parents, (name, offset) = self._dotted_key()
        self._expect("]")
        self._expect("]")
        parent = self._descend(self._root, parents)
        array = parent.children.setdefault(name, _Node(offset, offset, is_array=True))
        element = _Node(start, start)
        array.children[len(array.children)] = element
        return element

    def _descend(self, node: _Node, parts: list[tuple[str, int]]) -> _Node:
        """Return the table that a dotted key leads to; in an array of tables, to its last one."""
        for name, offset in parts:
            node = node.children.setdefault(name, _Node(offset, offset))
            if node.is_array:
                node = node.children[len(node.children) - 1]
        return node

    def _assignment(self, table: _Node) -> None:
        """Scan one `key = value` and, without recursion, all that the value holds."""
        opened = self._begin_value(self._named(table))
        stack = [opened] if opened else []
        while stack:
            self._match(_SEPARATOR)
            container = stack[-1]
            if self._text.startswith(("]", "}"), self._offset):
                self._offset += 1
                stack.pop()
                continue
            opened = self._begin_value(
                self._element(container) if container.is_array else self._named(container)
            )
            if opened:
                stack.append(opened)

    def _named(self, table: _Node) -> _Node:
        *parents, (name, offset) = self._dotted_key()
        self._expect("=")
        self._match(_SPACE)
        node = _Node(offset, self._offset)
        self._descend(table, parents).children[name] = node
        return node

    def _element(self, array: _Node) -> _Node:
        node = _Node(self._offset, self._offset)
        array.children[len(array.children)] = node
        return node

    def _begin_value(self, node: _Node) -> _Node | None:
        """Pass a scalar, or the opening of an array or inline table, which is then returned."""
        if self._text.startswith(("[", "{"), self._offset):
            node.is_array = self._text[self._offset] == "["
            self._offset += 1
            return node
        self._match(_SCALAR)
        return None

    def _dotted_key(self) -> list[tuple[str, int]]:
        parts: list[tuple[str, int]] = []
        while True:
            self._match(_SPACE)
            offset = self._offset
            parts.append((_unquoted(self._match(_KEY_PART)), offset))
            self._match(_SPACE)
            if not self._text.startswith(".", self._offset):
                return parts
            self._offset += 1

    def _expect(self, character: str) -> None:
        if not self._text.startswith(character, self._offset):
            raise self._error()
        self._offset += 1

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._offset)
        if match is None:
            raise self._error()
        self._offset = match.end()
        return match[0]

    def _error(self) -> ValueError:
        return ValueError(f"cannot read TOML at offset {self._offset}: not a valid document")


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] != '"':
        return key
    if "\\" not in key:
        return key[1:-1]
    value: str = tomli.loads(f"key = {key}")["key"]
    return value
