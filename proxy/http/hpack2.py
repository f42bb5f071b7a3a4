"""The compression of heads (RFC 7541), where the library hpack is too slow or too lenient. Pure.

The tables stay hpack's. What a block is made of is read here in one pass, and a block that stands
for more than a head may have is given up within: a byte of it can be a whole field, and a field of
a few bytes another one of thousands (CVE-2016-6581).
"""

from collections.abc import Iterable
from functools import lru_cache

import hpack
from hpack.exceptions import HPACKDecodingError, OversizedHeaderListError
from hpack.huffman_table import decode_huffman
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple
from hpack.table import HeaderTable

from meshrun.proxy.http.semantics import FIELD_LIMIT, HEAD_LIMIT_BYTES

__all__ = [
    "DECODED_LIMIT_BYTES",
    "DECODED_LIMIT_FIELDS",
    "FIELD_OVERHEAD_BYTES",
    "MOST_SIZE_CHANGES",
    "Decoder",
    "Encoder",
    "Field",
]

Field = tuple[bytes, bytes]

# RFC 7541 4.1, RFC 9113 6.5.2: what a field counts for beside its characters.
FIELD_OVERHEAD_BYTES = 32

# A head over the limits of a head is answered, as one stream's matter; over these the connection is
# closed, since the tables of both sides are not the same any more. A cookie comes in as many fields
# as it has parts (RFC 9113 8.2.3), which browsers limit to 180.
DECODED_LIMIT_BYTES = HEAD_LIMIT_BYTES * 3 // 2
DECODED_LIMIT_FIELDS = FIELD_LIMIT * 4

# Changes of the table's size before the first field: two say all (RFC 7541 4.2), hpack says each
# that there was. Each costs as much as a field, and a block has room for a hundred thousand.
MOST_SIZE_CHANGES = 64

# Of an integer: enough for 32 bits, as hpack.
_MOST_BITS = 28

_STATIC = [HeaderTuple(name, value) for name, value in HeaderTable.STATIC_TABLE]
_FIRST_DYNAMIC = len(_STATIC) + 1
_STATIC_FIELDS: dict[Field, int] = {field: index for index, field in enumerate(_STATIC, 1)}
_STATIC_NAMES = {field[0]: index for index, field in reversed([*enumerate(_STATIC, 1)])}

# How many that have left the table an encoder may know beyond as many as are in it.
_FEW_ENTRIES = 16

# What is remembered of names, which a peer chooses, is bounded by this.
_MOST_NAME_BYTES = 64


class Decoder(hpack.Decoder):
    """Reads header blocks; takes hpack's place within h2.

    `decode` raises what hpack's does: HPACKError for what is no block, OversizedHeaderListError for
    one that stands for too much. In both cases the connection is to be closed.
    """

    def __init__(self) -> None:
        super().__init__(max_header_list_size=DECODED_LIMIT_BYTES)

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:
        """Return the fields in `data` as bytes, whatever `raw` says."""
        entries = self.header_table.dynamic_entries
        fields: list[HeaderTuple] = []
        at, end, size, changes = 0, len(data), 0, 0
        while at < end:
            first = data[at]
            if first >= 0x80:
                index, at = first & 0x7F, at + 1
                if index == 0x7F:
                    index, at = _integer(data, at, 0x7F)
                if 0 < index < _FIRST_DYNAMIC:
                    field = _STATIC[index - 1]
                elif index and index - _FIRST_DYNAMIC < len(entries):
                    field = HeaderTuple(*entries[index - _FIRST_DYNAMIC])
                else:
                    raise HPACKDecodingError(f"cannot find the entry {index} of the table")
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HPACKDecodingError("the size of the table changes behind a field")
                changes += 1
                if changes > MOST_SIZE_CHANGES:
                    raise HPACKDecodingError("the size of the table changes too often")
                at += self._update_encoding_context(data[at : at + 8])
                continue
            else:
                field, at = self._literal(data, at, first)
            fields.append(field)
            size += len(field[0]) + len(field[1]) + FIELD_OVERHEAD_BYTES
            if size > self.max_header_list_size or len(fields) > DECODED_LIMIT_FIELDS:
                raise OversizedHeaderListError("a block of fields stands for too much")
        self._assert_valid_table_size()
        return fields

    def _literal(self, data: bytes, at: int, first: int) -> tuple[HeaderTuple, int]:
        mask = 0x3F if first & 0x40 else 0x0F
        index = first & mask
        at += 1
        if index == mask:
            index, at = _integer(data, at, mask)
        if index:
            name = self.header_table.get_by_index(index)[0]
        else:
            name, at, coded = _string(data, at)
            if coded:
                name = _name(name) if len(name) <= _MOST_NAME_BYTES else bytes(decode_huffman(name))
        value, at, coded = _string(data, at)
        if coded:
            value = bytes(decode_huffman(value))
        if first & 0x40:
            self.header_table.add(name, value)
        elif first & 0x10:
            return NeverIndexedHeaderTuple(name, value), at
        return HeaderTuple(name, value), at


