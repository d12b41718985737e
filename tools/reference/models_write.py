"""Tiny random models as complete Hugging Face directories.

Every number comes from numpy's PCG64 with a seed of its own, so a directory is the same wherever it
is made. Scales are chosen so that tests can tell right from wrong: query and key weights are large
(attention is peaked, selections are far from ties), the head is large (logits differ by whole
units), and the rows of the special tokens are zero or faint in the head (none of them, eos
included, is ever the best token).
"""

import json
import os
import shutil

import numpy as np
import torch
from safetensors.torch import save_file

IMAGE_TOKEN = 787
PAD_TOKEN = 788
FIRST_UNUSED_ID = 787  # <image>, <pad> and the rows that pad the vocabulary
SPECIAL_IDS = (0, 1, 2)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def spec(name, **overrides):
    """A model's facts; what config.json says of them is decided by config_json()."""
    facts = dict(
        name=name,
        seed=1,
        family="llava",
        text="llama",
        dtype="float32",
        layout="old",
        shards=1,
        vocab=800,
        hidden=32,
        mlp=64,
        layers=3,
        heads=4,
        kv_heads=4,
        head_dim=None,
        positions=512,
        rms_eps=1e-6,
        rope_theta=10000.0,
        rope_scaling=None,
        sliding_window=None,
        attention_bias=False,
        mlp_bias=False,
        tied=False,
        v_hidden=32,
        v_mlp=64,
        v_layers=3,
        v_heads=4,
        image=42,
        patch=7,
        feature_layer=-2,
        strategy="default",
        pinpoints=None,
        terse=False,
        gain=1.7,
        logit_std=3.0,
    )
    facts.update(overrides)
    if facts["head_dim"] is None:
        facts["head_dim"] = facts["hidden"] // facts["heads"]
    return facts


