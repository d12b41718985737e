#!/usr/bin/env python3
"""Makes tests/inputs/data/images: small pictures of every kind, and what Pillow and `transformers` make of them.

Needs Pillow, numpy, transformers 4.46 and a C compiler with libjpeg-turbo (for jpeg_variants.c). The result depends on
nothing random. Pictures' pixels are recorded as FNV-1a digests of their bytes in reference.txt, a few also whole (.rgb).
"""
import io
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextImageProcessor

HERE = Path(__file__).resolve().parent
OUT = HERE.parent.parent / "tests/inputs/data/images"
LAST = "channels_last"
lines = []


def digest(data):
    value = 0xCBF29CE484222325
    for byte in bytes(data):
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def scene(width, height, channels=3, seed=1):
    """Gradients, a disc, hard stripes and noise: flat areas, edges and texture in one picture."""
    generator = np.random.Generator(np.random.PCG64(seed * 1000003 + width * 1009 + height))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for c in range(channels):
        plane = 90 + 80 * np.sin(x / (7 + 3 * c) + c) * np.cos(y / (11 + 2 * c)) + 60 * x / max(width, 1)
        plane[(x - width * 0.6) ** 2 + (y - height * 0.4) ** 2 < (min(width, height) * 0.3) ** 2] += 70 - 60 * c
        plane[(x + 2 * y) % 23 < 4] -= 100
        plane += generator.normal(0, 12, plane.shape)
        planes.append(plane)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


