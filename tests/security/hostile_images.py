"""Images made to hurt: small files that promise or unfold into much, formats that start other programs, and files cut short.

Run as a program with a folder, it reads every file of it as a run would, under a limit on memory, and prints a line of JSON
each.
"""

import functools
import io
import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

TOO_LARGE = "is too large (more than 89,478,485 pixels: scale it down)"
UNKNOWN = "is no image of a kind that is read (PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM, AVIF)"
DAMAGED = "is damaged or of an unknown kind ("
READ = "READ"
"""Hostile, and still an image: what it promises beside its pixels is not unfolded."""
MOST_BYTES = 3 * 2**30
"""Address space a reader may take, which is more than memory: libraries and the stacks of threads are mapped."""


def peak_memory_bytes() -> int:
    """Give the most this program held: what `getrusage` says is, behind a fork, that of the program which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def png(width: int, height: int, *chunks: tuple[bytes, bytes], pixels: bytes | None = None) -> bytes:
    """Give a PNG of 8-bit grey with a header that promises any size, and more chunks behind it."""
    data = zlib.compress(bytes((width + 1) * height) if pixels is None else pixels)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", data), (b"IEND", b"")]
    body = (struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@functools.cache
def unfolding(num_bytes: int) -> bytes:
    """Give zlib data of a thousandth of the bytes it unfolds into."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(num_bytes // 2**20)) + packer.flush()


def saved(kind: str, size: tuple[int, int] = (16, 16), mode: str = "RGB", **settings: object) -> bytes:
    """Give an ordinary image of a kind."""
    noise = np.random.default_rng(0).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def tiff(tags: dict[int, tuple[int, int, bytes]], pixels: bytes, next_folder: int = 0) -> bytes:
    """Give a little-endian TIFF of one directory: tag -> (type, count, value of 4 bytes); its pixels begin at byte 8."""
    start = 8 + len(pixels)
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, (kind, count, value) in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_folder)


def tiff_of(width: int, height: int, pixels: bytes, compression: int = 1, tile: tuple[int, int] | None = None) -> bytes:
    """Give a grey TIFF in one strip, or in one tile where its size is given."""

    def number(value: int) -> tuple[int, int, bytes]:
        return 4, 1, struct.pack("<I", value)

    tags = {256: number(width), 257: number(height), 258: number(8), 259: number(compression), 262: number(1), 277: number(1)}
    if tile:
        tags |= {322: number(tile[0]), 323: number(tile[1]), 324: number(8), 325: number(len(pixels))}
    else:
        tags |= {273: number(8), 278: number(height), 279: number(len(pixels))}
    return tiff(tags, pixels)


def gif(screen: tuple[int, int], frame: tuple[int, int], num_frames: int = 1) -> bytes:
    """Give a GIF whose frames promise any size."""
    head = b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    one = b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0" + b"\x02\x02\x44\x01\0"
    return head + one * num_frames + b";"


def webp(width: int, height: int) -> bytes:
    """Give an animated WebP whose canvas promises any size."""
    file = saved("WEBP", lossless=True)[12:]
    canvas = b"\x02\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + struct.pack("<I", 15)[:3] * 2 + b"\x64\0\0\0" + file
    chunks = b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(frame)) + b"WEBP" + chunks + frame


def avif(width: int, height: int) -> bytes:
    """Give an AVIF whose header promises any size."""
    data = saved("AVIF")
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]


