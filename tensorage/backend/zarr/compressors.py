"""Compressors of chunks, by numcodecs: one buffer in, one out. Safe to use from many threads at once."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from tensorage.indexing.selection import Positions

__all__ = [
    "BLOSC_HEADER",
    "CUT_OFF",
    "BloscBuffers",
    "Compressor",
    "CorruptChunkError",
    "ZstdFrames",
    "check_blosc_header",
    "end_of_frame",
    "frame_content_size",
    "frames_content_size",
    "inflate_frames",
    "joined_room",
]

#: First bytes of a frame of zstd.
ZSTD_MAGIC = (0xFD2FB528).to_bytes(4, "little")

#: First bytes of a skippable frame of zstd, without the last four bits.
SKIPPABLE_MAGIC = 0x184D2A50

#: End of a message about bytes that are cut off.
CUT_OFF = "it ends too early, or is none that its codecs write"

#: A frame of one empty block, whose header does not say the size of the content.
_EMPTY_FRAME = ZSTD_MAGIC + bytes.fromhex("0058010000")

#: Most bytes of the header of a frame of zstd.
MAX_FRAME_HEAD = 18

#: Levels of compression that zstd has.
ZSTD_LEVELS = range(-131072, 23)

#: Levels of compression that Blosc has.
BLOSC_LEVELS = range(10)

BLOSC_SHUFFLES: Mapping[str, int] = {
    "noshuffle": numcodecs.blosc.NOSHUFFLE,
    "shuffle": numcodecs.blosc.SHUFFLE,
    "bitshuffle": numcodecs.blosc.BITSHUFFLE,
}

#: Header of a Blosc 1 buffer: versions, flags, typesize, bytes without compression, bytes of a block, bytes in all.
BLOSC_HEADER = struct.Struct("<BBBBIII")

#: Flag of a Blosc 1 buffer whose content is not compressed.
BLOSC_COPIED = 2

#: Place of a block in a Blosc 1 buffer. The places of all blocks follow the header.
BLOCK_START = np.dtype("<i4")

#: Header of a Blosc 1 buffer, and the place of its only block. The kind is versions, flags and typesize.
ONE_BLOCK = np.dtype(
    [
        ("kind", "<u4"),
        ("content_bytes", "<u4"),
        ("block_bytes", "<u4"),
        ("payload_bytes", "<u4"),
        ("start", BLOCK_START),
    ]
)

#: Most bytes that are decompressed together: offsets within a buffer have 31 bits.
MAX_JOINED_BYTES = 256 * 1024 * 1024

# There are many chunks, and one thread for each. Blosc's own threads would not survive a fork. Zarr does the same.
numcodecs.blosc.use_threads = False


class CorruptChunkError(Exception):
    """The bytes of a chunk or an index are not those that were written. None of them may be used."""


class Compressor(Protocol):
    """A codec that turns bytes into fewer."""

    def encode(self, elements: npt.NDArray[np.uint8]) -> bytes: ...

    def decode(self, payload: memoryview, out: npt.NDArray[np.uint8]) -> None:
        """Decompress a payload that fills `out` exactly.

        Raises
        ------
        CorruptChunkError
            If the payload does not. The content of `out` is then of no use.
        """
        ...

    def decode_together(
        self, data: npt.NDArray[np.uint8], starts: Positions, lengths: Positions, out: npt.NDArray[np.uint8]
    ) -> bool:
        """Decompress many payloads with little work of Python for each.

        Parameters
        ----------
        data
            Memory with the payloads. The bytes before the first of them, at least `joined_room`, are written over.
        starts, lengths
            Place of each payload in `data`.
        out
            Room for the content of each payload, a row each.

        Returns
        -------
        bool
            False if the payloads have to be decompressed one by one, be it that one is damaged. The content of `out` is
            then of no use.
        """
        ...


def joined_room(count: int) -> int:
    """Return the bytes that `decode_together` needs before the payloads of `count` chunks."""
    return BLOSC_HEADER.size + BLOCK_START.itemsize * count


@dataclass(frozen=True)
class ZstdFrames:
    """The codec ``zstd``."""

    zstd: Zstd

    @classmethod
    def parse(cls, configuration: Mapping[str, Any]) -> ZstdFrames | None:
        level, checksum = configuration.get("level", 0), configuration.get("checksum", False)
        if type(level) is not int or level not in ZSTD_LEVELS or type(checksum) is not bool:
            return None
        return cls(Zstd(level=level, checksum=checksum))

    def encode(self, elements: npt.NDArray[np.uint8]) -> bytes:
        # The function itself: for a small chunk, the codec's method takes half as long again.
        encoded: bytes = numcodecs.zstd.compress(elements, self.zstd.level, self.zstd.checksum)
        return encoded

    def decode_together(
        self, data: npt.NDArray[np.uint8], starts: Positions, lengths: Positions, out: npt.NDArray[np.uint8]
    ) -> bool:
        """Decompress frames that all say that they fill a row of `out`: see `BloscBuffers.decode_together`."""
        head = data[starts[0] : starts[0] + MAX_FRAME_HEAD].tobytes()
        if frame_content_size(memoryview(head)) != out.shape[1] or int(lengths.min()) < len(head):
            return False
        heads = data[starts[:, np.newaxis] + np.arange(sum(content_size_field(head[4])))]
        if not (heads == heads[0]).all():
            return False
        decompress = numcodecs.zstd.decompress
        try:
            for row, start, end in zip(out, starts.tolist(), (starts + lengths).tolist(), strict=True):
                decompress(data[start:end], row)
        except (RuntimeError, ValueError):
            return False
        return True

    def decode(self, payload: memoryview, out: npt.NDArray[np.uint8]) -> None:
        content_size = frame_content_size(payload)
        if content_size is not None and content_size > out.nbytes:
            raise CorruptChunkError(f"a chunk of {out.nbytes} bytes claims to have {content_size}")
        inflate_frames(payload, out, has_one_size=content_size == out.nbytes)


@dataclass(frozen=True)
class BloscBuffers:
    """The codec ``blosc``."""

    cname: bytes
    clevel: int
    shuffle: int
    blocksize: int
    typesize: int

    @classmethod
    def parse(cls, configuration: Mapping[str, Any]) -> BloscBuffers | None:
        given = {"typesize": 1, "blocksize": 0, **configuration}
        numbers = [given["typesize"], given["blocksize"], given.get("clevel")]
        if any(type(number) is not int for number in numbers):
            return None
        if (
            given["clevel"] not in BLOSC_LEVELS
            or not 1 <= given["typesize"] <= numcodecs.blosc.MAX_TYPESIZE
            or given["blocksize"] < 0
            or given.get("shuffle") not in BLOSC_SHUFFLES
            or given.get("cname") not in numcodecs.blosc.list_compressors()
        ):
            return None
        shuffle = BLOSC_SHUFFLES[given["shuffle"]]
        return cls(given["cname"].encode(), given["clevel"], shuffle, given["blocksize"], given["typesize"])

    def encode(self, elements: npt.NDArray[np.uint8]) -> bytes:
        encoded: bytes = numcodecs.blosc.compress(
            elements, self.cname, self.clevel, self.shuffle, self.blocksize, self.typesize
        )
        return encoded

    def decode(self, payload: memoryview, out: npt.NDArray[np.uint8]) -> None:
        content_bytes = check_blosc_header(payload)
        if content_bytes != out.nbytes:
            raise CorruptChunkError(
                f"a Blosc buffer of {len(payload)} bytes, for a chunk of {out.nbytes}, claims to hold {content_bytes}"
            )
        try:
            # The function itself: the codec's method checks again, in half the time that a small chunk takes.
            numcodecs.blosc.decompress(payload, out)
        except (RuntimeError, ValueError) as error:
            raise CorruptChunkError(f"Blosc does not decompress {len(payload)} bytes: {error}") from error

    def decode_together(
        self, data: npt.NDArray[np.uint8], starts: Positions, lengths: Positions, out: npt.NDArray[np.uint8]
    ) -> bool:
        """Decompress buffers of one block each at once, as if they were the blocks of one buffer.

        A buffer of Blosc says where each of its blocks starts, and does not mind what lies between them: here, the
        headers of the buffers that the blocks are from.
        """
        count, nbytes = out.shape
        room = joined_room(count)
        if int(lengths.min()) < ONE_BLOCK.itemsize or int(starts.min()) < room:
            return False
        heads = data[starts[:, np.newaxis] + np.arange(ONE_BLOCK.itemsize)].view(ONE_BLOCK)[:, 0]
        fits = (
            (heads["kind"] == heads["kind"][0])
            & (heads["content_bytes"] == nbytes)
            & (heads["block_bytes"] == nbytes)
            & (heads["payload_bytes"] == lengths)
            & (heads["start"] == ONE_BLOCK.itemsize)
        )
        version, codec_version, flags, typesize = data[starts[0] : starts[0] + 4].tolist()
        if not fits.all() or flags & BLOSC_COPIED or out.nbytes > MAX_JOINED_BYTES:
            return False
        whole = data[: int((starts + lengths).max())]
        head = (version, codec_version, flags, typesize, out.nbytes, nbytes, whole.nbytes)
        BLOSC_HEADER.pack_into(whole.data, 0, *head)
        block_starts = (starts + ONE_BLOCK.itemsize).astype(BLOCK_START)
        whole[BLOSC_HEADER.size : room] = block_starts.view(np.uint8)
        try:
            numcodecs.blosc.decompress(whole, out)
        except (RuntimeError, ValueError):
            return False
        return True


def check_blosc_header(payload: memoryview) -> int:
    """Read the number of bytes that a Blosc buffer claims to decompress to.

    Raises
    ------
    CorruptChunkError
        If the payload is no buffer, or has another length than it claims.
    """
    if len(payload) < BLOSC_HEADER.size:
        raise CorruptChunkError(f"{len(payload)} bytes have no room for the header of a Blosc buffer")
    *_, content_bytes, _, payload_bytes = BLOSC_HEADER.unpack_from(payload)
    if payload_bytes != len(payload):
        raise CorruptChunkError(f"a Blosc buffer of {len(payload)} bytes claims to have {payload_bytes}")
    return int(content_bytes)


def inflate_frames(payload: memoryview, out: npt.NDArray[np.uint8], *, has_one_size: bool = False) -> None:
    """Decompress frames of zstd, which together have to fill `out` exactly. No other memory is taken.

    Parameters
    ----------
    has_one_size
        True if the first frame says that it has as many bytes as `out`.

    Raises
    ------
    CorruptChunkError
        If the frames have fewer bytes, or more.
    """
    # numcodecs believes the size in the first frame, and leaves the rest of `out` as it was. If the first frame has no
    # size, numcodecs fills `out` or raises.
    frames = payload if has_one_size else b"".join([_EMPTY_FRAME, payload])
    try:
        numcodecs.zstd.decompress(frames, out)
    except (RuntimeError, ValueError, MemoryError, OverflowError) as error:
        raise CorruptChunkError(
            f"zstd does not decompress {len(payload)} bytes to a chunk's {out.nbytes}: {error}"
        ) from error


def frames_content_size(payload: memoryview) -> int | None:
    """Add up the bytes that frames of zstd decompress to, if each of them says so."""
    total = at = 0
    while at < len(payload):
        if not is_skippable(payload, at):
            size = frame_content_size(payload[at:])
            if size is None:
                return None
            total += size
        at = end_of_frame(payload, at)
    return total


def is_skippable(data: memoryview, at: int) -> bool:
    """Tell whether a skippable frame of zstd, with content that is not for the decoder, begins at a byte."""
    return int.from_bytes(data[at : at + 4], "little") & ~0xF == SKIPPABLE_MAGIC


def end_of_frame(data: memoryview, at: int) -> int:
    """Find the end of a frame of zstd, by the lengths of its blocks (RFC 8878, section 3.1.1).

    Raises
    ------
    CorruptChunkError
        If no frame begins there, or its headers are cut off.
    """
    if is_skippable(data, at):
        return at + 8 + _read_number(data, at + 4, 4)
    if data[at : at + 4] != ZSTD_MAGIC:
        raise CorruptChunkError(f"no frame of zstd begins at byte {at} of {len(data)}")
    descriptor = _read_number(data, at + 4, 1)
    at += sum(content_size_field(descriptor))
    is_last = False
    while not is_last:
        block = _read_number(data, at, 3)
        is_last = bool(block & 1)
        is_repeated_byte = block >> 1 & 3 == 1
        at += 3 + (1 if is_repeated_byte else block >> 3)
    return at + (4 if descriptor & 4 else 0)


def _read_number(data: memoryview, at: int, nbytes: int) -> int:
    field = data[at : at + nbytes]
    if len(field) < nbytes:
        raise CorruptChunkError(f"of {len(data)} bytes: {CUT_OFF}")
    return int.from_bytes(field, "little")


def content_size_field(descriptor: int) -> tuple[int, int]:
    """Return the offset and the length of the content size in the header of a frame of zstd.

    The byte behind the magic number, the descriptor, tells both (RFC 8878, section 3.1.1.1). The field is the last one
    of the header. If its length is 0, the frame does not say the size.
    """
    is_single_segment = bool(descriptor & 0x20)
    dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    size_bytes = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    return 5 + (not is_single_segment) + dictionary_bytes, size_bytes


def frame_content_size(frame: memoryview) -> int | None:
    """Read the number of bytes that a frame of zstd decompresses to, if it says so (RFC 8878, section 3.1.1.1)."""
    if len(frame) < 6 or frame[:4] != ZSTD_MAGIC:
        return None
    at, size_bytes = content_size_field(frame[4])
    field = frame[at : at + size_bytes]
    if len(field) < max(size_bytes, 1):
        return None
    # A field of two bytes counts from 256, since smaller sizes have a field of one byte.
    return int.from_bytes(field, "little") + (256 if size_bytes == 2 else 0)
