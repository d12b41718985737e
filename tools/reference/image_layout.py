#!/usr/bin/env python3
"""Writes tests/checkpoint/data/image_layout.txt: what transformers makes of pictures of many sizes.

A line "grid SIDE PATCH HEIGHTxWIDTH..." begins a vision tower with its pinpoints; each line after it is one picture:

    width height grid_rows grid_columns crop_top crop_left crop_rows crop_columns prompt_rows

The grid comes from select_best_resolution; the number of rows from LlavaNextProcessor, which counts placeholders with
integers; the crop from unpad_image of the model. transformers 4.46 cuts a double in unpad_image and so disagrees with
its own processor for a few sizes, for which it fails; later versions agree everywhere. For those sizes (the script says
how many) the crop is made with the number rounded to seven decimals, as later versions do.

Run with transformers 4.46.3 and torch installed:  tools/reference/image_layout.py > tests/checkpoint/data/image_layout.txt
"""

import random
import sys
from types import SimpleNamespace

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

GRIDS = [
    (336, 14, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
    (28, 7, [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [28, 28]]),
    (384, 32, [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)]),
]
PICTURES = 1000


def sizes(generator, side):
    """Ordinary sizes, multiples and near multiples of the tower's side, and ribbons."""
    yield from [(1, 1), (1, 16777216), (16777216, 1), (16777216, 16777216), (side, side), (2 * side, side)]
    yield from [(176, 55), (352, 110), (656, 205), (704, 220)]  # where versions of unpad_image differ
    for _ in range(PICTURES):
        kind = generator.randrange(4)
        if kind == 0:
            yield generator.randint(1, 4096), generator.randint(1, 4096)
        elif kind == 1:
            near = lambda: max(1, side * generator.randint(1, 6) // generator.randint(1, 3) + generator.randint(-1, 1))
            yield near(), near()
        elif kind == 2:
            thin = [generator.randint(1, 30), generator.randint(1, 20000)]
            generator.shuffle(thin)
            yield tuple(thin)
        else:
            yield generator.randint(1, 200), generator.randint(1, 200)


def rounded_crop(rows, columns, width, height):
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
        return top, 0, rows - 2 * top, columns
    left = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, left, rows, columns - 2 * left


def crop(rows, columns, width, height):
    places = torch.arange(rows * columns).view(1, rows, columns)
    kept = unpad_image(places, (height, width))[0]
    if kept.numel() == 0:
        return rounded_crop(rows, columns, width, height)
    first = int(kept[0, 0])
    return first // columns, first % columns, kept.shape[0], kept.shape[1]


def main():
    generator = random.Random(7)
    disagreements = 0
    for side, patch, pinpoints in GRIDS:
        print("grid", side, patch, *(f"{height}x{width}" for height, width in pinpoints))
        patches = side // patch
        processor = SimpleNamespace(
            image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
            patch_size=patch,
            _get_unpadded_features=lambda *a: LlavaNextProcessor._get_unpadded_features(None, *a),
        )
        for width, height in sizes(generator, side):
            best = select_best_resolution((height, width), pinpoints)
            rows, columns = best[0] // side, best[1] // side
            kept = crop(rows * patches, columns * patches, width, height)
            count = LlavaNextProcessor._get_number_of_features(processor, height, width, side, side) - 1
            if patches * patches + kept[2] * (kept[3] + 1) != count:
                disagreements += 1
                kept = rounded_crop(rows * patches, columns * patches, width, height)
            if patches * patches + kept[2] * (kept[3] + 1) != count:
                sys.exit(f"{width} x {height}: the crop {kept} does not make {count} rows")
            print(width, height, rows, columns, *kept, count)
    print(f"{disagreements} sizes for which transformers disagrees with itself", file=sys.stderr)


if __name__ == "__main__":
    main()
