#!/usr/bin/env python3
"""Writes a training checkpoint as a Hugging Face directory: bf16 weights and every JSON file."""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

import model
import wordpieces
from pictures import PATCH, SIDE


def config_json(shape, facts):
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": facts["image"],
        "model_type": "llava",
        "pad_token_id": facts["pad"],
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": shape["hidden"],
            "intermediate_size": shape["mlp"],
            "max_position_embeddings": shape["positions"],
            "model_type": "llama",
            "num_attention_heads": shape["heads"],
            "num_hidden_layers": shape["layers"],
            "num_key_value_heads": shape["kv_heads"],
            "rms_norm_eps": shape["rms_eps"],
            "rope_scaling": None,
            "rope_theta": shape["rope_theta"],
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": facts["vocabulary"],
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "vision_config": {
            "attention_dropout": 0.0,
            "hidden_act": "quick_gelu",
            "hidden_size": shape["v_hidden"],
            "image_size": SIDE,
            "intermediate_size": shape["v_mlp"],
            "layer_norm_eps": shape["norm_eps"],
            "model_type": "clip_vision_model",
            "num_attention_heads": shape["v_heads"],
            "num_channels": 3,
            "num_hidden_layers": shape["v_layers"],
            "patch_size": PATCH,
            "projection_dim": shape["v_hidden"],
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": facts["vocabulary"],
    }


def preprocessor_json():
    return {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(model.MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(model.DEVIATION),
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": SIDE},
    }


def write_json(directory, name, value):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def export(saved, directory):
    """`saved` is a checkpoint; the directory appears whole, an older one goes."""
    scratch = directory.rstrip("/") + ".new"
    shutil.rmtree(scratch, ignore_errors=True)
    facts = wordpieces.save(scratch)
    write_json(scratch, "config.json", config_json(saved["shape"], facts))
    write_json(scratch, "preprocessor_config.json", preprocessor_json())
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": facts["pad"],
                  "transformers_version": "4.46.3"}  # fmt: skip
    write_json(scratch, "generation_config.json", generation)
    tensors = {k: v.to(torch.bfloat16).cpu().contiguous() for k, v in saved["weights"].items() if "lessons" not in k}
    save_file(tensors, os.path.join(scratch, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(scratch, "model.safetensors"), 0o644)
    old = directory.rstrip("/") + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.exists(directory):
        os.rename(directory, old)
    os.rename(scratch, directory)
    shutil.rmtree(old, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    export(torch.load(arguments.checkpoint, map_location="cpu"), arguments.out)


if __name__ == "__main__":
    main()
