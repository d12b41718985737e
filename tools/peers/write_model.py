#!/usr/bin/env python3
"""Writes a LLaVA directory with random bf16 weights of a chosen size, so that two programs can be timed on the same file.

    tools/peers/write_model.py DIRECTORY [--hidden 2048 --layers 8 --heads 16 --kv-heads 16 --vocab 32064]

Development only; needs numpy. The vision tower is tiny: these models are for the decoder's speed.
"""
import argparse
import json
import os
import shutil
import struct

import numpy as np


def tensors_of(a):
    """Name -> shape, in file order."""
    vision, width, mlp = 64, a.hidden, a.mlp
    head = a.hidden // a.heads
    tower = "vision_tower.vision_model."
    yield tower + "embeddings.class_embedding", (vision,)
    yield tower + "embeddings.patch_embedding.weight", (vision, 3, 14, 14)
    yield tower + "embeddings.position_embedding.weight", (5, vision)
    for norm in ("pre_layrnorm", "post_layernorm"):
        yield tower + norm + ".weight", (vision,)
        yield tower + norm + ".bias", (vision,)
    for i in range(2):
        layer = f"{tower}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}self_attn.{name}.weight", (vision, vision)
            yield f"{layer}self_attn.{name}.bias", (vision,)
        for name, shape in (("fc1", (4 * vision, vision)), ("fc2", (vision, 4 * vision))):
            yield f"{layer}mlp.{name}.weight", shape
            yield f"{layer}mlp.{name}.bias", shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{layer}{norm}.weight", (vision,)
            yield f"{layer}{norm}.bias", (vision,)
    for name, shape in (("linear_1", (width, vision)), ("linear_2", (width, width))):
        yield f"multi_modal_projector.{name}.weight", shape
        yield f"multi_modal_projector.{name}.bias", shape[:1]
    text = "language_model.model."
    yield text + "embed_tokens.weight", (a.vocab, width)
    for i in range(a.layers):
        layer = f"{text}layers.{i}."
        yield layer + "input_layernorm.weight", (width,)
        yield layer + "post_attention_layernorm.weight", (width,)
        yield layer + "self_attn.q_proj.weight", (a.heads * head, width)
        yield layer + "self_attn.k_proj.weight", (a.kv_heads * head, width)
        yield layer + "self_attn.v_proj.weight", (a.kv_heads * head, width)
        yield layer + "self_attn.o_proj.weight", (width, a.heads * head)
        yield layer + "mlp.gate_proj.weight", (mlp, width)
        yield layer + "mlp.up_proj.weight", (mlp, width)
        yield layer + "mlp.down_proj.weight", (width, mlp)
    yield text + "norm.weight", (width,)
    yield "language_model.lm_head.weight", (a.vocab, width)


def write_weights(a, path):
    header, offset = {}, 0
    for name, shape in tensors_of(a):
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(1)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors_of(a):
            if "norm" in name and name.endswith("weight"):
                values = np.ones(shape, dtype=np.float32)
            else:
                values = random.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    for name, value in (("hidden", 2048), ("layers", 8), ("heads", 16), ("kv-heads", 16), ("mlp", 5504),
                        ("vocab", 32064), ("context", 4096)):
        parser.add_argument("--" + name, type=int, default=value)
    a = parser.parse_args()
    os.makedirs(a.directory, exist_ok=True)
    tiny = os.path.join(os.path.dirname(__file__), "../../models/avl-tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"):
        shutil.copy(os.path.join(tiny, name), a.directory)
    with open(os.path.join(tiny, "preprocessor_config.json")) as file:
        preprocessor = json.load(file)
    with open(os.path.join(tiny, "config.json")) as file:
        image_token = json.load(file)["image_token_index"]
    preprocessor.update(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    config = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "torch_dtype": "bfloat16",
        "image_token_index": image_token, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "llama", "hidden_size": a.hidden, "intermediate_size": a.mlp, "num_hidden_layers": a.layers,
            "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "vocab_size": a.vocab,
            "max_position_embeddings": a.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14},
    }
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        with open(os.path.join(a.directory, name), "w") as file:
            json.dump(content, file, indent=1)
    write_weights(a, os.path.join(a.directory, "model.safetensors"))


if __name__ == "__main__":
    main()
