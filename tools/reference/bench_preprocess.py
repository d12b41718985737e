#!/usr/bin/env python3
"""Times Pillow and `transformers` on the files that `bench_preprocess --save DIRECTORY` wrote, on one thread.

    bench_preprocess.py DIRECTORY [SECONDS]
"""
import io
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaNextImageProcessor


def timed(name, work, seconds):
    work()
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        work()
        count += 1
    each = (time.perf_counter() - begin) / count
    print(f"{name:28} {each * 1e3:8.2f} ms {1 / each:8.1f} /s")


def main():
    torch.set_num_threads(1)
    directory, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    size = {"size": {"shortest_edge": 336}, "crop_size": 336}
    clip = CLIPImageProcessor(**size)
    grid = LlavaNextImageProcessor(**size)
    picture = None
    for path in sorted(directory.glob("scene.*")):
        data = path.read_bytes()
        kind = path.suffix[1:]

        def decode():
            return Image.open(io.BytesIO(data)).convert("RGB")

        picture = decode()
        timed(f"{kind} ({len(data) // 1000} kB) decode", decode, seconds)
        timed(f"{kind} ({len(data) // 1000} kB) to clip 336", lambda: clip(decode()), seconds)
        timed(f"{kind} ({len(data) // 1000} kB) to next 336", lambda: grid(decode()), seconds)
    for side in (336, 672):
        timed(f"resize to {side} x {side}", lambda: picture.resize((side, side), Image.BICUBIC), seconds)


if __name__ == "__main__":
    main()
