"""Check the structure of MessagePack that may be hostile.

The library allocates memory for as many elements as an array announces, at every level of nesting,
so a few kilobytes can request gigabytes. And one byte, an empty map, can become an element of
seventy bytes. A suspicious head is therefore scanned first, without building anything, and no
further than the last allowed element.
"""

from protocols.errors import RemoteProtocolError

_NOT_CONTAINERS = bytes(b for b in range(256) if not (0x80 <= b <= 0x9F or 0xDC <= b <= 0xDF))
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {
    code: 1 << (code & 3) for code in range(0xCC, 0xD4)
}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LISTS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_SHORT = {code: code & 31 for code in range(0xA0, 0xC0)}
_SMALL = dict.fromkeys((*range(0x80), *range(0xE0, 0x100)), 0)
_PLAIN = [1 + ({**_FIXED, **_SHORT, **_SMALL}).get(code, -1) for code in range(256)]
"""By first byte: the size of a value without elements or a length field; 0 for other values."""


def suspicious(data: bytes, nesting: int) -> bool:
    """False if a quick look shows that `data` contains no big or deep container."""
    containers = data.translate(None, _NOT_CONTAINERS)
    return len(containers) > nesting or any(code >= 0xDC for code in containers)


def check_structure(data: bytes, nesting: int, most: int) -> None:
    """Scan MessagePack without building it: it must be complete, nested within the limit, have at
    most `most` elements in all containers together, and every length in bounds.

    Raises:
        RemoteProtocolError: one of these does not hold.
    """
    end, at, announced = len(data), 0, 0
    open_items = [1]  # elements still to come, innermost container last
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        if at >= end:
            raise RemoteProtocolError("frame header ends inside a value")
        size, items = _PLAIN[data[at]], -1
        if size:
            at += size
        else:
            items, at = _announced(data, at)
        if at > end or items > end - at:
            raise RemoteProtocolError("frame header announces more than it holds")
        if items >= 0:
            announced += items
            if announced > most:
                raise RemoteProtocolError(f"frame header holds more than {most} elements")
            open_items.append(items)
            if len(open_items) > nesting + 1:
                raise RemoteProtocolError(f"frame header is nested deeper than {nesting}")
    if at != end:
        raise RemoteProtocolError("frame header is followed by more bytes")


def _announced(data: bytes, at: int) -> tuple[int, int]:
    """The announced number of elements of the container at `at` (-1: it is text or bytes), and
    where they, or the data after it, begin.
    """
    code, at = data[at], at + 1
    if code in _SIZED:
        width = _SIZED[code]
        return -1, at + width + int.from_bytes(data[at : at + width], "big")
    if code in _LISTS:
        width, per_item = _LISTS[code]
        return int.from_bytes(data[at : at + width], "big") * per_item, at + width
    if 0x80 <= code < 0xA0:
        return (code & 15) * (2 if code < 0x90 else 1), at
    raise RemoteProtocolError(f"frame header holds an extension type (0x{code:02x})")
