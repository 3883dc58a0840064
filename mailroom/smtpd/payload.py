"""Reads the payload of a mail, in large chunks."""

import asyncio
from collections.abc import Callable

#: The most that is read at once.
CHUNK_BYTES = 262_144

_LONE_DOT = b".\r\n"
_END = b"\r\n" + _LONE_DOT
_STARTS_OF_END = tuple(_END[:length] for length in range(1, len(_END)))


async def read_payload(
    reader: asyncio.StreamReader, most: int, *, on_chunk: Callable[[], object]
) -> bytes | None:
    """Return a mail without dot-stuffing (RFC 5321, 4.5.2); None if it is larger than `most` bytes.

    Ends only at a dot between two CRLFs. `on_chunk` is called for each chunk, so that a slow mail is not
    taken for a client that has gone.
    """
    # The final dot may be the very first line, with no line end before it. No byte after the final dot may be
    # read: the next command may be there already.
    chunk = await reader.readexactly(len(_LONE_DOT))
    while chunk.endswith(_STARTS_OF_END) and chunk != _LONE_DOT and not chunk.endswith(_END):
        chunk += await reader.readexactly(1)
    chunks, size = [chunk], len(chunk)
    while chunk != _LONE_DOT and not chunk.endswith(_END):
        try:
            chunk = await reader.readuntil(_END)
        except asyncio.LimitOverrunError as error:
            chunk = await reader.readexactly(error.consumed)
        on_chunk()
        size += len(chunk)
        if size > most + len(_END):
            chunks.clear()  # Read on all the same: the reply is due only after the final dot.
        else:
            chunks.append(chunk)
    if not chunks:
        return None
    payload = b"".join(chunks).removesuffix(_LONE_DOT)
    return payload.removeprefix(b".").replace(b"\r\n.", b"\r\n")
