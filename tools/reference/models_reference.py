"""What `transformers` computes with a model directory and a case: pixels, image rows, logits,
greedy tokens.
"""

import glob
import json
import os

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
)
from transformers.cache_utils import DynamicCache
from transformers.models.clip.modeling_clip import CLIPAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.mistral.modeling_mistral import MistralAttention

from models_write import old_key

NEW_TOKENS = 64


class Reference:
    """One model directory under `transformers`, eager attention everywhere, weights upcast to
    `dtype`.
    """

    def __init__(self, directory, dtype=torch.float32):
        self.directory = directory
        self.dtype = dtype
        raw = json.load(open(os.path.join(directory, "config.json")))
        # transformers 4.46 knows neither the newer key of the image token nor the newer weight
        # names.
        if "image_token_id" in raw:
            raw["image_token_index"] = raw.pop("image_token_id")
        self.is_next = raw["model_type"] == "llava_next"
        layers = raw.get("vision_feature_layer", -2)
        self.feature_layers = layers if isinstance(layers, list) else [layers]
        raw["vision_feature_layer"] = self.feature_layers[0]
        self.image_token = raw["image_token_index"]
        config_class = LlavaNextConfig if self.is_next else LlavaConfig
        model_class = (
            LlavaNextForConditionalGeneration if self.is_next else LlavaForConditionalGeneration
        )
        self.config = config_class.from_dict(raw)
        self.config.image_seq_length = (
            1  # prompts come here expanded: no second expansion by the model
        )
        self.config._attn_implementation = "eager"
        self.config.text_config._attn_implementation = "eager"
        self.config.vision_config._attn_implementation = "eager"
        model = model_class._from_config(self.config, attn_implementation="eager")
        if (
            len(self.feature_layers) > 1
        ):  # newer than 4.46: the projector reads the layers side by side
            width = self.config.vision_config.hidden_size
            self.config.vision_config.hidden_size = width * len(self.feature_layers)
            model.multi_modal_projector = LlavaMultiModalProjector(self.config)
            self.config.vision_config.hidden_size = width
        self.weights = {}
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            for key, value in load_file(path).items():
                self.weights[old_key(key)] = value.to(torch.float32)
        state = {key: value.clone() for key, value in self.weights.items()}
        if "language_model.lm_head.weight" not in state:
            state["language_model.lm_head.weight"] = state[
                "language_model.model.embed_tokens.weight"
            ]
        model.load_state_dict(state, strict=True)
        self.model = model.to(dtype).eval()
        for module in model.modules():
            name = type(module).__name__
            if name.endswith("Attention"):
                assert type(module) in (CLIPAttention, LlamaAttention, MistralAttention), name
        processor = LlavaNextImageProcessor if self.is_next else CLIPImageProcessor
        self.processor = processor.from_pretrained(directory)
        self.tokenizer = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
        self.hf_tokenizer = AutoTokenizer.from_pretrained(directory)

    def prompt_ids(self, prompt):
        ids = self.tokenizer.encode(prompt).ids
        assert ids == self.hf_tokenizer(prompt).input_ids, prompt
        return ids

    def process(self, images, tensors):
        # Said, not guessed: the library takes a picture of height 1 or 3 for one with channels
        # first.
        return self.processor(images, return_tensors=tensors, input_data_format="channels_last")

    def pixels(self, image):
        """f32 [tiles, 3, side, side] of one picture."""
        value = self.process(image, "np")["pixel_values"]
        return np.asarray(value, dtype=np.float32).reshape(-1, *value.shape[-3:])

    @torch.no_grad()
    def image_rows(self, images):
        """Per picture: its rows as they enter the prompt, [rows, hidden]."""
        rows = []
        for image in images:
            pixels = torch.from_numpy(self.pixels(image)).to(self.dtype)
            states = self.model.vision_tower(pixels, output_hidden_states=True).hidden_states
            chosen = [states[layer] for layer in self.feature_layers]
            if self.config.vision_feature_select_strategy == "default":
                chosen = [state[:, 1:] for state in chosen]
            features = self.model.multi_modal_projector(torch.cat(chosen, dim=-1))
            if self.is_next:
                packed, lengths = self.model.pack_image_features(
                    [features],
                    torch.tensor([[image.height, image.width]]),
                    self.config.vision_feature_select_strategy,
                    image_newline=self.model.image_newline,
                )
                assert packed.shape[0] == int(lengths[0])
                rows.append(packed)
            else:
                rows.append(features[0])
        return rows

    def expand(self, prompt_ids, rows):
        """(ids with every image row, [(start, rows)])."""
        expanded, spans, counts = [], [], [len(r) for r in rows]
        for token in prompt_ids:
            if token == self.image_token:
                count = counts[len(spans)]
                spans.append((len(expanded), count))
                expanded += [token] * count
            else:
                expanded.append(token)
        assert len(spans) == len(counts), "placeholders and pictures differ in number"
        return expanded, spans

    @torch.no_grad()
    def embeddings(self, expanded, rows):
        ids = torch.tensor(expanded)
        embeddings = self.model.get_input_embeddings()(ids).clone()
        if rows:
            embeddings[ids == self.image_token] = torch.cat(rows)
        return embeddings

    def forget_growth(self):
        """A dynamic rope that grew for one prompt stays grown in the library: undone before every
        prompt.
        """
        for module in self.model.modules():
            if hasattr(module, "original_inv_freq"):
                module.inv_freq = module.original_inv_freq
                module.max_seq_len_cached = module.original_max_seq_len

    @torch.no_grad()
    def greedy(self, embeddings, count=NEW_TOKENS, forced=None):
        """(ids, logits [count, vocab] f32): eos does not end it; it is never the best anyway.
        `forced` tokens are read instead of the best ones.
        """
        language_model = self.model.language_model
        self.forget_growth()
        cache = DynamicCache()
        inputs = {"inputs_embeds": embeddings[None]}
        position, ids, logits = 0, [], []
        for _ in range(count):
            length = len(embeddings) if position == 0 else 1
            positions = torch.arange(position, position + length)
            out = language_model(
                **inputs,
                position_ids=positions[None],
                cache_position=positions,
                past_key_values=cache,
                use_cache=True
            )
            last = out.logits[0, -1].float()
            logits.append(last.numpy())
            ids.append(int(last.argmax()) if forced is None else forced[len(ids)])
            inputs = {"input_ids": torch.tensor([[ids[-1]]])}
            position += length
        return ids, np.stack(logits)

    @torch.no_grad()
    def whole_model_logits(self, expanded, images):
        """First-token logits by the library's own merge of text and pictures, where it can."""
        if len(self.feature_layers) > 1 or not images:
            return None
        inputs = dict(self.process(images, "pt"))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        inputs["input_ids"] = torch.tensor([expanded])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        self.forget_growth()
        return self.model(**inputs).logits[0, -1].float().numpy()


def top2_gaps(logits):
    ordered = np.sort(np.asarray(logits, dtype=np.float64), axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def open_image(path):
    return Image.open(path).convert("RGB")
