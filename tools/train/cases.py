#!/usr/bin/env python3
"""Writes reference answers of an exported model: models/cases, in the layout that models/README.md describes.

Pixels and image rows are those of `transformers`; tokens are those of tools/reference/avl_decoder.py, f32 over the bf16
weights. Pictures are tried in order until dense attention's answer is right and no two best logits of any run come
closer than MIN_GAP (in the dense one MIN_GAP_DENSE), so that a test may demand equal tokens.
"""

import argparse
import json
import os
import sys

import numpy as np

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reference"))

import packing
import tasks
from avl_decoder import Decoder
from models_reference import Reference, open_image

MIN_GAP = 0.02
MIN_GAP_DENSE = 0.25  # bf16 gives the same tokens
CASES = ("caption", "questions", "reading", "caption", "questions", "reading")
SETTINGS = {
    "full": (1, 1),
    "avl50": (0.5, 0.3),
    "avl70": (0.3, 0.15),
    "avl90": (0.1, 0.05),
}
INTERVAL, MAX_TOKENS = 3, 200


def importance(decoder, embeddings, visual):
    """[layers, visual rows]: the last prompt row's attention, mean over heads."""
    from avl_decoder import Layer

    seen = []

    def after(_, layer, weights):
        row = weights[:, -1].mean(0)
        column = {position: i for i, position in enumerate(layer.positions)}
        seen.append(row[[column[p] for p in visual]].numpy())

    layers = [Layer() for _ in range(decoder.layer_count)]
    decoder.forward(embeddings, list(range(len(embeddings))), layers, lambda _: None, after)
    return np.stack(seen)


def attempt(decoder, reference, text, directory, task, index):
    """Writes the case, unless the answer is wrong or a run too close to a tie. Returns whether it did."""
    shown, turns = tasks.example("cases", task, index)
    prompt = text.prompt(turns, 1)
    if len(shown) != 1:
        return False
    os.makedirs(directory, exist_ok=True)
    shown[0].image.save(os.path.join(directory, "image.png"))
    image = open_image(os.path.join(directory, "image.png"))
    features = reference.image_rows([image])[0].numpy()
    ids = reference.prompt_ids(prompt)
    embeddings, visual = decoder.prompt(ids, [len(features)], features)
    settings, first = {}, None
    for name, (store, compute) in SETTINGS.items():
        run = decoder.run(embeddings, visual, store, compute, INTERVAL, count=MAX_TOKENS, eos=2)
        dense = name == "full"
        if run["min_logit_gap"] < (MIN_GAP_DENSE if dense else MIN_GAP):
            return False
        if dense and text.answer(run["ids"]) != turns[-1].answer:
            return False
        settings[name] = {"store": store, "compute": compute, "interval": INTERVAL, "token_ids": run["ids"],
                          "text": text.answer(run["ids"]), "min_logit_gap": run["min_logit_gap"]}  # fmt: skip
        first = run["logits"][0]
    case = {"task": task, "prompt": prompt, "truth": turns[-1].answer, "prompt_ids": ids, "image_tokens": len(features),
            "image_start": visual[0], "max_tokens": MAX_TOKENS, "eos": 2, "settings": settings}  # fmt: skip
    with open(os.path.join(directory, "case.json"), "w", encoding="utf-8") as file:
        json.dump(case, file, indent=1)
        file.write("\n")
    arrays = {"pixels": reference.pixels(image)[0], "image_features": features, "first_logits": first,
              "importance": importance(decoder, embeddings, visual)}  # fmt: skip
    for name, value in arrays.items():
        np.save(os.path.join(directory, name + ".npy"), np.asarray(value, dtype=np.float32))
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="exported directory")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    import torch

    torch.set_grad_enabled(False)
    decoder, reference, text = Decoder(arguments.model), Reference(arguments.model), packing.Text()
    index = 0
    for number, task in enumerate(CASES):
        directory = os.path.join(arguments.out, f"{number:02d}")
        while not attempt(decoder, reference, text, directory, task, index):
            index += 1
        print(f"{directory}: {task} {index}")
        index += 1


if __name__ == "__main__":
    main()
