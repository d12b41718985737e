#!/usr/bin/env python3
"""Makes tests/data/models and tests/data/cases. See README.md beside this file."""

import argparse
import json
import logging
import os
import shutil
import sys
import warnings

import numpy as np
import torch

from models_cases import CASES
from models_images import draw
from models_reference import Reference, open_image, top2_gaps
from models_write import SPECS, write_model

GAP_MIN = 5e-3      # between the two best logits, every step of every greedy path
SEEDS_MAX = 400
DISTINCT_MIN = 24   # different tokens among the 64
BF16_MODELS = ("llava-gqa", "next-gqa")


def compact_json(value):
    """One key per line, lists on one line."""
    lines = [f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def bf16_reference(directory, images, prompt_ids):
    """Greedy in bfloat16 throughout, and what f32 says along the same tokens."""
    low = Reference(directory, torch.bfloat16)
    rows = low.image_rows(images)
    expanded, _ = low.expand(prompt_ids, rows)
    ids, logits = low.greedy(low.embeddings(expanded, rows))
    return {"greedy_ids": ids, "margins": [round(float(g), 4) for g in top2_gaps(logits)]}


class Case:
    """One case while its pictures are being chosen."""

    def __init__(self, reference, prompt, images):
        self.prompt, self.images = prompt, images
        self.prompt_ids = reference.prompt_ids(prompt)
        self.rows = reference.image_rows(images)
        self.expanded, self.spans = reference.expand(self.prompt_ids, self.rows)
        self.embeddings = reference.embeddings(self.expanded, self.rows)
        self.ids, self.logits = reference.greedy(self.embeddings)
        self.gap = float(top2_gaps(self.logits).min())

    def good(self):
        return self.gap > GAP_MIN and len(set(self.ids)) >= DISTINCT_MIN


def choose(reference, number, prompt, sizes):
    """The first picture seed (for a text-only case: the first ending of the prompt) that makes a good case."""
    for seed in range(SEEDS_MAX):
        images = [draw(w, h, 1000 * number + 10 * seed + i) for i, (w, h) in enumerate(sizes)]
        text = prompt if sizes or seed == 0 else prompt + " " + str(seed)
        case = Case(reference, text, images)
        if case.good():
            return case
    sys.exit(f"{reference.directory} case {number}: no good seed among {SEEDS_MAX}")


def write_case(reference, spec, number, case, directory):
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    files = []
    for i, image in enumerate(case.images):
        files.append(f"image{i}.png")
        path = os.path.join(directory, files[-1])
        image.save(path, optimize=True)
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(image))
    whole = reference.whole_model_logits(case.expanded, case.images)
    if whole is not None:
        error = float(np.abs(whole - case.logits[0]).max())
        assert error < 1e-4, f"{directory}: the library's own merge differs by {error}"
    record = {
        "model": spec["name"],
        "prompt": case.prompt,
        "prompt_ids": case.prompt_ids,
        "expanded_rows": len(case.expanded),
        "images": files,
        "image_starts": [start for start, _ in case.spans],
        "image_rows": [count for _, count in case.spans],
        "greedy_ids": case.ids,
        "min_logit_gap": round(case.gap, 6),
        "logits_std": round(float(case.logits.std()), 4),
        "dtype_note": f"weights stored as {spec['dtype']}, upcast to and computed in float32",
    }
    np.save(os.path.join(directory, "first_logits.npy"), case.logits[0])
    if number == 1:
        np.save(os.path.join(directory, "all_logits.npy"), case.logits[:8])
    if case.images:
        pixels = [reference.pixels(image) for image in case.images]
        record["image_tiles"] = [len(p) for p in pixels]
        np.save(os.path.join(directory, "pixels.npy"), np.concatenate(pixels))
        features = torch.cat(case.rows).numpy()
        np.save(os.path.join(directory, "image_features.npy"), features.astype(np.float32))
    if spec["name"] in BF16_MODELS:
        record["bf16"] = bf16_reference(reference.directory, case.images, case.prompt_ids)
    with open(os.path.join(directory, "case.json"), "w", encoding="utf-8") as file:
        file.write(compact_json(record))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    repository = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    parser.add_argument("--out", default=os.path.join(repository, "tests", "data"))
    parser.add_argument("--tokenizer", default=os.path.join(repository, "models", "avl-tiny"),
                        help="directory whose tokenizer files the models get")
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for spec in SPECS:
        if arguments.only and spec["name"] not in arguments.only:
            continue
        directory = write_model(spec, os.path.join(arguments.out, "models"), arguments.tokenizer)
        reference = Reference(directory)
        shutil.rmtree(os.path.join(arguments.out, "cases", spec["name"]), ignore_errors=True)
        for number, (prompt, sizes) in enumerate(CASES[spec["name"]], 1):
            case = choose(reference, number, prompt, sizes)
            write_case(reference, spec, number, case,
                       os.path.join(arguments.out, "cases", spec["name"], f"{number:02d}"))
            print(f"{spec['name']}/{number:02d}: {len(case.expanded)} rows, gap {case.gap:.4f}, "
                  f"{len(set(case.ids))} different tokens", flush=True)


if __name__ == "__main__":
    main()