SPECS = [
    spec("llava-mha", seed=11, terse=True, vocab=792, v_mlp=48),
    spec(
        "llava-gqa",
        seed=12,
        dtype="bfloat16",
        layout="new",
        shards=3,
        hidden=48,
        heads=6,
        kv_heads=3,
        mlp=80,
        rms_eps=1e-5,
        v_heads=4,
    ),
    spec(
        "llava-mistral",
        seed=13,
        text="mistral",
        dtype="float16",
        kv_heads=2,
        sliding_window=24,
        tied=True,
        hidden=48,
        head_dim=16,
        heads=4,
        mlp=96,
        image=28,
    ),
    spec(
        "next-mha",
        seed=14,
        family="llava_next",
        vocab=792,
        v_mlp=48,
        image=28,
        pinpoints=[[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]],
    ),
    spec(
        "next-gqa",
        seed=15,
        family="llava_next",
        text="mistral",
        dtype="bfloat16",
        hidden=48,
        heads=6,
        kv_heads=2,
        mlp=96,
        rope_theta=1e6,
        rms_eps=1e-5,
        image=28,
        layout="new",
        positions=32768,
        pinpoints=[[56, 56], [28, 84], [84, 28], [28, 56], [56, 28], [56, 84]],
        terse=True,
    ),
    spec(
        "llava-rope-linear",
        seed=16,
        dtype="bfloat16",
        layers=2,
        v_layers=2,
        image=28,
        hidden=32,
        heads=2,
        kv_heads=1,
        positions=256,
        rope_scaling={"type": "linear", "factor": 4.0},
    ),
    spec(
        "llava-rope-dynamic",
        seed=17,
        layers=2,
        v_layers=2,
        image=28,
        hidden=32,
        heads=2,
        kv_heads=2,
        positions=32,
        rope_scaling={"rope_type": "dynamic", "factor": 4.0},
    ),
    spec(
        "llava-rope-llama3",
        seed=18,
        dtype="bfloat16",
        layers=2,
        v_layers=2,
        image=28,
        hidden=32,
        heads=2,
        kv_heads=1,
        positions=256,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    spec(
        "llava-bias",
        seed=19,
        layers=2,
        v_layers=3,
        image=28,
        attention_bias=True,
        mlp_bias=True,
        heads=4,
        kv_heads=2,
        feature_layer=[-2, -1],
        strategy="full",
    ),
]


def by_name(name):
    return next(s for s in SPECS if s["name"] == name)


def is_next(s):
    return s["family"] == "llava_next"


def feature_layers(s):
    layers = s["feature_layer"]
    return layers if isinstance(layers, list) else [layers]


def make_state(s):
    """The weights under the older key layout, f32."""
    rng = np.random.default_rng(s["seed"])
    state = {}

    def normal(key, shape, std, mean=0.0):
        state[key] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    def linear(key, rows, columns, gain, bias):
        normal(key + ".weight", (rows, columns), gain / np.sqrt(columns))
        if bias:
            normal(key + ".bias", (rows,), 0.2)

    width = s["v_hidden"]
    tower = "vision_tower.vision_model."
    patches = (s["image"] // s["patch"]) ** 2
    normal(tower + "embeddings.class_embedding", (width,), 0.7)
    normal(
        tower + "embeddings.patch_embedding.weight",
        (width, 3, s["patch"], s["patch"]),
        1.0 / np.sqrt(3 * s["patch"] ** 2) * 2,
    )
    normal(tower + "embeddings.position_embedding.weight", (patches + 1, width), 0.5)
    for norm in ("pre_layrnorm", "post_layernorm"):
        normal(tower + norm + ".weight", (width,), 0.1, 1.0)
        normal(tower + norm + ".bias", (width,), 0.1)
    for i in range(s["v_layers"]):
        layer = f"{tower}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            normal(layer + norm + ".weight", (width,), 0.1, 1.0)
            normal(layer + norm + ".bias", (width,), 0.1)
        for projection in ("q_proj", "k_proj"):
            linear(layer + "self_attn." + projection, width, width, 1.5, True)
        linear(layer + "self_attn.v_proj", width, width, 1.0, True)
        linear(layer + "self_attn.out_proj", width, width, 1.0, True)
        linear(layer + "mlp.fc1", s["v_mlp"], width, 1.0, True)
        linear(layer + "mlp.fc2", width, s["v_mlp"], 1.5, True)

    hidden = s["hidden"]
    linear("multi_modal_projector.linear_1", hidden, width * len(feature_layers(s)), 1.0, True)
    linear("multi_modal_projector.linear_2", hidden, hidden, 1.3, True)
    if is_next(s):
        normal("image_newline", (hidden,), 1.0)

    # A tied head must not favour the token that was just read: a small embedding leaves the
    # residual stream to the layers, and the last norm brings the logits back to scale.
    embedding_std = 0.15 if s["tied"] else 1.0
    model = "language_model.model."
    normal(model + "embed_tokens.weight", (s["vocab"], hidden), embedding_std)
    for i in range(s["layers"]):
        layer = f"{model}layers.{i}."
        normal(layer + "input_layernorm.weight", (hidden,), 0.1, 1.0)
        normal(layer + "post_attention_layernorm.weight", (hidden,), 0.1, 1.0)
        q_rows, kv_rows = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
        linear(layer + "self_attn.q_proj", q_rows, hidden, s["gain"], s["attention_bias"])
        linear(layer + "self_attn.k_proj", kv_rows, hidden, s["gain"], s["attention_bias"])
        linear(layer + "self_attn.v_proj", kv_rows, hidden, 1.2, s["attention_bias"])
        linear(layer + "self_attn.o_proj", hidden, q_rows, 1.5, s["attention_bias"])
        linear(layer + "mlp.gate_proj", s["mlp"], hidden, 1.5, s["mlp_bias"])
        linear(layer + "mlp.up_proj", s["mlp"], hidden, 1.5, s["mlp_bias"])
        linear(layer + "mlp.down_proj", hidden, s["mlp"], 1.5, s["mlp_bias"])
    head_std = s["logit_std"] / np.sqrt(hidden)
    if s["tied"]:
        normal(model + "norm.weight", (hidden,), 0.1, head_std / embedding_std)
        head = state[model + "embed_tokens.weight"]
    else:
        normal(model + "norm.weight", (hidden,), 0.1, 1.0)
        normal("language_model.lm_head.weight", (s["vocab"], hidden), head_std)
        head = state["language_model.lm_head.weight"]
    # Not zero where the head is the embedding: a row of zeros would have zero keys, which some
    # versions of the library take for padding.
    for row in [*SPECIAL_IDS, *range(FIRST_UNUSED_ID, s["vocab"])]:
        head[row] = 0.05 * head[row] if s["tied"] else 0.0
    return state


def new_key(key):
    """The older layout's key in the newer layout."""
    if key.startswith("language_model.model."):
        return "model.language_model." + key[len("language_model.model.") :]
    if key.startswith("language_model.lm_head."):
        return key[len("language_model.") :]
    return "model." + key


def old_key(key):
    if key.startswith("model.language_model."):
        return "language_model.model." + key[len("model.language_model.") :]
    if key.startswith("lm_head."):
        return "language_model." + key
    if key.startswith("model."):
        return key[len("model.") :]
    return key


def text_config(s):
    text = {
        "architectures": ["MistralForCausalLM" if s["text"] == "mistral" else "LlamaForCausalLM"],
        "model_type": s["text"],
        "hidden_size": s["hidden"],
        "intermediate_size": s["mlp"],
        "max_position_embeddings": s["positions"],
        "num_attention_heads": s["heads"],
        "num_hidden_layers": s["layers"],
        "vocab_size": s["vocab"],
        "torch_dtype": s["dtype"],
    }
    full = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "rms_norm_eps": s["rms_eps"],
        "rope_theta": s["rope_theta"],
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    defaults = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    for key, value in full.items():
        if not s["terse"] or value != defaults[key]:
            text[key] = value
    if s["kv_heads"] != s["heads"] or s["text"] == "mistral" or not s["terse"]:
        text["num_key_value_heads"] = s["kv_heads"]
    if s["head_dim"] != s["hidden"] // s["heads"]:
        text["head_dim"] = s["head_dim"]
    if s["rope_scaling"]:
        text["rope_scaling"] = s["rope_scaling"]
    if s["text"] == "mistral":
        text["sliding_window"] = s["sliding_window"]
    if s["attention_bias"]:
        text["attention_bias"] = True
    if s["mlp_bias"]:
        text["mlp_bias"] = True
    if s["tied"]:
        text["tie_word_embeddings"] = True
    elif not s["terse"]:
        text["tie_word_embeddings"] = False
    return text


def config_json(s):
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": s["v_hidden"],
        "image_size": s["image"],
        "intermediate_size": s["v_mlp"],
        "num_attention_heads": s["v_heads"],
        "num_hidden_layers": s["v_layers"],
        "patch_size": s["patch"],
        "projection_dim": s["v_hidden"],
    }
    if not s["terse"]:
        vision.update(hidden_act="quick_gelu", layer_norm_eps=1e-5, num_channels=3)
    config = {
        "architectures": [
            "LlavaNextForConditionalGeneration" if is_next(s) else "LlavaForConditionalGeneration"
        ],
        "model_type": s["family"],
        "image_token_index": IMAGE_TOKEN,
        "pad_token_id": PAD_TOKEN,
        "text_config": text_config(s),
        "vision_config": vision,
        "torch_dtype": s["dtype"],
        "transformers_version": "4.46.3",
    }
    if s["layout"] == "new":  # newer directories also rename this one
        config["image_token_id"] = config.pop("image_token_index")
    if not s["terse"]:
        config.update(
            ignore_index=-100,
            projector_hidden_act="gelu",
            vision_feature_layer=s["feature_layer"],
            vision_feature_select_strategy=s["strategy"],
        )
    if s["tied"]:
        config["tie_word_embeddings"] = True
    elif is_next(s) or not s["terse"]:
        config["tie_word_embeddings"] = False
    if is_next(s):
        config["image_grid_pinpoints"] = s["pinpoints"]
        config["use_image_newline_parameter"] = True
    return config


def preprocessor_json(s):
    side = s["image"]
    config = {
        "image_processor_type": "LlavaNextImageProcessor" if is_next(s) else "CLIPImageProcessor",
        "processor_class": "LlavaNextProcessor" if is_next(s) else "LlavaProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    if not s["terse"]:
        config.update(
            do_center_crop=True,
            do_convert_rgb=True,
            do_normalize=True,
            do_rescale=True,
            do_resize=True,
            resample=3,
            rescale_factor=0.00392156862745098,
        )
    if is_next(s):
        config["aspect_ratio_setting"] = "anyres"
        config["do_pad"] = True
        config["image_grid_pinpoints"] = s["pinpoints"]
    return config


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def write_weights(s, directory):
    tensors = {}
    for key, value in make_state(s).items():
        name = new_key(key) if s["layout"] == "new" else key
        tensors[name] = torch.from_numpy(value).to(DTYPES[s["dtype"]])
    if s["shards"] == 1:
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    files, used = [{}], 0
    for name, tensor in tensors.items():
        if used >= total * len(files) / s["shards"]:
            files.append({})
        files[-1][name] = tensor
        used += tensor.numel() * tensor.element_size()
    weight_map = {}
    for i, part in enumerate(files):
        file_name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        save_file(part, os.path.join(directory, file_name), metadata={"format": "pt"})
        weight_map.update({name: file_name for name in part})
    write_json(
        os.path.join(directory, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def write_model(s, root, tokenizer_directory):
    directory = os.path.join(root, s["name"])
    tokenizer = {}
    for name in TOKENIZER_FILES:  # before the directory goes: it may be the same one
        with open(os.path.join(tokenizer_directory, name), "rb") as file:
            tokenizer[name] = file.read()
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    for name, text in tokenizer.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(text)
    tokenizer_config = json.loads(tokenizer["tokenizer_config.json"])
    tokenizer_config["processor_class"] = preprocessor_json(s)["processor_class"]
    write_json(os.path.join(directory, "tokenizer_config.json"), tokenizer_config)
    write_json(os.path.join(directory, "config.json"), config_json(s))
    write_json(os.path.join(directory, "preprocessor_config.json"), preprocessor_json(s))
    write_json(
        os.path.join(directory, "generation_config.json"),
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": PAD_TOKEN,
            "transformers_version": "4.46.3",
        },
    )
    write_weights(s, directory)
    return directory