class Encoder(hpack.Encoder):
    """Writes header blocks; takes hpack's place within h2.

    Nothing is coded by Huffman: that saves bytes where there are enough of them, and costs both
    sides the time of all the rest. What must not be indexed is a literal, whatever the table has.
    """

    def __init__(self) -> None:
        super().__init__()
        # When each entry came, and each name last: those that have left the table are too old.
        self._entries: dict[Field, int] = {}
        self._names: dict[bytes, int] = {}
        self._count = 0

    def encode(  # type: ignore[override]  # h2 passes pairs of bytes, and nothing else
        self, headers: Iterable[Field], huffman: bool = False
    ) -> bytes:
        """Return `headers`, pairs of bytes, as a block."""
        table = self.header_table
        block = bytearray()
        if table.resized:
            block += self._encode_table_size_change()
            table.resized = False
        for field in headers:
            if type(field) is NeverIndexedHeaderTuple:
                self._put(block, field, 0x10, 0x0F)
                continue
            index = _STATIC_FIELDS.get(field) or self._place(self._entries.get(field))
            if index:
                _put_integer(block, 0x80, 0x7F, index)
                continue
            if len(field[0]) + len(field[1]) + FIELD_OVERHEAD_BYTES > table.maxsize:
                self._put(block, field, 0x00, 0x0F)  # it would only empty the table
                continue
            self._put(block, field, 0x40, 0x3F)
            table.add(field[0], field[1])
            self._count += 1
            self._entries[field] = self._names[field[0]] = self._count
            if len(self._entries) > 2 * len(table.dynamic_entries) + _FEW_ENTRIES:
                self._forget_old()
        return bytes(block)

    def _put(self, block: bytearray, field: Field, kind: int, mask: int) -> None:
        name, value = field
        index = _STATIC_NAMES.get(name) or self._place(self._names.get(name))
        _put_integer(block, kind, mask, index)
        if not index:
            _put_integer(block, 0, 0x7F, len(name))
            block += name
        _put_integer(block, 0, 0x7F, len(value))
        block += value

    def _place(self, number: int | None) -> int:
        """Return the index of what came as `number`, 0 if the table has it no more."""
        if number is None:
            return 0
        place = self._count - number
        return _FIRST_DYNAMIC + place if place < len(self.header_table.dynamic_entries) else 0

    def _forget_old(self) -> None:
        self._entries = {k: n for k, n in self._entries.items() if self._place(n)}
        self._names = {k: n for k, n in self._names.items() if self._place(n)}


@lru_cache(maxsize=1024)
def _name(coded: bytes) -> bytes:
    return bytes(decode_huffman(coded))


def _string(data: bytes, at: int) -> tuple[bytes, int, bool]:
    if at >= len(data):
        raise HPACKDecodingError("the block ends within a field")
    first = data[at]
    length, at = first & 0x7F, at + 1
    if length == 0x7F:
        length, at = _integer(data, at, 0x7F)
    string = data[at : at + length]
    if len(string) != length:
        raise HPACKDecodingError("the block ends within a field")
    return string, at + length, first >= 0x80


def _integer(data: bytes, at: int, number: int) -> tuple[int, int]:
    for shift in range(0, _MOST_BITS + 1, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise HPACKDecodingError("an integer of the block is too long, or has no end")


def _put_integer(block: bytearray, kind: int, mask: int, number: int) -> None:
    if number < mask:
        block.append(kind | number)
        return
    block.append(kind | mask)
    number -= mask
    while number >= 0x80:
        block.append(number & 0x7F | 0x80)
        number >>= 7
    block.append(number)
