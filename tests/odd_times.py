"""Small videos whose packets are not simply their pictures, one after the other, from zero on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tests import media

NUM_FRAMES = 48
RATE = Fraction(24)
TICK = Fraction(1, 1000)

Shown = list[tuple[int, Fraction]]
"""Pictures that a video shows: number, and second at which each appears."""


def steady(numbers: Sequence[int] = range(NUM_FRAMES)) -> Shown:
    """Return pictures that appear one after the other at the constant rate."""
    return [(number, index / RATE) for index, number in enumerate(numbers)]


def write(path: Path, stamps: Sequence[int] | None = None, container: str | None = None, **changes: Any) -> Path:
    """Write numbered pictures, at timestamps in milliseconds if these are given."""
    values: dict[str, Any] = {"codec": "libx264", "pix_fmt": "yuv420p", "size": (96, 64), "options": {"bf": "0"}}
    values |= changes
    base = TICK if stamps is not None else 1 / values.get("rate", RATE)
    with av.open(str(path), "w", format=container, options=values.get("muxer", {})) as target:
        stream = target.add_stream(values["codec"], rate=values.get("rate", RATE))
        assert isinstance(stream, VideoStream)
        (stream.width, stream.height), stream.pix_fmt = values["size"], values["pix_fmt"]
        stream.options = values["options"]
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        for index, picture in enumerate(media.pictures(values.get("num_frames", NUM_FRAMES), values["size"])):
            frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=values["pix_fmt"])
            frame.pts, frame.time_base = index if stamps is None else stamps[index], base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def copied(packet: Packet[VideoStream], shift: int = 0, data: bytes | None = None) -> Packet[VideoStream]:
    """Return a packet that can be written to another file, ``shift`` ticks later."""
    copy: Any = Packet(bytes(packet) if data is None else data)
    assert packet.pts is not None
    copy.pts = packet.pts + shift
    copy.dts = copy.pts if packet.dts is None else packet.dts + shift
    copy.duration, copy.time_base, copy.is_keyframe = packet.duration, packet.time_base, packet.is_keyframe
    result: Packet[VideoStream] = copy
    return result


def remux(
    source: Path,
    target: Path,
    change: Callable[[list[Packet[VideoStream]]], list[Packet[VideoStream]]],
    container: str | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write the packets of a file, changed, to another one without coding them again."""
    with av.open(str(source)) as old, av.open(str(target), "w", format=container, options=muxer or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in change([packet for packet in old.demux(video=0) if packet.size]):
            packet.stream = stream
            new.mux(packet)
    return target


def hidden(folder: Path) -> tuple[Path, Shown]:
    """VP8 with packets that show nothing, as alternate reference frames."""
    source = write(folder / "plain.webm", codec="libvpx", options={"deadline": "realtime", "g": "1"})

    def hide(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        result = []
        for number, packet in enumerate(packets):
            if number % 12 == 6:
                data = bytearray(bytes(packet))
                data[0] &= ~0x10
                result.append(copied(packet, -1, bytes(data)))
            result.append(copied(packet))
        return result

    return remux(source, folder / "hidden.webm", hide), steady()


def held(folder: Path, suffix: str, middle: bool) -> tuple[Path, Shown]:
    """A recording that writes no picture while nothing changes, at its end or in its middle."""
    codec, pix_fmt, options = {
        ".webm": ("libvpx", "yuv420p", {"deadline": "realtime", "auto-alt-ref": "0"}),
        ".gif": ("gif", "rgb8", {}),
    }.get(suffix, ("libx264", "yuv420p", {"bf": "0"}))
    tick = 10 if suffix == ".gif" else 1
    stamps = [round(1000 * index / RATE / tick) * tick for index in range(NUM_FRAMES)]
    if middle:
        stamps = [stamp + (3000 if index >= 30 else 0) for index, stamp in enumerate(stamps)]
    plain = write(folder / f"plain{suffix}", stamps, codec=codec, pix_fmt=pix_fmt, options=options)

    def hold(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        result = [copied(packet) for packet in packets]
        assert packets[-1].time_base is not None
        if not middle:
            result[-1].duration = int(5 / packets[-1].time_base)
        return result

    shown = [(index, stamp * TICK) for index, stamp in enumerate(stamps)]
    return remux(plain, folder / f"held{suffix}", hold), shown


def grows(folder: Path) -> tuple[Path, Shown]:
    """A call whose picture grows after a second."""
    options = {"deadline": "realtime", "auto-alt-ref": "0"}
    small = write(folder / "small.webm", codec="libvpx", options=options)
    large = write(folder / "large.webm", codec="libvpx", options=options | {"g": "24"}, size=(192, 128))
    with av.open(str(large)) as other:
        later = [packet for packet in other.demux(video=0) if packet.size]

    def join(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        key = next(number for number in range(24, NUM_FRAMES) if later[number].is_keyframe)
        return [copied(packet) for packet in [*packets[:key], *later[key:]]]

    return remux(small, folder / "grows.webm", join), steady()


def leap(folder: Path, leap_ms: int, first: int = 30) -> tuple[Path, Shown]:
    """A clock that leaps before picture ``first``, as that of a recorder that is set or starts again."""
    stamps = [round(1000 * index / RATE) + (leap_ms if index >= first else 0) for index in range(NUM_FRAMES)]
    return write(folder / "leap.mkv", stamps, codec="ffv1", options={}), steady()


def wraps(folder: Path) -> tuple[Path, Shown]:
    """FLV whose counter of 32 bits in milliseconds wraps, as that of a stream that has run for 25 days."""
    path = write(folder / "wraps.flv", options={"bf": "0"})
    data = bytearray(path.read_bytes())
    position, start = 13, 2**31 - 1000
    while position < len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        stamp = int.from_bytes(bytes([data[position + 7], *data[position + 4 : position + 7]]), "big")
        shifted = ((stamp + start) % 2**32).to_bytes(4, "big")
        data[position + 4 : position + 8] = bytes([*shifted[1:], shifted[0]])
        position += 11 + size + 4
    path.write_bytes(data)
    return path, steady()


def wall_clock(folder: Path) -> Path:
    """A first picture at zero, the others at the time of the day: no clock at all."""
    return leap(folder, 1_700_000_000_000, 1)[0]


def cut(folder: Path, codec: str, suffix: str, num_cut: int | None, **options: str) -> tuple[Path, Shown]:
    """The rest of a stream after ``num_cut`` packets, or from its second keyframe on: it is seen from a keyframe on."""
    source = write(folder / f"whole{suffix}", codec=codec, options=options)
    with av.open(str(source)) as whole:
        packets = [packet for packet in whole.demux(video=0) if packet.size]
    start, second = [packet for packet in packets if packet.is_keyframe][:2]
    first_cut = packets.index(second) if num_cut is None else num_cut
    clusters = {"cluster_time_limit": "100"} if suffix in {".mkv", ".webm"} else {}
    target = remux(
        source,
        folder / f"cut{suffix}",
        lambda packets: [copied(packet) for packet in packets[first_cut:]],
        muxer=clusters,
    )
    assert second.pts is not None
    assert start.pts is not None
    assert second.time_base is not None
    return target, steady(range(round((second.pts - start.pts) * second.time_base * RATE), NUM_FRAMES))


def edit_list(folder: Path) -> tuple[Path, Shown]:
    """An edit list that hides the first half second, whose pictures others refer to."""
    source = write(folder / "whole.mp4", options={"bf": "2"})

    def earlier(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        assert packets[0].time_base is not None
        return [copied(packet, -int(Fraction(1, 2) / packets[0].time_base)) for packet in packets]

    path = remux(source, folder / "edited.mp4", earlier, muxer={"avoid_negative_ts": "disabled"})
    return path, steady(range(12, NUM_FRAMES))


def dropped(folder: Path) -> tuple[Path, Shown]:
    """AVI with empty packets where the recorder dropped pictures."""
    numbers = [number for number in range(NUM_FRAMES) if number % 7 != 3]
    source = write(folder / "whole.avi", codec="mpeg4", options={"g": "12"})
    del source
    path = folder / "dropped.avi"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("mpeg4", rate=RATE)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number, picture in enumerate(media.pictures(NUM_FRAMES, (96, 64))):
            if number in numbers:
                frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, 1 / RATE
                target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path, [(number, number / RATE) for number in numbers]


def steps_back(folder: Path, back_ms: int) -> tuple[Path, Shown]:
    """Matroska whose clock steps back in the middle, as a recorder's that is set, and with it the index."""
    muxer = {"write_crc32": "0", "cluster_time_limit": "400"}
    data = bytearray(write(folder / "whole.mkv", options={"bf": "0", "g": "6"}, muxer=muxer).read_bytes())
    cluster = rb"\x1fC\xb6u(?:\x01.{7}|[\x10-\x1f].{3}|[\x20-\x3f]..|[\x40-\x7f].)\xe7[\x81-\x84]"
    entry_of_index = rb"\xbb[\x80-\xff]\xb3[\x81-\x84]"
    for found in re.finditer(b"%b|%b" % (cluster, entry_of_index), bytes(data), re.DOTALL):
        place = slice(found.end(), found.end() + (data[found.end() - 1] & 0x7F))
        stamp = int.from_bytes(data[place], "big")
        if stamp >= 1000:
            data[place] = (stamp - back_ms).to_bytes(place.stop - place.start, "big")
    path = folder / "back.mkv"
    path.write_bytes(data)
    return path, steady()


def fragments_begin_anew(folder: Path) -> tuple[Path, Shown]:
    """Fragments of two recordings behind one header. FFmpeg hides the first fragment of the second recording."""
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    data = bytearray(
        write(folder / "whole.mp4", options={"bf": "0", "g": "6", "sc_threshold": "0"}, muxer=flags).read_bytes()
    )
    places = [slice(found.end(), found.end() + 8) for found in re.finditer(rb"tfdt\x01.{3}", bytes(data), re.DOTALL)]
    assert len(places) == 8
    first = int.from_bytes(data[places[4]], "big")
    for place in places[4:]:
        data[place] = (int.from_bytes(data[place], "big") - first).to_bytes(8, "big")
    path = folder / "anew.mp4"
    path.write_bytes(data)
    return path, steady([*range(24), *range(30, NUM_FRAMES)])


def reordered(folder: Path) -> tuple[Path, Shown]:
    """An edit list that plays the second half before the first, as editors write that do not code anew."""
    flags = {"movflags": "faststart"}
    data = bytearray(
        write(folder / "whole.mp4", options={"bf": "0", "g": "6", "sc_threshold": "0"}, muxer=flags).read_bytes()
    )
    begin = data.index(b"edts") - 4
    time_base = {
        name: int.from_bytes(data[place : place + 4], "big")
        for name in (b"mvhd", b"mdhd")
        if (place := data.index(name) + 16)
    }
    entries = b"".join(
        time_base[b"mvhd"].to_bytes(4, "big") + (time_base[b"mdhd"] * start_s).to_bytes(4, "big") + b"\0\1\0\0"
        for start_s in (1, 0)
    )
    new = (
        (48).to_bytes(4, "big")
        + b"edts"
        + (40).to_bytes(4, "big")
        + b"elst"
        + bytes(4)
        + (2).to_bytes(4, "big")
        + entries
    )
    growth = len(new) - int.from_bytes(data[begin : begin + 4], "big")
    data[begin : begin + len(new) - growth] = new
    for box in (b"moov", b"trak"):
        size = slice(data.index(box) - 4, data.index(box))
        data[size] = (int.from_bytes(data[size], "big") + growth).to_bytes(4, "big")
    table = data.index(b"stco") + 8
    for place in range(table + 4, table + 4 + 4 * int.from_bytes(data[table : table + 4], "big"), 4):
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + growth).to_bytes(4, "big")
    path = folder / "reordered.mp4"
    path.write_bytes(data)
    return path, steady([*range(24, 48), *range(24)])


def joined(folder: Path) -> tuple[Path, Shown]:
    """Two transport streams joined byte by byte: timestamps begin anew."""
    data = write(folder / "one.ts", container="mpegts", num_frames=24).read_bytes()
    path = folder / "joined.ts"
    path.write_bytes(data + data)
    return path, steady([*range(24), *range(24)])


def no_index(folder: Path) -> tuple[Path, Shown]:
    """AVI whose recorder was switched off before it wrote the index."""
    data = write(folder / "whole.avi", options={"bf": "0", "g": "12"}).read_bytes()
    path = folder / "cut.avi"
    path.write_bytes(data[: data.rindex(b"idx1")])
    return path, steady()


def damaged(folder: Path) -> tuple[Path, Shown]:
    """One picture of FFV1 that is noise: the one before is held."""
    source = write(folder / "whole.mkv", codec="ffv1", options={"g": "1"})

    def spoil(packets: list[Packet[VideoStream]]) -> list[Packet[VideoStream]]:
        return [copied(packet, data=b"\xff" * 40 if number == 20 else None) for number, packet in enumerate(packets)]

    shown = [(number, number / RATE) for number in range(NUM_FRAMES) if number != 20]
    return remux(source, folder / "damaged.mkv", spoil), shown


def raw(folder: Path) -> tuple[Path, Shown]:
    """A stream without container and timestamps, whose header says the rate."""
    return write(folder / "raw.h264", container="h264", options={"bf": "2"}), steady()


def late(folder: Path) -> tuple[Path, Shown]:
    """A first picture long after zero."""
    stamps = [90_000 + round(1000 * index / RATE) for index in range(NUM_FRAMES)]
    return write(folder / "late.mkv", stamps), steady()


def jittery(folder: Path) -> tuple[Path, Shown]:
    """A camera that drops every third picture, in Matroska's milliseconds."""
    stamps = [round(1000 * (index + index // 2) / RATE) for index in range(NUM_FRAMES)]
    return write(folder / "jittery.mkv", stamps, options={"bf": "2"}), [
        (index, stamp * TICK) for index, stamp in enumerate(stamps)
    ]


def plain(folder: Path, name: str, container: str | None, **changes: Any) -> tuple[Path, Shown]:
    """A whole file of another container or codec."""
    return write(folder / name, container=container, **changes), steady()


_MPEG2 = {"codec": "mpeg2video"}
_X265 = "x265-params"
CASES: dict[str, Callable[[Path], tuple[Path, Shown]]] = {
    "hidden": hidden,
    **{
        f"held{'-middle' * middle}{suffix}": partial(held, suffix=suffix, middle=middle)
        for suffix in (".mkv", ".webm", ".mp4", ".gif")
        for middle in (False, True)
    },
    "grows": grows,
    "a leap of two hours": partial(leap, leap_ms=7_200_000),
    "a leap of 30 days": partial(leap, leap_ms=30 * 86_400_000),
    "a counter that wraps": wraps,
    "a step back, Matroska": partial(steps_back, back_ms=1000),
    "a small step back, Matroska": partial(steps_back, back_ms=400),
    "fragments that begin anew": fragments_begin_anew,
    "halves in another order": reordered,
    "open group, H.264": lambda folder: cut(
        folder,
        "libx264",
        ".mkv",
        None,
        **{"x264-params": "keyint=12:min-keyint=12:open-gop=1:bframes=2:scenecut=0:b-adapt=0"},
    ),
    "open group, HEVC": lambda folder: cut(
        folder,
        "libx265",
        ".mkv",
        None,
        **{_X265: "keyint=12:min-keyint=12:open-gop=1:bframes=2:scenecut=0:log-level=none"},
    ),
    "within a group, H.264": lambda folder: cut(folder, "libx264", ".ts", 5, bf="0", g="12", sc_threshold="0"),
    "within a group, MPEG-2": lambda folder: cut(folder, "mpeg2video", ".ts", 5, bf="0", g="12"),
    "within a group, MPEG-4": lambda folder: cut(folder, "mpeg4", ".mkv", 5, bf="0", g="12"),
    "within a short group, MPEG-4": lambda folder: cut(folder, "mpeg4", ".mkv", 1, bf="0", g="4"),
    "within a group, VP9": lambda folder: cut(
        folder, "libvpx-vp9", ".webm", 5, g="12", deadline="realtime", **{"cpu-used": "8"}
    ),
    "edit list": edit_list,
    "dropped in AVI": dropped,
    "joined": joined,
    "damaged": damaged,
    "raw": raw,
    "late": late,
    "jittery": jittery,
    "superframes, VP9": lambda folder: plain(
        folder,
        "a.webm",
        None,
        codec="libvpx-vp9",
        options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    ),
    "fragmented": lambda folder: plain(
        folder, "a.mp4", None, options={"bf": "2", "g": "12"}, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "H.264 in AVI": lambda folder: plain(folder, "a.avi", None, options={"bf": "0", "g": "12"}),
    "AVI without its index": no_index,
    "B-frames in AVI": lambda folder: plain(folder, "a.avi", None, options={"bf": "2"}),
    "bare HEVC": lambda folder: plain(
        folder, "a.hevc", "hevc", codec="libx265", options={_X265: "log-level=none:keyint=12"}
    ),
    "bare MPEG-2": lambda folder: plain(folder, "a.m2v", "mpeg2video", codec="mpeg2video", options={"bf": "2"}),
    "bare MPEG-4": lambda folder: plain(folder, "a.m4v", "m4v", codec="mpeg4"),
    "SWF": lambda folder: plain(folder, "a.swf", "swf", codec="flv"),
    "interlaced": lambda folder: plain(
        folder, "a.mpg", "mpeg", codec="mpeg2video", rate=RATE, options={"flags": "+ildct+ilme", "bf": "2"}
    ),
    "program stream": lambda folder: plain(folder, "a.vob", "vob", **_MPEG2, options={"bf": "2"}),
}
