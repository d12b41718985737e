#!/usr/bin/env python3
"""Runs the authors' A-VL implementation on a model directory and prompts, in f32 on the CPU.

It needs a checkout of their repository (https://github.com/2147483647-2/A-VL, commit 8932507),
whose src/transformers is a patched fork of `transformers`; that fork is imported from the checkout,
so this runs in a process of its own. Nothing of it is part of this project.

Reads a JSON object from standard input: {"model": directory, "runs": [{"prompt_ids", "image_rows",
"features": path of an .npy, "store", "compute", "interval", "count", "text_keep", "text_keep_min",
"prefill_keep", "prefill_layer"}]}; writes a JSON list of {"greedy_ids", "min_logit_gap"} or
{"error"} to standard output.

What it can run: LLaMA text models, one span of image rows (several pictures would count as one
span).
"""

import argparse
import json
import os
import sys
import types


def import_official(checkout):
    """The fork asks for older tokenizers and hub packages than are installed; nothing used here
    depends on it.
    """
    sys.path.insert(0, os.path.join(checkout, "src", "transformers", "src"))
    unchecked = types.ModuleType("transformers.dependency_versions_check")
    unchecked.dep_version_check = lambda *arguments, **options: None
    sys.modules["transformers.dependency_versions_check"] = unchecked
    from transformers.models.llama import configuration_llama, modeling_llama

    assert os.path.abspath(checkout) in os.path.abspath(
        modeling_llama.__file__
    ), modeling_llama.__file__
    return configuration_llama.LlamaConfig, modeling_llama


class Official:
    def __init__(self, checkout, directory):
        import torch
        from avl_decoder import Decoder

        config_class, self.module = import_official(checkout)
        self.torch = torch
        self.decoder = Decoder(directory)  # for its weights and its expansion of the prompt only
        text = dict(self.decoder.text)
        assert text["model_type"] == "llama" and not text.get(
            "mlp_bias"
        ), "the fork cannot load this model"
        text.setdefault("rms_norm_eps", 1e-6)
        if text.get("rope_scaling"):  # the fork knows the older key and two kinds
            text["rope_scaling"] = dict(text["rope_scaling"])
            text["rope_scaling"].setdefault("type", text["rope_scaling"].pop("rope_type", None))
        config = config_class(**text)
        config._attn_implementation = "eager"
        self.model = self.module.LlamaForCausalLM._from_config(
            config, attn_implementation="eager", torch_dtype=torch.float32
        ).eval()
        prefix = "language_model."
        state = {
            key[len(prefix) :]: value
            for key, value in self.decoder.weights.items()
            if key.startswith(prefix)
        }
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected and all("rotary" in key for key in missing), (missing, unexpected)
        self.frequencies = {
            name: module.inv_freq.clone()
            for name, module in self.model.named_modules()
            if hasattr(module, "inv_freq")
        }
        attention = type(self.model.model.layers[0].self_attn)
        assert attention is self.module.LlamaAttention, attention

    def settings(self, run):
        """Their flags are shares to drop; ours are shares to keep."""
        state = self.module.global_inf_config
        for (
            name,
            module,
        ) in self.model.named_modules():  # a dynamic rope would stay grown from run to run
            if name in self.frequencies:
                module.register_buffer("inv_freq", self.frequencies[name], persistent=False)
        for layer in self.model.model.layers:
            for name in ("kv_cache", "text_weights"):
                if hasattr(layer, name):
                    delattr(layer, name)
        visual = run.get("store") is not None
        state.update(
            gen_token_idx=0,
            update_inference=False,
            vision_adaptive_attention=visual,
            vision_adaptive_attention_update_interval=run.get("interval", 3) if visual else -1,
            text_pruning_flag=run.get("text_keep") is not None,
            text_use_h2o=False,
            all_use_h2o=False,
            text_pruning_interval=1,
            text_init_cache=run.get("text_keep_min", 1),
            prefill_filter_flag=run.get("prefill_keep") is not None,
            prefill_filter_layer=run.get("prefill_layer", 2),
        )
        if visual:
            state.update(
                vision_adaptive_attention_rate=1 - run["store"],
                vision_adaptive_attention_compute_rate=1 - run["compute"],
            )
        if run.get("text_keep") is not None:
            state.update(text_pruning_rate=1 - run["text_keep"])
        if run.get("prefill_keep") is not None:
            state.update(prefill_filter_rate=1 - run["prefill_keep"])

    def run(self, run):
        import numpy as np

        torch = self.torch
        embeddings, visual = self.decoder.prompt(
            run["prompt_ids"], run["image_rows"], np.load(run["features"])
        )
        mask = torch.zeros(1, len(embeddings), dtype=torch.bool)
        mask[0, visual] = True
        self.settings(run)
        self.model.model.init_image_token_position_mask = mask
        inputs, cache, ids, gap = {"inputs_embeds": embeddings[None]}, None, [], float("inf")
        inputs["attention_mask"] = torch.ones(1, len(embeddings), dtype=torch.long)
        with torch.no_grad():
            while len(ids) < run.get("count", 64):
                out = self.model(**inputs, past_key_values=cache, use_cache=True)
                cache, logits = out.past_key_values, out.logits[0, -1]
                two = logits.topk(2).values
                gap = min(gap, float(two[0] - two[1]))
                ids.append(int(logits.argmax()))
                inputs = {"input_ids": torch.tensor([ids[-1:]])}
        return {"greedy_ids": ids, "min_logit_gap": gap}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="checkout of the authors' repository")
    arguments = parser.parse_args()
    request = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the fork prints; standard output is the answer alone
    import torch

    torch.set_num_threads(1)
    official = Official(arguments.checkout, request["model"])
    answers = []
    for run in request["runs"]:
        try:
            answers.append(official.run(run))
        except Exception as error:  # a run that their code cannot do is an answer, too
            answers.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(answers, output)
    output.write("\n")
    output.flush()


if __name__ == "__main__":
    main()
