"""Seeded corpus of malformed videos: good files that were damaged, or given false headers."""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests import corpus, media

MAX_BYTES = 250_000

Mutate = Callable[[bytearray, np.random.Generator], bytes]


def bit_flips(data: bytearray, rng: np.random.Generator) -> bytes:
    for position in rng.integers(0, len(data), rng.integers(1, 40)):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def header_noise(data: bytearray, rng: np.random.Generator) -> bytes:
    """Change bytes of the metadata: in MP4 the index, elsewhere the first kilobyte."""
    start = max(data.find(b"moov"), 0)
    for position in rng.integers(start, min(start + 1000, len(data)), rng.integers(1, 12)):
        data[position] = rng.integers(256)
    return bytes(data)


def truncation(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: rng.integers(0, len(data))])


def hole(data: bytearray, rng: np.random.Generator) -> bytes:
    """Remove a part, so that all offsets behind it are wrong."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 400))
    return bytes(data[:start] + data[start + length :])


def repetition(data: bytearray, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2000))
    return bytes(data[: start + length] + data[start:])


def extreme_numbers(data: bytearray, rng: np.random.Generator) -> bytes:
    """Replace aligned words by numbers that may overflow."""
    for _ in range(int(rng.integers(1, 4))):
        position = int(rng.integers(len(data) // 4)) * 4
        value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1_000_000_000]))
        data[position : position + 4] = struct.pack(">I", value)
    return bytes(data)


def swapped_kind(data: bytearray, rng: np.random.Generator) -> bytes:
    """Replace the first bytes by the signature of another file type."""
    heads = (b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08\x00", b"GIF89a", b"RIFF\xff\xff\xff\xffAVI ", b"OggS")
    head = heads[int(rng.integers(len(heads)))]
    return head + bytes(data[len(head) :])


def insertion(data: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    return bytes(data[:start]) + rng.bytes(int(rng.integers(1, 400))) + bytes(data[start:])


def swapped_blocks(data: bytearray, rng: np.random.Generator) -> bytes:
    """Exchange two neighbouring parts, as when parts of a download arrive in the wrong order."""
    first, second, third = sorted(int(position) for position in rng.integers(0, len(data), 3))
    return bytes(data[:first] + data[second:third] + data[first:second] + data[third:])


MUTATIONS: tuple[Mutate, ...] = (
    bit_flips, header_noise, truncation, hole, repetition, extreme_numbers, swapped_kind, insertion, swapped_blocks,
)  # fmt: skip


def originals(folder: Path) -> dict[str, bytes]:
    """Return small good videos, one per container and codec."""
    return {name: data for name in corpus.CONTAINERS if len(data := corpus.good(folder, name)) < MAX_BYTES}


def box_value(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """Return an MP4 with other bytes at an offset into a box, counted from the end of its name."""
    at = data.index(box) + 4 + offset
    return data[:at] + value + data[at + len(value) :]


def false_headers(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files with impossible headers, and files that are not videos."""
    good = media.write(folder / "good.mp4", num_frames=12).read_bytes()
    most = struct.pack(">I", 0xFFFFFFFF)
    picture = 24  # of an entry of stsd: 6 reserved, 2 index, 16 reserved; then width and height
    yield "65,535 x 65,535 in the sample entry", box_value(good, b"avc1", picture, b"\xff\xff\xff\xff")
    hundred_thousand = struct.pack(">II", 100_000 << 8, 100_000 << 8)
    yield "100,000 x 100,000 in the track", box_value(good, b"tkhd", 76, hundred_thousand)
    yield "h264 of 100,000 x 100,000", large_h264(100_000)
    yield "avi of 100,000 x 100,000", avi_with_size(folder, 100_000)
    yield "1e9 frames of one duration", box_value(good, b"stts", 8, struct.pack(">II", 1_000_000_000, 1))
    yield "2e9 durations", box_value(good, b"stts", 4, struct.pack(">I", 0x7FFFFFF0))
    yield "1e9 sample sizes", box_value(good, b"stsz", 8, struct.pack(">I", 1_000_000_000))
    yield "1e9 samples of one size", box_value(good, b"stsz", 4, struct.pack(">II", 16, 1_000_000_000))
    yield "4e9 chunk offsets", box_value(good, b"stco", 4, most)
    yield "endless movie", box_value(good, b"mvhd", 16, most)
    yield "endless track", box_value(good, b"mdhd", 16, most)
    yield "frames of 4e9 ticks", box_value(good, b"stts", 12, most)
    yield "no ticks a second", box_value(good, b"mdhd", 12, bytes(4))
    yield "endless movie box", box_value(good, b"moov", -8, most)
    yield "box of size zero", box_value(good, b"moov", -8, bytes(4))
    yield "nested boxes", nested_boxes(20_000)
    yield "zero frames", media.no_frames(folder / "none.mp4").read_bytes()
    yield "zero frames, webm", media.no_frames(folder / "none.mkv").read_bytes()
    yield "sound alone", media.audio_only(folder / "sound.mp4").read_bytes()
    yield "sound alone, mkv", media.audio_only(folder / "sound.mkv").read_bytes()
    yield "empty", b""
    yield "one byte", b"\x00"
    yield "zeros", bytes(100_000)
    yield "a start code and nothing", b"\x00\x00\x00\x01"
    yield "transport packets of nothing", (b"\x47" + bytes(187)) * 400
    yield "png", png(100_000, 100_000)
    yield (
        "gif of 65,535 x 65,535",
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(4) + b"\xff" * 4 + b"\x00\x02\x00;",
    )
    yield "zip", archive(good)
    yield "tar.gz", compressed(good)
    yield "zip bomb", archive(bytes(30_000_000))
    yield "playlist", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    yield "concat list", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "html", b"<!doctype html><title>clip.mp4</title>"
    yield "y4m of 100,000 x 100,000", b"YUV4MPEG2 W100000 H100000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000)
    yield "y4m at 4e9 frames per second", b"YUV4MPEG2 W16 H16 F4294967295:1 C420\n" + (b"FRAME\n" + bytes(384)) * 20
    yield "y4m at no frames per second", b"YUV4MPEG2 W16 H16 F0:0 C420\n" + (b"FRAME\n" + bytes(384)) * 20