# PNG of every colour type and depth, written by hand because no common writer makes them all.


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def filtered(rows, step):
    """Rows with the five filters in turn."""
    out, above = bytearray(), bytes(len(rows[0]))
    for number, row in enumerate(rows):
        kind = number % 5
        out.append(kind)
        for i, value in enumerate(row):
            a = row[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            guess = (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]
            out.append((value - guess) & 255)
        above = row
    return bytes(out)


def pack(samples, depth):
    """[width, channels] as bytes."""
    flat = [int(v) for v in samples.reshape(-1)]
    if depth == 16:
        return struct.pack(f">{len(flat)}H", *flat)
    if depth == 8:
        return bytes(flat)
    bits = "".join(f"{v:0{depth}b}" for v in flat)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def png(samples, depth, colour, interlaced=False, before=(), after=()):
    height, width, channels = samples.shape
    step = max(1, channels * depth // 8)
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for left, top, across, down in passes:
        part = samples[top::down, left::across]
        if part.size:
            data += filtered([pack(row, depth) for row in part], step)
    packed = zlib.compress(data, 9)
    middle = len(packed) // 2
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", packed[:middle])
            + chunk(b"IDAT", packed[middle:]) + b"".join(after) + chunk(b"IEND", b""))


def png_samples(width, height, channels, depth, seed):
    samples = scene(width, height, channels, seed).astype(np.int64)
    if depth == 16:
        samples = samples * 257 + (np.arange(samples.size).reshape(samples.shape) * 37) % 200 - 100
        samples[:, : width // 3] //= 300  # low values: what clipping at 255 leaves
        return np.clip(samples, 0, 65535)
    return samples >> (8 - depth)


def all_png():
    palette = chunk(b"PLTE", bytes(scene(256, 1, 3, 9).reshape(-1)))
    names = {0: "grey", 2: "rgb", 3: "palette", 4: "grey-alpha", 6: "rgba"}
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for colour, name in names.items():
        for depth in depths[colour]:
            for interlaced in (False, True):
                samples = png_samples(35, 19, channels[colour], depth, colour + depth)
                before = ()
                if colour == 3:
                    before = (chunk(b"PLTE", palette[8 : 8 + 3 * 2**depth]),)
                suffix = "-interlaced" if interlaced else ""
                yield f"{name}-{depth}{suffix}.png", png(samples, depth, colour, interlaced, before)
    grey, rgb, index = (png_samples(35, 19, n, 8, 4) for n in (1, 3, 1))
    yield "grey-8-trns.png", png(grey, 8, 0, before=(chunk(b"tRNS", b"\0\x40"),))
    yield "grey-1-trns.png", png(grey >> 7, 1, 0, before=(chunk(b"tRNS", b"\0\1"),))
    yield "grey-16-trns.png", png(grey * 3, 16, 0, before=(chunk(b"tRNS", b"\0\x40"),))
    yield "rgb-8-trns.png", png(rgb, 8, 2, before=(chunk(b"tRNS", b"\0\x40\0\x41\0\x42"),))
    yield "rgb-16-trns.png", png(rgb * 200, 16, 2, before=(chunk(b"tRNS", b"\0\x40\0\x41\0\x42"),))
    yield "rgb-8-plte.png", png(rgb, 8, 2, before=(palette,))
    yield "palette-8-trns.png", png(index, 8, 3, before=(palette, chunk(b"tRNS", bytes(range(0, 250, 3)))))
    yield "palette-8-trns-one.png", png(index, 8, 3, before=(palette, chunk(b"tRNS", b"\xff\xff\0\xff")))
    yield "palette-8-short.png", png(index, 8, 3, before=(chunk(b"PLTE", bytes(range(60, 150))),))
    yield "rgb-8-gamma.png", png(rgb, 8, 2, before=(chunk(b"gAMA", struct.pack(">I", 30000)),
                                                    chunk(b"sBIT", b"\5\5\5"), chunk(b"bKGD", b"\0\1\0\2\0\3")))
    yield "rgb-8-text.png", png(rgb, 8, 2, before=(chunk(b"tEXt", b"Comment\0" + b"x" * 5000),),
                                after=(chunk(b"zTXt", b"More\0\0" + zlib.compress(b"y" * 50000)),))
    yield "one-pixel.png", png(rgb[:1, :1], 8, 2)
    yield "one-column-interlaced.png", png(rgb[:, :1], 8, 2, True)
    yield "one-row-interlaced.png", png(png_samples(35, 1, 1, 8, 2) >> 7, 1, 0, True)
    yield "tall.png", png(scene(3, 700, 3, 5), 8, 2)
    yield "wide.png", png(scene(700, 2, 3, 5), 8, 2)


def saved(array, format, mode=None, **options):
    stream = io.BytesIO()
    Image.fromarray(array, mode).save(stream, format, **options)
    return stream.getvalue()


def all_jpeg():
    picture = scene(61, 43, 3, 2)
    for subsampling, name in ((0, "444"), (1, "422"), (2, "420")):
        for progressive in (False, True):
            suffix = "-progressive" if progressive else ""
            yield f"{name}{suffix}.jpg", saved(picture, "JPEG", quality=83, subsampling=subsampling,
                                               progressive=progressive)
    yield "grey.jpg", saved(picture[:, :, 0], "JPEG", quality=70)
    yield "grey-progressive.jpg", saved(picture[:, :, 0], "JPEG", quality=70, progressive=True)
    yield "adobe-cmyk.jpg", saved(scene(61, 43, 4, 3), "JPEG", "CMYK", quality=85)
    yield "one-pixel.jpg", saved(picture[:1, :1], "JPEG")
    yield "one-row.jpg", saved(scene(517, 1), "JPEG")
    yield "one-column.jpg", saved(scene(1, 517), "JPEG")
    yield "exif-rotated.jpg", saved(picture, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
                                    b"\0\0\0\0")
    yield "photo.jpg", saved(scene(640, 427, 3, 7), "JPEG", quality=75)
    yield "portrait.jpg", saved(scene(301, 533, 3, 8), "JPEG", quality=70)
    yield "panorama.jpg", saved(scene(1103, 83, 3, 8), "JPEG", quality=70)
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/jpeg_variants"
        subprocess.run(["cc", "-o", program, str(HERE / "jpeg_variants.c"), "-ljpeg"], check=True)
        for kind in ("440", "411", "410", "rgb", "arithmetic", "restart", "ycck", "cmyk", "cmyk-plain"):
            ink = kind == "ycck" or kind.startswith("cmyk")
            raw = scene(61, 43, 4 if ink else 3, 6).tobytes()
            run = subprocess.run([program, kind, "61", "43"], input=raw, capture_output=True, check=True)
            yield f"variant-{kind}.jpg", run.stdout


def all_webp():
    picture, alpha = scene(61, 43, 3, 2), scene(61, 43, 4, 4)
    yield "lossy.webp", saved(picture, "WEBP", quality=80)
    yield "lossless.webp", saved(picture, "WEBP", lossless=True)
    yield "lossy-alpha.webp", saved(alpha, "WEBP", quality=80)
    yield "lossless-alpha.webp", saved(alpha, "WEBP", lossless=True, exact=True)
    yield "one-pixel.webp", saved(picture[:1, :1], "WEBP", quality=80)
    frames = [Image.fromarray(scene(40, 30, 3, n)) for n in (1, 2, 3)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    yield "animated.webp", stream.getvalue()


def decoded(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_resize(picture, resample, width, height, left, top, wide, high):
    resized = np.asarray(Image.fromarray(picture).resize((width, height), resample))
    return resized[top : top + high, left : left + wide]


def resize_cases(pictures):
    sizes = [("photo.jpg", 336, 224), ("photo.jpg", 37, 301), ("photo.jpg", 640, 100), ("photo.jpg", 99, 427),
             ("photo.jpg", 640, 427), ("photo.jpg", 1, 1), ("420.jpg", 200, 333), ("one-pixel.png", 17, 9),
             ("one-row.jpg", 64, 64), ("one-column.jpg", 64, 64), ("tall.png", 5, 31), ("wide.png", 31, 5),
             ("panorama.jpg", 336, 336)]
    for name, width, height in sizes:
        for resample in range(6):
            for window in ((0, 0, width, height), (width // 3, height // 4, (width + 1) // 2, (height + 2) // 3)):
                left, top, wide, high = window
                result = pillow_resize(pictures[name], resample, width, height, *window)
                assert result.shape == (high, wide, 3)
                lines.append(f"resize {name} {resample} {width} {height} {left} {top} {wide} {high} {digest(result.tobytes())}")


class NextProcessor(LlavaNextImageProcessor):
    """pad() guesses the order of axes; a picture one or three pixels high misleads it, and 4.46 does not say it there."""

    def pad(self, image, padding, **options):
        return super().pad(image, padding, **{**options, "input_data_format": LAST})


def to_square(picture, mean):
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    square[:] = [int(value * 255) for value in mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square


def processor_cases(pictures):
    plain = {"do_rescale": False, "do_normalize": False}
    mean = [0.48145466, 0.4578275, 0.40821073]
    pins = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    # name, family, side, settings
    configs = [
        ("clip", "llava", 112, {"size": {"shortest_edge": 112}, "crop_size": 112, "resample": 3}),
        ("clip-odd", "llava", 98, {"size": {"shortest_edge": 131}, "crop_size": 98, "resample": 3}),
        ("clip-exact", "llava", 112, {"size": {"height": 112, "width": 112}, "crop_size": 112, "resample": 2}),
        ("clip-crop-larger", "llava", 112, {"size": {"shortest_edge": 61}, "crop_size": 112, "resample": 3}),
        ("clip-crop-mixed", "llava", 113, {"size": {"height": 90, "width": 150}, "crop_size": 113, "resample": 1}),
        ("clip-no-resize", "llava", 112, {"do_resize": False, "size": {"shortest_edge": 9}, "crop_size": 112, "resample": 3}),
        ("clip-no-crop", "llava", 112, {"size": {"height": 112, "width": 112}, "do_center_crop": False, "resample": 3}),
        ("square", "llava-pad", 112, {"size": {"shortest_edge": 112}, "crop_size": 112, "resample": 3}),
        ("square-exact", "llava-pad", 98, {"size": {"height": 98, "width": 98}, "crop_size": 98, "resample": 2}),
        ("next", "next", 112, {"size": {"shortest_edge": 112}, "crop_size": 112, "resample": 3}),
        ("next-exact", "next", 112, {"size": {"height": 112, "width": 112}, "crop_size": 112, "resample": 3}),
        ("next-crop-smaller", "next", 112, {"size": {"shortest_edge": 120}, "crop_size": 112, "resample": 3}),
    ]
    names = ["photo.jpg", "portrait.jpg", "panorama.jpg", "420.jpg", "one-pixel.png", "one-row.jpg", "one-column.jpg",
             "tall.png", "wide.png", "rgba-8.png"]
    for config, family, side, settings in configs:
        size = settings["size"]
        crop = settings.get("crop_size", side)
        lines.append(f"config {config} {family} {side} {int(settings.get('do_resize', True))} "
                     f"{size.get('shortest_edge', 0)} {size.get('height', 0)} {size.get('width', 0)} "
                     f"{int(settings.get('do_center_crop', True))} {crop} {settings['resample']}")
        for name in names:
            picture = pictures[name]
            if family == "next":
                processor = NextProcessor(image_grid_pinpoints=pins, **settings, **plain)
                tiles = processor(Image.fromarray(picture), input_data_format=LAST)["pixel_values"][0]
            else:
                if family == "llava-pad":
                    picture = to_square(picture, mean)
                processor = CLIPImageProcessor(**settings, **plain)
                tiles = [processor(Image.fromarray(picture), input_data_format=LAST)["pixel_values"][0]]
            tiles = np.stack(tiles)
            assert tiles.dtype == np.uint8 and tiles.shape[1:] == (3, side, side), (config, name, tiles.dtype, tiles.shape)
            lines.append(f"tiles {config} {name} {len(tiles)} {digest(tiles.tobytes())}")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    pictures = {}
    for name, data in [*all_png(), *all_jpeg(), *all_webp()]:
        (OUT / name).write_bytes(data)
        pictures[name] = picture = decoded(data)
        lines.append(f"decode {name} {picture.shape[1]} {picture.shape[0]} {digest(picture.tobytes())}")
        if name in ("420.jpg", "variant-ycck.jpg", "grey-16.png", "lossy.webp"):
            (OUT / (name + ".rgb")).write_bytes(picture.tobytes())
    resize_cases(pictures)
    processor_cases(pictures)
    (OUT / "reference.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(pictures)} pictures, {len(lines)} references, "
          f"{sum(f.stat().st_size for f in OUT.iterdir())} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
