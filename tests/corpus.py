"""Files as people have them: every container and codec that FFmpeg writes here, other first bytes, photos, odd tags."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from tests import media

NUM_FRAMES = 12
SIZE = (96, 64)

_MPEG2 = {"codec": "mpeg2video", "fps": Fraction(25)}
_H263 = {"codec": "h263", "size": (176, 144)}
_MJPEG = {"codec": "mjpeg", "pixel_format": "yuvj420p"}
_FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)

CONTAINERS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "bframes.mp4": {"bframes": 2},
    "fragmented.mp4": {"container_options": _FRAGMENTED},
    "hevc.mp4": {"codec": "libx265"},
    "av1.mp4": {"codec": "libsvtav1"},
    "h264.mov": {},
    "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le"},
    "mjpeg.mov": _MJPEG,
    "qtrle.mov": {"codec": "qtrle", "pixel_format": "rgb24"},
    "h263.3gp": {"container": "3gp", **_H263},
    "h264.f4v": {"container": "f4v"},
    "h264.ismv": {"container": "ismv"},
    "h264.mkv": {},
    "ffv1.mkv": {"codec": "ffv1"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.webm": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "msmpeg4.avi": {"codec": "msmpeg4"},
    "mjpeg.avi": _MJPEG,
    "raw.avi": {"codec": "rawvideo", "pixel_format": "bgr24"},
    "flv1.flv": {"container": "flv", "codec": "flv"},
    "h264.flv": {"container": "flv"},
    "hevc.flv": {"container": "flv", "codec": "libx265"},
    "h264.ts": {"container": "mpegts"},
    "mpeg2.ts": {"container": "mpegts", **_MPEG2},
    "h264.m2ts": {"container": "mpegts", "container_options": (("mpegts_m2ts_mode", "1"),)},
    "mpeg1.mpg": {"container": "mpeg", "codec": "mpeg1video", "fps": Fraction(25)},
    "mpeg2.vob": {"container": "vob", **_MPEG2},
    "mpeg1.m1v": {"container": "mpeg1video", "codec": "mpeg1video", "fps": Fraction(25)},
    "mpeg2.m2v": {"container": "mpeg2video", **_MPEG2},
    "wmv2.wmv": {"container": "asf", "codec": "wmv2"},
    "vp8.ogv": {"container": "ogg", "codec": "libvpx"},
    "mpeg2.mxf": {"container": "mxf", **_MPEG2},
    "rv10.rm": {"container": "rm", "codec": "rv10"},
    "mpeg2.wtv": {"container": "wtv", **_MPEG2},
    "flv1.swf": {"container": "swf", "codec": "flv"},
    "mpeg4.nut": {"container": "nut", "codec": "mpeg4"},
    "dv.dv": {"container": "dv", "codec": "dvvideo", "size": (720, 576), "fps": Fraction(25)},
    "raw.y4m": {"container": "yuv4mpegpipe", "codec": "wrapped_avframe"},
    "anim.gif": {"container": "gif", "codec": "gif", "pixel_format": "rgb8"},
    "anim.apng": {"container": "apng", "codec": "apng", "pixel_format": "rgb24"},
    "vp8.ivf": {"container": "ivf", "codec": "libvpx"},
    "av1.ivf": {"container": "ivf", "codec": "libsvtav1"},
    "av1.obu": {"container": "obu", "codec": "libsvtav1"},
    "h264.h264": {"container": "h264"},
    "hevc.hevc": {"container": "hevc", "codec": "libx265"},
    "mpeg4.m4v": {"container": "m4v", "codec": "mpeg4"},
    "h263.h263": {"container": "h263", **_H263},
    "jpegs.mjpeg": {"container": "mjpeg", **_MJPEG},
}
"""What ``media.write`` needs for one good video of each container and codec."""


def good(folder: Path, name: str) -> bytes:
    """Return the good video of one container and codec."""
    path = folder / name
    if not path.exists():
        media.write(path, **{"num_frames": NUM_FRAMES, "size": SIZE, **CONTAINERS[name]})
    return path.read_bytes()


def box(name: bytes, content: bytes = bytes(24)) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def jpeg(index: int) -> bytes:
    return photo("JPEG", index)


def photo(kind: str, index: int = 0, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(media.pictures(NUM_FRAMES, SIZE)[index]).save(content, kind, **options)
    return content.getvalue()


def animation(kind: str) -> bytes:
    """Return an image file of ``NUM_FRAMES`` pictures."""
    first, *others = (Image.fromarray(picture) for picture in media.pictures(NUM_FRAMES, SIZE))
    content = io.BytesIO()
    first.save(content, kind, save_all=True, append_images=others, duration=40)
    return content.getvalue()


def large_jpeg(index: int, **options: Any) -> bytes:
    """Return a JPEG of noise of more than a mebibyte."""
    content = io.BytesIO()
    noisy = np.random.default_rng(index).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(content, "JPEG", quality=98, **options)
    assert content.tell() > 2**20
    return content.getvalue()


def multipart(blank: bytes = b"") -> bytes:
    """Return JPEGs as a camera sends them to a browser."""
    parts = []
    for index in range(NUM_FRAMES):
        data = jpeg(index)
        header = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data)
        parts.append(blank + header + data + b"\r\n")
    return b"".join(parts)


def transport_packets(folder: Path) -> list[bytes]:
    data = good(folder, "h264.ts")
    return [data[start : start + 188] for start in range(0, len(data), 188)]


def box_first(name: str, folder: Path) -> bytes:
    return box(name.encode()) + good(folder, "fragmented.mp4")


BEGINNINGS: dict[str, Callable[[Path], bytes]] = {
    **{
        f"{name} first": partial(box_first, name)
        for name in ("styp", "sidx", "emsg", "uuid", "prft", "free", "pdin", "meta", "what")
    },
    "ftyp after mdat": lambda folder: box(b"mdat", bytes(64)) + good(folder, "fragmented.mp4"),
    "204-byte packets": lambda folder: b"".join(packet + bytes(range(16)) for packet in transport_packets(folder)),
    "part of a packet first": lambda folder: b"".join([transport_packets(folder)[3][100:], *transport_packets(folder)]),
    "junk before packets": lambda folder: bytes(37) + b"".join(transport_packets(folder)),
    "H.264 with short start codes": lambda folder: _short_codes(good(folder, "h264.h264")),
    "HEVC with short start codes": lambda folder: _short_codes(good(folder, "hevc.hevc")),
    "a delimiter first": lambda folder: b"\x00\x00\x01\x09\xf0" + _short_codes(good(folder, "h264.h264")),
    "zeros before a program stream": lambda folder: bytes(300) + good(folder, "mpeg1.mpg"),
    "JPEGs of Pillow": lambda folder: b"".join(jpeg(index) for index in range(NUM_FRAMES)),
    "multipart": lambda folder: multipart(),
    "multipart after a blank line": lambda folder: multipart(b"\r\n"),
    "animated AVIF": lambda folder: animation("AVIF"),
    "animated PNG of Pillow": lambda folder: animation("PNG"),
    "animated GIF of Pillow": lambda folder: animation("GIF"),
}
"""Good videos with ``NUM_FRAMES`` frames that begin otherwise than those of FFmpeg."""


def _short_codes(data: bytes) -> bytes:
    return data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01")


def _exif_with_thumbnail() -> bytes:
    """Return an EXIF block whose second directory is a JPEG."""
    thumbnail = photo("JPEG")
    entries = [(0x0201, 4, 1, 44), (0x0202, 4, 1, len(thumbnail))]  # place and length of the JPEG
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">IHI", 8, 0, 14) + directory + bytes(4) + thumbnail


PHOTOS: dict[str, Callable[[], bytes]] = {
    **{kind: partial(photo, kind) for kind in ("AVIF", "GIF", "JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000")},
    "lossless WEBP": lambda: photo("WEBP", lossless=True),
    "a large JPEG": lambda: large_jpeg(0),
    "a large JPEG with a thumbnail": lambda: large_jpeg(0, exif=_exif_with_thumbnail()),
    "a large JPEG with a video behind it": lambda: large_jpeg(0) + box(b"ftyp") + box(b"mdat", noise(5000)),
    "two views": lambda: photo("MPO", save_all=True, append_images=[Image.fromarray(media.pictures(2, SIZE)[1])]),
    "a part of a multipart stream": lambda: multipart()[: len(jpeg(0)) + 90],
    "JPEG with a video behind it": lambda: photo("JPEG") + box(b"ftyp") + box(b"mdat"),
}
"""Pictures that stand still."""

PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "HLS with a byte order mark": "\ufeff#EXTM3U\r\n#EXTINF:1,\r\n{path}\r\n#EXT-X-ENDLIST\r\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
    "SMIL": '<smil><body><video src="{path}"/></body></smil>',
    "ASX": '<asx version="3.0"><entry><ref href="{path}"/></entry></asx>',
    "reference": "[Reference]\nRef1={path}\n",
    "HTTP": "GET /{path} HTTP/1.1\r\n",
    "VapourSynth": "import vapoursynth\nvideo = open('{path}')\n",
}
"""Texts that name a file, which some programs then read."""

TITLES = {
    "Latin-1": "café in Zürich".encode("latin-1"),
    "CP1252": "“smart” …".encode("cp1252") + b"\x81\x8c\x9d",
    "GBK": "挥手告别".encode("gbk"),
    "UTF-16": "wave".encode("utf-16"),
    "every byte": bytes(range(0x80, 0x100)),
    "half of a character": "fiancé".encode()[:-1],
}


def tagged(folder: Path, suffix: str, title: bytes, place: str) -> bytes:
    """Return a good video with a tag of the container, the stream or a chapter that has these bytes."""
    name = "".join(chr(ord("Q") + index % 7) for index in range(len(title)))
    path = folder / f"tagged{suffix}"
    codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(suffix, "libx264")
    source = media.write(folder / f"plain{suffix}", num_frames=NUM_FRAMES, codec=codec)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        if place == "container":
            new.metadata["title"] = name
        elif place == "stream":
            stream.metadata["title"] = stream.metadata["handler_name"] = name
        elif place == "chapter":
            new.set_chapters(
                [{"id": 1, "start": 0, "end": 9, "time_base": stream.time_base, "metadata": {"title": name}}]
            )
        elif place == "attachment":
            new.add_attachment(name, "text/plain", b"notes")
        copy_packets(old, new, stream)
    data = path.read_bytes()
    assert name.encode() in data, (suffix, place)
    return data.replace(name.encode(), title)


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()


def with_cover(film: Path | None, path: Path, cover: bytes) -> Path:
    """Write a film, or a tone alone, with a JPEG as its cover picture; in MP4 it is the first stream."""
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(av.open(str(path), "w"))
        old = stack.enter_context(av.open(str(film))) if film is not None else None
        if path.suffix == ".mkv":
            new.add_attachment("cover.jpg", "image/jpeg", cover)
        else:
            picture = new.add_stream("mjpeg", rate=1)
            assert isinstance(picture, VideoStream)
            picture.width, picture.height, picture.pix_fmt = *SIZE, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        main: Any = new.add_stream_from_template(old.streams.video[0]) if old else new.add_stream("aac", rate=48000)
        if path.suffix != ".mkv":
            packet = Packet(cover)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = picture, 0, 0, True
            new.mux(packet)
        if old is None:
            media.write_tone(new, main, 0.5)
        else:
            copy_packets(old, new, main)
    return path


def copy_packets(old: InputContainer, new: OutputContainer, stream: Any) -> None:
    for packet in old.demux(video=0):
        if packet.size:
            packet.stream = stream
            new.mux(packet)


def accompanied(folder: Path, kind: str) -> bytes:
    """Return a good video with another stream beside it, whose content is none that its kind has."""
    suffix, companion = COMPANIONS[kind]
    path = folder / f"accompanied{suffix}"
    source = media.write(folder / "alone.mp4", num_frames=NUM_FRAMES)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        main = new.add_stream_from_template(old.streams.video[0])
        if companion is None:
            main.metadata["timecode"] = "01:00:00:00"
        else:
            beside: Any = new.add_data_stream() if companion == "data" else new.add_stream(companion)
        copy_packets(old, new, main)
        if companion is not None:
            packet = Packet(noise(40))
            packet.stream, packet.pts, packet.dts, packet.duration = beside, 0, 0, 300
            packet.time_base = Fraction(1, 1000)
            new.mux(packet)
    with av.open(str(path)) as written:
        assert len(written.streams) > 1, kind
    return path.read_bytes()


COMPANIONS: dict[str, tuple[str, str | None]] = {
    "subtitles of noise": (".mkv", "ass"),
    "pictures of subtitles": (".mkv", "dvdsub"),
    "data": (".ts", "data"),
    "timecode": (".mov", None),
}
"""Suffix of the container, and codec of the other stream; None for a timecode track."""