def jpeg(width: int, height: int) -> bytes:
    """Give a JPEG whose header promises any size."""
    data = saved("JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def with_segments(segment: bytes, count: int) -> bytes:
    """Give a JPEG with many segments behind its start."""
    data = saved("JPEG")
    return data[:2] + (b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment) * count + data[2:]


TEXT = b"key\0\0"
EXIF_OF_MANY = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\x08" * 5000

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "60,000 x 60,000.png": (lambda: png(60_000, 60_000, pixels=b""), TOO_LARGE),
    "2^31.png": (lambda: png(2**31 - 1, 2**31 - 1, pixels=b""), TOO_LARGE),
    "89,478,486 x 1.png": (lambda: png(89_478_486, 1, pixels=b""), TOO_LARGE),
    "0 x 0.png": (lambda: png(0, 0, pixels=b""), UNKNOWN),
    "unfolding pixels.png": (lambda: png(10, 10, pixels=bytes(2**28)), READ),
    "unfolding comment.png": (lambda: png(10, 10, (b"zTXt", TEXT + unfolding(2**30))), DAMAGED),
    "unfolding international comment.png": (lambda: png(10, 10, (b"iTXt", b"key\0\1\0\0\0" + unfolding(2**30))), DAMAGED),
    "unfolding profile.png": (lambda: png(10, 10, (b"iCCP", TEXT + unfolding(2**30))), DAMAGED),
    "many unfolding comments.png": (lambda: png(10, 10, *[(b"zTXt", TEXT + unfolding(2**20))] * 2000), DAMAGED),
    "many comments.png": (lambda: png(10, 10, *[(b"tEXt", b"key\0" + b"x" * 100)] * 100_000), READ),
    "large exif.png": (lambda: png(10, 10, (b"eXIf", EXIF_OF_MANY[6:])), READ),
    "chunk of 2 GiB.png": (lambda: png(10, 10)[:33] + b"\x7f\xff\xff\xffiTXt" + bytes(100), DAMAGED),
    "no end.png": (lambda: png(1000, 1000)[:-40], DAMAGED),
    "nothing but a signature.png": (lambda: png(1, 1)[:8], UNKNOWN),
    "65,500 x 65,500.jpg": (lambda: jpeg(65_500, 65_500), TOO_LARGE),
    "cut.jpg": (lambda: saved("JPEG", (200, 200))[:9000], DAMAGED),
    "many segments.jpg": (lambda: with_segments(b"Exif\0\0MM\0*\0\0\0\x08" + bytes(60_000), 200), READ),
    "exif of endless tags.jpg": (lambda: with_segments(EXIF_OF_MANY, 1), READ),
    "exif that leads to itself.jpg": (
        lambda: with_segments(b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0", 1),
        READ,
    ),
    "60,000 x 60,000.gif": (lambda: gif((60_000, 60_000), (1, 1)), TOO_LARGE),
    "frame of 60,000 x 60,000.gif": (lambda: gif((1, 1), (60_000, 60_000)), TOO_LARGE),
    "100,000 frames.gif": (lambda: gif((1, 1), (1, 1), 100_000), READ),
    "60,000 x 60,000.tif": (lambda: tiff_of(60_000, 60_000, b"\0"), TOO_LARGE),
    "tile of 60,000 x 60,000.tif": (lambda: tiff_of(16, 16, unfolding(2**20), 8, tile=(60_000, 60_000)), DAMAGED),
    "tile of 2^31.tif": (lambda: tiff_of(16, 16, unfolding(2**20), 8, tile=(2**31 - 16, 2**31 - 16)), DAMAGED),
    "unfolding strip.tif": (lambda: tiff_of(16, 16, unfolding(2**30), 8), READ),
    "directory that leads to itself.tif": (lambda: tiff({256: (4, 1, struct.pack("<I", 16))}, b"", next_folder=8), UNKNOWN),
    "tag of 4 GiB.tif": (lambda: tiff({256: (4, 2**32 - 1, struct.pack("<I", 8))}, bytes(256)), UNKNOWN),
    "16,383 x 16,383.webp": (lambda: webp(16_383, 16_383), TOO_LARGE),
    "2^24.webp": (lambda: webp(2**24, 2**24), DAMAGED),
    "cut.webp": (lambda: saved("WEBP", (64, 64), lossless=True)[:600], DAMAGED),
    "60,000 x 60,000.avif": (lambda: avif(60_000, 60_000), UNKNOWN),
    "cut.avif": (lambda: saved("AVIF", (64, 64))[:400], UNKNOWN),
    "60,000 x 60,000.bmp": (
        lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        TOO_LARGE,
    ),
    "60,000 x 60,000.ppm": (lambda: b"P6 60000 60000 255\n", TOO_LARGE),
    "number without end.ppm": (lambda: b"P6 " + b"1" * 2**20, DAMAGED),
    "program.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (r) file\n", UNKNOWN),
    "program.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (r) file\n", UNKNOWN),
    "document.png": (lambda: b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n", UNKNOWN),
    "drawing.png": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', UNKNOWN),
    "entities.png": (lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>', UNKNOWN),
    "metafile.png": (lambda: b"\xd7\xcd\xc6\x9a\0\0" + bytes(100), UNKNOWN),
    "photoshop.png": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 60_000, 60_000, 8, 3) + bytes(64), UNKNOWN),
    "jpeg 2000.png": (lambda: saved("JPEG2000"), UNKNOWN),
    "icon.png": (lambda: saved("ICO"), UNKNOWN),
    "fits.png": (lambda: b"SIMPLE  =                    T" + b" " * 2850, UNKNOWN),
    "quite ok.png": (lambda: b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0) + bytes(64), UNKNOWN),
    "sun raster.png": (lambda: struct.pack(">IIIIIIII", 0x59A66A95, 60_000, 60_000, 8, 64, 1, 0, 0) + bytes(64), UNKNOWN),
    "archive.png": (lambda: b"PK\3\4" + bytes(100), UNKNOWN),
    "page.png": (lambda: b"<html><script>alert(1)</script></html>", UNKNOWN),
    "nothing.png": (lambda: b"", "is empty"),
    "zeros.png": (lambda: bytes(2**20), UNKNOWN),
}
"""Name -> what makes it, and what is said of it."""


def main(folder: Path) -> None:
    """Read every file."""
    from hf_transfer.data.images import check_images, read_image_file
    from hf_transfer.errors import DataError

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for path in sorted(folder.iterdir()):
        started, said = time.perf_counter(), READ
        try:
            for picture in check_images("train", [(path.name, functools.partial(read_image_file, path))]):
                picture.decode(3)
        except DataError as error:
            said = str(error)
        peak = peak_memory_bytes()
        print(json.dumps([path.name, said, time.perf_counter() - started, peak]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
