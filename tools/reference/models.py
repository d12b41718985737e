#!/usr/bin/env python3
"""Makes tests/data/models and tests/data/cases. See README.md beside this file."""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import torch

from avl_decoder import Decoder, share
from models_cases import AVL_FILTER, AVL_MORE_SETTINGS, AVL_SETTINGS, AVL_TEXT, CASES
from models_images import draw
from models_reference import Reference, open_image, top2_gaps
from models_write import SPECS, write_model

GAP_MIN = 5e-3  # between the two best logits, every step of the dense greedy path
AVL_GAP_MIN = 3e-3  # the same for A-VL runs
SCORE_GAP_MIN = 1e-4  # at every cut of a selection, relative to the last score taken
SEEDS_MAX = 400
TEXT_GAP_MIN = 1e-5  # between text rows kept and evicted, absolute
DISTINCT_MIN = 24  # different tokens among the 64
BF16_MODELS = ("llava-gqa", "next-gqa")


def compact_json(value):
    """One key per line, lists on one line."""
    lines = []
    for key, item in value.items():
        if key in ("avl", "avl_more"):
            runs = ",\n".join("  " + json.dumps(run, separators=(",", ":")) for run in item)
            lines.append(f' "{key}": [\n{runs}\n ]')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(item)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def bf16_reference(reference, case):
    """Greedy in bfloat16 throughout, and what f32 says along the same tokens."""
    low = Reference(reference.directory, torch.bfloat16)
    rows = low.image_rows(case.images)
    ids, logits = low.greedy(low.embeddings(case.expanded, rows))
    _, exact = reference.greedy(case.embeddings, forced=ids)
    return {
        "greedy_ids": ids,
        "margins": [round(float(g), 4) for g in top2_gaps(logits)],
        "f32_best": [int(best) for best in exact.argmax(-1)],
        "f32_margins": [round(float(g), 4) for g in top2_gaps(exact)],
        "error_rms": round(float(np.sqrt(np.mean((logits - exact) ** 2))), 4),
        "error_max": round(float(np.abs(logits - exact).max()), 4),
    }


class Case:
    """One case while its pictures are being chosen."""

    def __init__(self, reference, decoder, number, prompt, images):
        self.decoder, self.number = decoder, number
        self.prompt, self.images = prompt, images
        self.prompt_ids = reference.prompt_ids(prompt)
        self.rows = reference.image_rows(images)
        self.expanded, self.spans = reference.expand(self.prompt_ids, self.rows)
        self.embeddings = reference.embeddings(self.expanded, self.rows)
        self.ids, self.logits = reference.greedy(self.embeddings)
        self.gap = float(top2_gaps(self.logits).min())
        self.avl, self.avl_more = [], []

    def good(self):
        """Decides as early as it can; fills self.avl."""
        if self.gap <= GAP_MIN or len(set(self.ids)) < DISTINCT_MIN:
            return False
        visual = self.visual = [
            p for start, count in self.spans for p in range(start, start + count)
        ]
        dense = self.decoder.run(self.embeddings, visual)
        error = float(np.abs(dense["logits"] - self.logits).max())
        assert (
            dense["ids"] == self.ids and error < 2e-4
        ), f"avl_decoder differs from transformers by {error}"
        if not visual:
            return True
        for store, compute, interval in AVL_SETTINGS + (
            AVL_MORE_SETTINGS if self.number == 1 else []
        ):
            run = self.decoder.run(self.embeddings, visual, store, compute, interval)
            if (
                run["min_logit_gap"] <= AVL_GAP_MIN
                or run["min_score_gap_relative"] <= SCORE_GAP_MIN
            ):
                return False
            self.avl.append(
                {
                    "store": store,
                    "compute": compute,
                    "interval": interval,
                    "greedy_ids": run["ids"],
                    "source": "decoder",
                    "min_logit_gap": round(run["min_logit_gap"], 6),
                    "min_score_gap": finite(run["min_score_gap"]),
                    "min_score_gap_relative": finite(run["min_score_gap_relative"]),
                    "visual_rows": run["visual_rows"],
                    "stored_rows": run["stored_rows"],
                    "core_rows": run["core_rows"],
                    "secondary": run["secondary"] or [],
                    "cores": run["cores"] if interval > 1 else [],
                }
            )
        return True

    def run_more(self):
        for setting in AVL_TEXT + [
            s for s in AVL_FILTER if s["prefill_layer"] < self.decoder.layer_count
        ]:
            run = self.decoder.run(self.embeddings, self.visual, **setting)
            if (
                run["min_logit_gap"] > AVL_GAP_MIN
                and run["min_score_gap_relative"] > SCORE_GAP_MIN
                and run["min_text_gap"] > TEXT_GAP_MIN
            ):
                self.avl_more.append(
                    {
                        **setting,
                        "greedy_ids": run["ids"],
                        "source": "decoder",
                        "min_logit_gap": round(run["min_logit_gap"], 6),
                        "min_score_gap_relative": finite(run["min_score_gap_relative"]),
                        "min_text_gap": finite(run["min_text_gap"]),
                    }
                )