def mutants(folder: Path, number: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield mutated videos of all containers; equal arguments give equal files."""
    rng, good = np.random.default_rng(seed), originals(folder)
    pairs = list(itertools.product(good, MUTATIONS))
    order = itertools.chain.from_iterable(rng.permutation(len(pairs)) for _ in itertools.count())
    for count, index in enumerate(itertools.islice(order, number)):
        name, mutate = pairs[index]
        yield f"{mutate.__name__} of {name}, {count}", mutate(bytearray(good[name]), rng)


def large_h264(side: int) -> bytes:
    """Return an H.264 stream whose sequence parameter set claims ``side x side`` pixels, with an empty slice."""
    blocks = side // 16 - 1
    sequence = h264_bits(f"66/8 192/8 51/8 0 0 2 1 0/1 {blocks} {blocks} 1/1 1/1 0/1 0/1")
    picture = h264_bits("0 0 0/2 0 0/1 0 0 0/3 0 0 0 0/3")
    start = b"\x00\x00\x00\x01"
    return start + b"\x67" + sequence + start + b"\x68" + picture + start + b"\x65\x88\x84" + b"\xff" * 400


def h264_bits(text: str) -> bytes:
    """Pack values as H.264 does: ``VALUE/WIDTH`` or exponential Golomb codes, then the stop bit."""
    bits = ""
    for item in text.split():
        value, _, width = item.partition("/")
        code = int(value) if width else int(value) + 1
        bits += f"{code:b}".rjust(int(width) if width else 2 * code.bit_length() - 1, "0")
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def avi_with_size(folder: Path, side: int) -> bytes:
    data = bytearray(media.write(folder / "large.avi", codec="mpeg4", num_frames=6).read_bytes())
    data[64:72] = struct.pack("<II", side, side)  # the main header's picture
    at = data.index(b"strf") + 12
    data[at : at + 8] = struct.pack("<ii", side, side)
    return bytes(data)


def nested_boxes(depth: int) -> bytes:
    boxes = b"".join(struct.pack(">I", 8 * (depth - level)) + b"moov" for level in range(depth))
    return b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + boxes


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def archive(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("clip.mp4", content)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        entry = tarfile.TarInfo("clip.mp4")
        entry.size = len(content)
        packed.addfile(entry, io.BytesIO(content))
    return file.getvalue()
