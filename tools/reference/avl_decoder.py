#!/usr/bin/env python3
"""A plain f32 decoder with A-VL attention, written from the published description of the algorithm.

It owes nothing to `transformers` but the meaning of the config's keys: its dense runs are compared
with that library, its A-VL runs with the authors' implementation where that one can run. Everything
is row by row and unoptimised on purpose.

Run by itself it checks the shipped cases: avl_decoder.py --model models/avl-tiny --cases
models/cases
"""

import argparse
import glob
import json
import math
import os
import sys
from fractions import Fraction

import numpy as np
import torch
from safetensors.torch import load_file

from models_write import old_key


def share(ratio, count):
    """floor(ratio * count) of the decimal number that was written, not of its nearest double."""
    return math.floor(Fraction(str(ratio)) * count)


def inverse_frequencies(config, dim, length):
    """[dim/2] f32 for a sequence of `length` rows so far."""
    base = float(config.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "dynamic":
        maximum = config["max_position_embeddings"]
        factor = scaling["factor"]
        if length > maximum:
            base *= (factor * length / maximum - (factor - 1)) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (base**exponents)
    if kind == "linear":
        frequencies = frequencies / scaling["factor"]
    elif kind == "llama3":
        original = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        scaled = []
        for frequency in frequencies.tolist():
            turns = original * frequency / (2 * math.pi)
            if turns < low:
                scaled.append(frequency / scaling["factor"])
            elif turns > high:
                scaled.append(frequency)
            else:
                blend = (turns - low) / (high - low)
                scaled.append((1 - blend) * frequency / scaling["factor"] + blend * frequency)
        frequencies = torch.tensor(scaled)
    else:
        assert kind in ("default", "dynamic"), kind
    return frequencies


class Layer:
    """One layer's cache: rows in ascending position."""

    def __init__(self):
        self.keys = self.values = None  # [Hk, n, D]
        self.positions = []  # [n]
        self.secondary = None  # visual positions kept, ascending
        self.core = None  # visual positions computed in ordinary steps, ascending
        self.text = None  # per KV head: {text position still held: its history score}

    def append(self, keys, values, positions):
        if self.keys is None:
            self.keys, self.values = keys, values
        else:
            self.keys = torch.cat([self.keys, keys], 1)
            self.values = torch.cat([self.values, values], 1)
        self.positions += positions

    def keep(self, positions):
        wanted = set(positions)
        rows = [i for i, p in enumerate(self.positions) if p in wanted]
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.positions = [self.positions[i] for i in rows]


class Gap:
    """Smallest distance at a cut: absolute, and relative to the score that was taken."""

    def __init__(self):
        self.absolute = self.relative = math.inf

    def best(self, scores, positions, count, matters=True):
        """The `count` best positions (ties: the lower position)."""
        order = sorted(range(len(positions)), key=lambda i: (-scores[i], positions[i]))
        if matters and 0 < count < len(positions) and scores[order[count - 1]] > 0:
            # A score of exactly 0 is a row behind the sliding window: no query will see it again.
            taken, left = scores[order[count - 1]], scores[order[count]]
            self.absolute = min(self.absolute, taken - left)
            self.relative = min(self.relative, (taken - left) / max(taken, 1e-30))
        return [positions[i] for i in order[:count]]


class TextHistory:
    """Adaptive text attention: per layer and KV head, which text rows are held."""

    def __init__(self, keep, keep_min, prompt_text):
        self.keep, self.keep_min = Fraction(str(keep)), keep_min
        self.drop = float(1 - self.keep)
        self.prompt_text = (
            prompt_text  # positions of the prompt's text rows: no system text, no image rows
        )
        self.seen = 0  # text rows so far, evicted ones too
        self.gap = math.inf

    def after(self, layer, weights):
        """weights [Hk, queries, rows]: a KV head's is the mean of its query heads'."""
        column = {p: i for i, p in enumerate(layer.positions)}
        if layer.text is None:
            rows = [column[p] for p in self.prompt_text]
            offset = len(layer.positions) - weights.shape[1]
            layer.text = []
            for head in weights:
                block = head[[r - offset for r in rows]][:, rows]
                score = torch.zeros(len(rows))
                for i in range(len(rows)):
                    score[i] = block[i, i]
                    if i > 0:
                        score[:i] += block[i, :i] - torch.quantile(block[i, :i], self.drop)
                layer.text.append(dict(zip(self.prompt_text, score.tolist())))
        else:
            newest = layer.positions[-1]
            for h, head in enumerate(weights):
                history = layer.text[h]
                held = sorted(history) + [newest]
                values = head[0][[column[p] for p in held]]
                moved = torch.tensor([history[p] for p in held[:-1]])
                moved += values[:-1] - torch.quantile(values, self.drop)
                layer.text[h] = dict(zip(held, moved.tolist() + [float(values[-1])]))
        budget = max(round(self.keep * self.seen), self.keep_min)
        for h, history in enumerate(layer.text):
            held = sorted(history)
            if len(held) <= budget:
                continue
            recent = budget // 2
            older, newer = held[: len(held) - recent], held[len(held) - recent :]
            heavy = budget - recent
            order = sorted(older, key=lambda p: (-history[p], p))
            self.gap = min(self.gap, history[order[heavy - 1]] - history[order[heavy]])
            layer.text[h] = {p: history[p] for p in sorted(order[:heavy]) + newer}


class Decoder:
    def __init__(self, directory):
        config = json.load(open(os.path.join(directory, "config.json")))
        self.image_token = config.get("image_token_index", config.get("image_token_id"))
        text = config["text_config"]
        self.text = text
        mistral = text["model_type"] == "mistral"
        self.heads = text["num_attention_heads"]
        self.kv_heads = text.get("num_key_value_heads", 8 if mistral else self.heads)
        self.dim = text.get("head_dim") or text["hidden_size"] // self.heads
        self.epsilon = text.get("rms_norm_eps", 1e-6)
        self.layer_count = text["num_hidden_layers"]
        self.window = text.get("sliding_window", 4096) if mistral else None
        self.weights = {}
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            for key, value in load_file(path).items():
                self.weights[old_key(key)] = value.float()
        self.embedding = self.weights["language_model.model.embed_tokens.weight"]
        self.head = self.weights.get("language_model.lm_head.weight", self.embedding)

    def norm(self, x, key):
        return self.weights[key] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))

    def linear(self, x, key):
        y = x @ self.weights[key + ".weight"].T
        bias = self.weights.get(key + ".bias")
        return y if bias is None else y + bias

    def rotate(self, x, positions, length):
        """x [H, n, D]: the halves of D are the two parts of each pair."""
        angles = torch.tensor(positions).float()[:, None] * inverse_frequencies(
            self.text, self.dim, length
        )
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        half = self.dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos + turned * sin

    def attend(self, layer, query, positions, excluded):
        """(out [n, H*D], weights [H, n, rows]) over the cached rows that are not in `excluded`."""
        group = self.heads // self.kv_heads
        keys = layer.keys.repeat_interleave(group, 0)
        values = layer.values.repeat_interleave(group, 0)
        logits = query @ keys.transpose(1, 2) / math.sqrt(self.dim)
        rows, queries = torch.tensor(layer.positions), torch.tensor(positions)
        hidden = rows[None, :] > queries[:, None]
        if self.window is not None:
            hidden |= rows[None, :] <= queries[:, None] - self.window
        if excluded:
            hidden |= torch.tensor([p in excluded for p in layer.positions])[None, :]
        hidden = hidden[None].expand(self.heads, -1, -1)
        if layer.text is not None:
            gone = torch.tensor(
                [
                    [
                        p in self.text_rows and p not in held and p != positions[-1]
                        for p in layer.positions
                    ]
                    for held in layer.text
                ]
            )
            hidden = hidden | gone.repeat_interleave(group, 0)[:, None, :]
        weights = torch.softmax(logits.masked_fill(hidden, -math.inf), -1)
        out = (weights @ values).transpose(0, 1).reshape(len(positions), -1)
        return out, weights

    def forward(self, x, positions, layers, excluded_of, after):
        """x [n, hidden] through all layers; excluded_of(l) names rows not attended to, after(l,
        layer, weights) sees the attention weights of the layer and may return the positions that go
        on to the next one.
        """
        for i, layer in enumerate(layers):
            key = f"language_model.model.layers.{i}."
            y = self.norm(x, key + "input_layernorm.weight")
            n, length = len(positions), positions[-1] + 1
            q = (
                self.linear(y, key + "self_attn.q_proj")
                .view(n, self.heads, self.dim)
                .transpose(0, 1)
            )
            k = (
                self.linear(y, key + "self_attn.k_proj")
                .view(n, self.kv_heads, self.dim)
                .transpose(0, 1)
            )
            v = (
                self.linear(y, key + "self_attn.v_proj")
                .view(n, self.kv_heads, self.dim)
                .transpose(0, 1)
            )
            q, k = self.rotate(q, positions, length), self.rotate(k, positions, length)
            layer.append(k, v, list(positions))
            out, weights = self.attend(layer, q, positions, excluded_of(i))
            onward = after(i, layer, weights)
            x = x + self.linear(out, key + "self_attn.o_proj")
            y = self.norm(x, key + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(self.linear(y, key + "mlp.gate_proj"))
            x = x + self.linear(gate * self.linear(y, key + "mlp.up_proj"), key + "mlp.down_proj")
            if onward is not None:
                x = x[[positions.index(p) for p in onward]]
                positions = onward
        return self.norm(x[-1:], "language_model.model.norm.weight")[0] @ self.head.T

    @torch.no_grad()
    def run(
        self,
        embeddings,
        visual,
        store=1,
        compute=1,
        interval=3,
        count=64,
        eos=None,
        text_keep=None,
        text_keep_min=20,
        prefill_keep=None,
        prefill_layer=2,
    ):
        """Greedy decoding. `visual`: prompt positions of image rows. Returns a dict as in
        case.json's "avl".
        """
        layers = [Layer() for _ in range(self.layer_count)]
        visual_set, total = set(visual), len(visual)
        stored, core = share(store, total), share(compute, total)
        assert 0 <= core <= stored <= total
        selecting = total > 0 and not (stored == total and core == total)
        gap, cores, logits, ids = Gap(), [], [], []
        survivors = total if prefill_keep is None else share(prefill_keep, total)
        assert stored <= survivors or not selecting
        alive = sorted(visual)  # image rows that reach the layer at hand in prefill
        text = None
        if text_keep is not None and total > 0:
            prompt_text = [p for p in range(min(visual), len(embeddings)) if p not in visual_set]
            text = TextHistory(text_keep, text_keep_min, prompt_text)
            text.seen = len(prompt_text)
            self.text_rows = set(prompt_text) | set(range(len(embeddings), len(embeddings) + count))
        group = self.heads // self.kv_heads

        def by_kv_head(weights):
            return weights.view(self.kv_heads, group, *weights.shape[1:]).mean(1)

        def choose(layer, weights, candidates):
            """Best-first order of the candidates by the last row's mean weight."""
            row = weights[:, -1, :].mean(0).tolist()
            score_of = dict(zip(layer.positions, row))
            return [score_of[p] for p in candidates], candidates

        def after_prefill(i, layer, weights):
            nonlocal alive
            if text is not None:
                text.after(layer, by_kv_head(weights))
            scores, candidates = choose(layer, weights, alive)
            onward = None
            if prefill_keep is not None and i == prefill_layer - 1:
                alive = sorted(gap.best(scores, candidates, survivors))
                onward = [p for p in layer.positions if p not in visual_set or p in set(alive)]
            if selecting:
                select(layer, scores, candidates)
            return onward

        def select(layer, scores, candidates):
            best = gap.best(scores, candidates, stored)
            kept_scores = dict(zip(candidates, scores))
            layer.secondary = sorted(best)
            layer.core = sorted(
                gap.best(
                    [kept_scores[p] for p in layer.secondary],
                    layer.secondary,
                    core,
                    matters=interval > 1,
                )
            )
            layer.keep([p for p in layer.positions if p not in visual_set] + layer.secondary)

        def after_step(i, layer, weights):
            if text is not None:
                text.after(layer, by_kv_head(weights))
            if not update:
                return
            scores, candidates = choose(layer, weights, layer.secondary)
            layer.core = sorted(gap.best(scores, candidates, core, matters=interval > 1))

        def minor_of(i):
            return set(layers[i].secondary) - set(layers[i].core)

        logits.append(
            self.forward(
                embeddings, list(range(len(embeddings))), layers, lambda i: None, after_prefill
            )
        )
        if selecting:
            cores.append({"step": 0, "rows": [layer.core for layer in layers]})
        for step in range(1, count + 1):
            ids.append(int(logits[-1].argmax()))
            if len(ids) == count or ids[-1] == eos:
                break
            update = selecting and step % interval == 0
            if text is not None:
                text.seen += 1
            position = len(embeddings) + step - 1
            excluded = minor_of if selecting and not update else lambda i: None
            logits.append(
                self.forward(
                    self.embedding[ids[-1]][None], [position], layers, excluded, after_step
                )
            )
            if update:
                cores.append({"step": step, "rows": [layer.core for layer in layers]})
        ordered = torch.stack(logits).double().sort(-1).values
        return {
            "ids": ids,
            "logits": torch.stack(logits).numpy(),
            "min_logit_gap": float((ordered[:, -1] - ordered[:, -2]).min()),
            "min_score_gap": gap.absolute,
            "min_score_gap_relative": gap.relative,
            "min_text_gap": text.gap if text else math.inf,
            "visual_rows": total,
            "stored_rows": stored,
            "core_rows": core,
            "secondary": [layer.secondary for layer in layers] if selecting else None,
            "cores": cores,
        }

    def prompt(self, prompt_ids, image_rows, features):
        """(embeddings, visual positions) of a case: `image_rows` per placeholder, their features
        packed.
        """
        ids, counts = [], list(image_rows)
        for token in prompt_ids:
            ids += [token] * (counts.pop(0) if token == self.image_token else 1)
        ids = torch.tensor(ids)
        embeddings = self.embedding[ids].clone()
        visual = (ids == self.image_token).nonzero().flatten().tolist()
        if visual:
            embeddings[visual] = torch.from_numpy(np.asarray(features))
        return embeddings, visual


def check_shipped(model, cases):
    from models_reference import (
        Reference,
        open_image,
    )  # pulls in `transformers`, for the picture's rows only

    decoder, reference = Decoder(model), Reference(model)
    wrong = total = 0
    for path in sorted(glob.glob(os.path.join(cases, "*", "case.json"))):
        case = json.load(open(path))
        # Not the case's own image_features.npy, nor its importance.npy: those were computed at a
        # lower precision (features off by up to 0.19, importance by 8 %); tokens and
        # first_logits.npy are of exact rows.
        features = reference.image_rows(
            [open_image(os.path.join(os.path.dirname(path), "image.png"))]
        )[0].numpy()
        embeddings, visual = decoder.prompt(case["prompt_ids"], [case["image_tokens"]], features)
        first = np.load(os.path.join(os.path.dirname(path), "first_logits.npy"))
        for name, setting in case["settings"].items():
            result = decoder.run(
                embeddings,
                visual,
                setting["store"],
                setting["compute"],
                setting["interval"],
                count=case["max_tokens"],
                eos=case["eos"],
            )
            same = result["ids"] == setting["token_ids"]
            error = float(np.abs(result["logits"][0] - first).max())
            total += 1
            wrong += not same
            print(
                f"{path} {name}: {'same' if same else 'DIFFERENT'}, {len(result['ids'])} tokens, "
                f"first logits off by {error:.2e}, "
                f"gaps {result['min_logit_gap']:.3f} {result['min_score_gap_relative']:.1e}"
            )
    print(f"{total - wrong} of {total} runs agree")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(1 if check_shipped(arguments.model, arguments.cases) else 0)


if __name__ == "__main__":
    main()