def finite(value):
    """None where nothing was cut."""
    return value if np.isfinite(value) else None


def choose(reference, decoder, number, prompt, sizes):
    """The first picture seed (for a text-only case: the first ending of the prompt) that makes a
    good case.
    """
    for seed in range(SEEDS_MAX):
        images = [draw(w, h, 100000 * number + 10 * seed + i) for i, (w, h) in enumerate(sizes)]
        text = prompt if sizes or seed == 0 else prompt + " " + str(seed)
        case = Case(reference, decoder, number, text, images)
        if case.good():
            return case
    sys.exit(f"{reference.directory} case {number}: no good seed among {SEEDS_MAX}")


def officials(runs):
    return sum(run["source"] == "official" for run in runs)


def ask_official(checkout, reference, case, directory):
    """Lets the authors' implementation repeat the A-VL runs that it can do; disagreement is an
    error.
    """
    text = reference.config.text_config
    scaling = getattr(text, "rope_scaling", None) or {}
    able = (
        text.model_type == "llama"
        and not getattr(text, "mlp_bias", False)
        and scaling.get("rope_type", scaling.get("type")) != "llama3"
    )
    if not able or len(case.images) != 1:
        return
    runs, entries = [], []
    for entry in case.avl + case.avl_more:
        # their sizes: int((1 - rate) * rows) in doubles, which can lose a token
        rows = len(case.visual)
        if all(
            int((1 - (1 - entry[key])) * rows) == share(entry[key], rows)
            for key in ("store", "compute", "prefill_keep")
            if key in entry
        ):
            entries.append(entry)
            runs.append(
                {
                    "prompt_ids": case.prompt_ids,
                    "image_rows": [n for _, n in case.spans],
                    "features": os.path.join(directory, "image_features.npy"),
                    **{
                        key: entry[key]
                        for key in (
                            "store",
                            "compute",
                            "interval",
                            "text_keep",
                            "text_keep_min",
                            "prefill_keep",
                            "prefill_layer",
                        )
                        if key in entry
                    },
                }
            )
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "avl_official.py")
    answer = subprocess.run(
        [sys.executable, script, checkout],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        input=json.dumps({"model": reference.directory, "runs": runs}),
    )
    for entry, official in zip(entries, json.loads(answer.stdout)):
        if "error" in official:
            print(f"{directory}: official cannot: {official['error']}")
        elif official["greedy_ids"] != entry["greedy_ids"]:
            sys.exit(f"{directory}: official and avl_decoder differ: {entry}")
        else:
            entry["source"] = "official"


def write_case(reference, spec, number, case, directory, checkout):
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
        record["bf16"] = bf16_reference(reference, case)
    if case.avl:
        if number <= 2:
            case.run_more()
        if checkout:
            ask_official(checkout, reference, case, directory)
        record["avl"] = case.avl
        if case.avl_more:
            record["avl_more"] = case.avl_more
    with open(os.path.join(directory, "case.json"), "w", encoding="utf-8") as file:
        file.write(compact_json(record))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    repository = os.path.normpath(
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    )
    parser.add_argument("--out", default=os.path.join(repository, "tests", "data"))
    parser.add_argument(
        "--tokenizer",
        default=os.path.join(repository, "tests", "data", "models", "llava-mha"),
        help="directory whose tokenizer files the models get (default: the one that they share)",
    )
    parser.add_argument("--only", action="append", help="a model's name; may be repeated")
    parser.add_argument(
        "--official",
        help="checkout of the authors' A-VL repository; without it every A-VL run "
        "is avl_decoder.py's alone",
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for spec in SPECS:
        if arguments.only and spec["name"] not in arguments.only:
            continue
        directory = write_model(spec, os.path.join(arguments.out, "models"), arguments.tokenizer)
        reference, decoder = Reference(directory), Decoder(directory)
        shutil.rmtree(os.path.join(arguments.out, "cases", spec["name"]), ignore_errors=True)
        for number, (prompt, sizes) in enumerate(CASES[spec["name"]], 1):
            case = choose(reference, decoder, number, prompt, sizes)
            write_case(
                reference,
                spec,
                number,
                case,
                os.path.join(arguments.out, "cases", spec["name"], f"{number:02d}"),
                arguments.official,
            )
            print(
                f"{spec['name']}/{number:02d}: {len(case.expanded)} rows, gap {case.gap:.4f}, "
                f"{len(set(case.ids))} different tokens, A-VL "
                f"{len(case.avl)} runs, {officials(case.avl)} official, "
                f"{len(case.avl_more)} more, {officials(case.avl_more)} official",
                flush=True,
            )


if __name__ == "__main__":
    main()
