#!/usr/bin/env python3
"""Writes tests/checkpoint/data/config.txt: partial configurations and what transformers makes of them.

Two lines for each case: the text of config.json, and the values that LlavaConfig or LlavaNextConfig ends up with, in
the order that tests/checkpoint/config.c writes its own. The image processor takes squares of the tower's side.

Run with transformers 4.46.3:  tools/reference/config.py > tests/checkpoint/data/config.txt
"""

import copy
import json
import random

import numpy
from transformers import LlavaConfig, LlavaNextConfig
from transformers.utils import logging

CASES = 200
TEXT = {
    "hidden_size": [1024, 4096, 5120],
    "intermediate_size": [512],
    "num_hidden_layers": [2],
    "num_attention_heads": [16, 32],
    "num_key_value_heads": [4, 8, None],
    "head_dim": [64, 128, None],
    "vocab_size": [100],
    "max_position_embeddings": [4096],
    "rms_norm_eps": [1e-5],
    "rope_theta": [1e6, 500000],
    "rope_scaling": [None, {"type": "linear", "factor": 2.0}, {"rope_type": "dynamic", "factor": 4.0}],
    "sliding_window": [128, None],
    "attention_bias": [True, False],
    "mlp_bias": [True],
    "tie_word_embeddings": [True, False],
    "eos_token_id": [7],
    "bos_token_id": [8],
    "pad_token_id": [0],
}
VISION = {
    "hidden_size": [768, 1536],
    "intermediate_size": [64],
    "num_hidden_layers": [3],
    "num_attention_heads": [12],
    "image_size": [224, 336, 448],
    "layer_norm_eps": [1e-6],
    "model_type": ["clip_vision_model"],
}
SCALINGS = {None: 0, "linear": 1, "dynamic": 2}


def some(generator, choices, probability):
    return {key: generator.choice(values) for key, values in choices.items() if generator.random() < probability}


def draw(generator):
    llava_next = generator.random() < 0.5
    config = {"model_type": "llava_next" if llava_next else "llava"}
    if generator.random() < 0.8:
        config["text_config"] = some(generator, TEXT, 0.3)
        if generator.random() < 0.6:
            config["text_config"]["model_type"] = generator.choice(["llama", "mistral"])
    if generator.random() < 0.8:
        config["vision_config"] = some(generator, VISION, 0.5)
        config["vision_config"]["patch_size"] = generator.choice([14, 28])
    config.update(some(generator, {"image_token_index": [5], "vision_feature_layer": [-1, -2, -3, 1]}, 0.4))
    if not llava_next:
        config.update(some(generator, {"vision_feature_select_strategy": ["default", "full"]}, 0.4))
    return config


def resolve(config):
    kind = LlavaNextConfig if config["model_type"] == "llava_next" else LlavaConfig
    resolved = kind.from_dict(copy.deepcopy(config))
    text, vision = resolved.text_config, resolved.vision_config
    llama = text.model_type == "llama"  # attributes of other classes' keys exist, but nothing reads them
    scaling = getattr(text, "rope_scaling", None) or {}
    layer = resolved.vision_feature_layer
    epsilon = lambda value: "%.9g" % numpy.float32(value)
    return vision.image_size, [
        text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads,
        text.num_key_value_heads, text.head_dim, text.vocab_size, text.max_position_embeddings,
        epsilon(text.rms_norm_eps), SCALINGS[scaling.get("rope_type", scaling.get("type"))],
        "%.9g" % text.rope_theta, "%.9g" % scaling.get("factor", 1.0), 0 if llama else text.sliding_window or 0,
        int(llama and text.attention_bias), int(llama and text.mlp_bias), int(text.tie_word_embeddings),
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, vision.num_attention_heads,
        vision.image_size, vision.patch_size, epsilon(vision.layer_norm_eps), resolved.image_token_index,
        layer if layer >= 0 else layer + vision.num_hidden_layers + 1,
        int(resolved.vision_feature_select_strategy == "default"), text.eos_token_id, text.bos_token_id,
        -1 if text.pad_token_id is None else text.pad_token_id,
    ]  # fmt: skip


def main():
    logging.set_verbosity_error()
    generator = random.Random(3)
    for _ in range(CASES):
        config = draw(generator)
        side, values = resolve(config)
        if config["model_type"] == "llava_next":
            config["image_grid_pinpoints"] = [[side, 2 * side], [side, side]]
        print(json.dumps(config, separators=(",", ":")))
        print(*values)


if __name__ == "__main__":
    main()
