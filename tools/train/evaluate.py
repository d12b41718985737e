#!/usr/bin/env python3
"""Scores a checkpoint or an exported model in PyTorch: dense, and what different selections of image rows keep.

A diagnostic for training, quick because whole batches are decoded at once and eviction is a mask per layer. The
service's own figures come from `avl eval`. Selections, all made once after prefill, one set per layer:
  last      the last prompt row's attention, mean over heads (the published method's store)
  question  mean over the rows behind the image
  uniform   evenly spaced over all image rows;  random  drawn per layer
  coverage  the question's scores over all layers, times how much a row differs from the others; one set for all layers
--core adds a core set: `interval`, the published one, chosen again from the store every third step for all heads, or
`step`, in which every step each head scores the store's keys and reads the values of its best rows.
"""

import argparse
import json
import os
import random
import time
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import model
import packing
from questions import Question


def load(path):
    """(weights f32, rounded to bf16 as exported, shape)"""
    if os.path.isdir(path):
        weights = load_file(os.path.join(path, "model.safetensors"))
        return {k: v.float() for k, v in weights.items()}, model.SHAPE
    saved = torch.load(path, map_location="cpu")
    return {k: v.to(torch.bfloat16).float() for k, v in saved["weights"].items()}, saved["shape"]


def read_set(directory, count):
    """{task: [(pictures, turns, line), ...]}"""
    found = {}
    with open(os.path.join(directory, "tasks.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        some = found.setdefault(line["task"], [])
        if len(some) < count:
            texts = line.get("turns") or [{"role": "user", "text": line["question"]}]
            turns = []
            for i in range(0, len(texts), 2):
                answer = texts[i + 1]["text"] if i + 1 < len(texts) else line["answer"]
                turns.append(Question(line["task"], texts[i]["text"], answer))
            images = [np.asarray(Image.open(os.path.join(directory, name)).convert("RGB")) for name in line["images"]]
            some.append((images, turns, line))
    return found


def score_of(kind, got, wanted):
    """README.md, "Evaluation sets"."""
    got, wanted = (text.strip().removesuffix(".") for text in (got, wanted))
    if kind == "exact":
        return float(got == wanted)
    a, b = (Counter(i.strip() for i in text.split(": ", 1)[-1].split(",") if i.strip()) for text in (got, wanted))
    return 2 * sum((a & b).values()) / max(1, sum(a.values()) + sum(b.values())) if a or b else 1.0


def even(count, total):
    """`count` of `total`, evenly spaced."""
    return [int((i + 0.5) * total / count) for i in range(count)]


def distances(rows):
    """[n, columns]: farthest first (cosine), how far from all before it each column came; docs/A-VL.md, "Coverage"."""
    rows = F.normalize(rows - rows.mean(1, keepdim=True), dim=-1)
    far = 1 - rows @ rows.transpose(1, 2)
    nearest, found, each = torch.full(far.shape[:2], 2.0), torch.zeros(far.shape[:2]), torch.arange(len(rows))
    pick = far.sum(-1).argmax(-1)
    for _ in range(rows.shape[1]):
        found[each, pick] = nearest[each, pick]
        nearest = torch.minimum(nearest, far[each, pick])
        nearest[each, pick] = -1.0
        pick = nearest.argmax(-1)
    return found.clamp_min(0)


class Prefill:
    """A batch of prompts with the same number of pictures, prefilled once; decoded as often as wanted."""

    def __init__(self, weights, shape, text, examples):
        self.weights, self.shape, self.text = weights, shape, text
        self.lines = [line for _, _, line in examples]
        per = len(examples[0][0])
        prompts = [text.ids(text.prompt(turns, per)) for _, turns, _ in examples]
        expanded = [[i for t in ids for i in [t] * (packing.IMAGE_ROWS if t == text.image else 1)] for ids in prompts]
        self.lengths = torch.tensor([len(ids) for ids in expanded])
        longest, n = int(self.lengths.max()), len(examples)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in expanded])
        pictures = torch.from_numpy(np.stack([p for images, _, _ in examples for p in images]))
        rows = model.project(weights, model.tower(weights, shape, pictures))
        self.embedding = weights[model.LLAMA + "embed_tokens.weight"]
        images = ids == text.image
        x = F.embedding(torch.where(images, 0, ids), self.embedding)
        x[images] = rows.reshape(-1, rows.shape[-1])
        self.columns = images[0].nonzero()[:, 0]  # every prompt of the batch starts alike
        far = distances(rows.reshape(n * per, -1, rows.shape[-1])).reshape(n, -1)
        positions = torch.arange(longest).expand(n, -1)
        cos, sin = model.rotation(shape, positions, x.dtype)
        causal = torch.full((longest, longest), -torch.inf).triu(1)[None]
        last = self.lengths - 1
        behind = (positions > self.columns[-1]) & (positions < self.lengths[:, None])
        self.keys, self.values, self.last, self.question = [], [], [], []
        for i in range(shape["layers"]):
            query, keys, values = model.project_qkv(weights, shape, i, x, cos, sin)
            out, attention = model.attend(query, keys, values, causal)
            seen = attention.mean((1, 2))[:, :, self.columns]  # [n, rows, image columns]
            self.last.append(seen[torch.arange(n), last])
            self.question.append((seen * behind[..., None]).sum(1) / behind.sum(1)[:, None])
            self.keys.append(keys)
            self.values.append(values)
            x = model.finish_layer(weights, shape, i, x, out)
        self.coverage = [far * sum(self.question)] * shape["layers"]
        self.first = model.logits(weights, shape, x[torch.arange(n), last])

    def select(self, kind, layer, count, generator):
        """[n, image columns] bool: what a layer keeps."""
        n, total = self.last[0].shape
        if kind == "uniform":
            scores = torch.zeros(n, total)
            scores[:, even(count, total)] = 1
        elif kind == "random":
            scores = torch.rand(n, total, generator=generator)
        else:
            scores = getattr(self, kind)[layer]
        keep = torch.zeros(n, total, dtype=torch.bool)
        return keep.scatter(1, scores.topk(count, -1).indices, True)

    def decode(self, kind, store, compute=None, core_kind="interval", interval=3, limit=224, seed=1):
        """Greedy texts. kind None is dense; the first token never depends on it."""
        in_step = compute is not None and core_kind == "step"
        weights, shape, n = self.weights, self.shape, len(self.lines)
        total, layers = len(self.columns), shape["layers"]
        generator = torch.Generator().manual_seed(seed)
        prompt = self.keys[0].shape[2]
        past = torch.full((n, 1, prompt + limit), -torch.inf)
        past[:, 0, :prompt].masked_fill_(torch.arange(prompt) < self.lengths[:, None], 0.0)
        masks, kept, core = [], [], []
        for layer in range(layers):
            mask = past.clone()
            if kind is not None:
                kept.append(self.select(kind, layer, int(store * total + 1e-9), generator))
                mask[:, 0, self.columns] = torch.where(kept[-1], 0.0, -torch.inf)
                first = getattr(self, kind) if kind in ("last", "coverage") else self.question
                core.append(self.best(first[layer], kept[-1], compute, total))
            masks.append(mask)
        room = (n, shape["kv_heads"], limit, shape["hidden"] // shape["heads"])
        keys = [torch.cat([k, k.new_zeros(room)], 2) for k in self.keys]
        values = [torch.cat([v, v.new_zeros(room)], 2) for v in self.values]
        token, ended, ids = self.first.argmax(-1), torch.zeros(n, dtype=torch.bool), []
        for step in range(1, limit):
            ids.append(torch.where(ended, 2, token))
            ended |= token == 2
            if ended.all():
                break
            x = F.embedding(token, self.embedding)[:, None]
            cos, sin = model.rotation(shape, (self.lengths + step - 1)[:, None], x.dtype)
            update, end = step % interval == 0, prompt + step
            for i in range(layers):
                query, new_keys, new_values = model.project_qkv(weights, shape, i, x, cos, sin)
                keys[i][:, :, end - 1], values[i][:, :, end - 1] = new_keys[:, :, 0], new_values[:, :, 0]
                masks[i][:, 0, end - 1] = 0.0
                mask = masks[i][:, :, :end]
                past_keys, past_values = keys[i][:, :, :end], values[i][:, :, :end]
                if in_step:
                    out = self.attend_in_step(query, past_keys, past_values, mask, kept[i], compute)
                else:
                    if compute is not None and not update:
                        mask = mask.clone()
                        mask[:, 0, self.columns] = torch.where(core[i], 0.0, -torch.inf)
                    out, attention = model.attend(query, past_keys, past_values, mask)
                    if compute is not None and update:
                        core[i] = self.best(attention.mean((1, 2))[:, 0, self.columns], kept[i], compute, total)
                x = model.finish_layer(weights, shape, i, x, out)
            token = model.logits(weights, shape, x[:, 0]).argmax(-1)
        table = torch.stack(ids, 1).tolist()
        return [self.text.answer(row[: row.index(2)] if 2 in row else row) for row in table]

    def attend_in_step(self, query, keys, values, mask, kept, compute):
        """Each KV head's best of the stored rows, by the softmax over those; attention over them and the text."""
        group = query.shape[1] // keys.shape[1]
        logits = (query @ keys.repeat_interleave(group, 1).transpose(2, 3))[:, :, 0]  # the query comes scaled
        weights = logits[:, :, self.columns].masked_fill(~kept[:, None], -torch.inf).softmax(-1)
        sums = weights.unflatten(1, (-1, group)).sum(2)
        core = self.best(sums, kept[:, None], compute, len(self.columns)).repeat_interleave(group, 1)
        masks = mask.repeat(1, query.shape[1], 1)
        masks[:, :, self.columns] = torch.where(core, 0.0, -torch.inf)
        out = (logits + masks).softmax(-1)[:, :, None] @ values.repeat_interleave(group, 1)
        return out.transpose(1, 2).flatten(2)

    @staticmethod
    def best(scores, kept, compute, total):
        if compute is None:
            return kept
        best = scores.masked_fill(~kept, -1).topk(int(compute * total + 1e-9), -1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)

    def scores(self, *arguments, **options):
        got = self.decode(*arguments, **options)
        return [score_of(line["score"], text, line["answer"]) for text, line in zip(got, self.lines)]


def batches(examples, size):
    """Examples of one number of pictures together, shortest answers first."""
    for per in (1, 2):
        some = [e for e in examples if len(e[0]) == per]
        some.sort(key=lambda e: len(e[2]["answer"]))
        yield from (some[i : i + size] for i in range(0, len(some), size))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="exported directory or checkpoint")
    parser.add_argument("--set", required=True, help="folder with tasks.jsonl")
    parser.add_argument("--count", type=int, default=100, help="examples per task")
    parser.add_argument("--stores", type=float, nargs="*", default=[0.5, 0.3, 0.2, 0.1])
    kinds = ["last", "question", "uniform", "random", "coverage"]
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--core", choices=["interval", "step"], help="with a core set")
    parser.add_argument("--compute", type=float, help="share in the core (default: about half of the store)")
    parser.add_argument("--wrong", type=int, default=0, help="print that many wrong dense answers per task")
    arguments = parser.parse_args()
    weights, shape = load(arguments.model)
    text = packing.Text()
    settings = [("dense", (None, 1))]
    for store in arguments.stores:
        compute = arguments.compute or round(store * (0.6 if store > 0.4 else 0.5), 3) if arguments.core else None
        settings += [(f"{kind} {store}" + (f"/{compute}" if compute else ""), (kind, store, compute, arguments.core))
                     for kind in arguments.kinds]  # fmt: skip
    results, started = {name: {} for name, _ in settings}, time.time()
    for task, examples in read_set(arguments.set, arguments.count).items():
        random.Random(0).shuffle(examples)
        for batch in batches(examples, 25):
            prefill = Prefill(weights, shape, text, batch)
            for name, setting in settings:
                results[name].setdefault(task, []).extend(prefill.scores(*setting))
            if arguments.wrong:
                for got, line in zip(prefill.decode(None, 1), prefill.lines):
                    if score_of(line["score"], got, line["answer"]) < 1 and arguments.wrong:
                        turns = line.get("turns", [{"text": line.get("question")}])
                        print(f"{turns[-1]['text']} | {got} | {line['answer']}")
    tasks = list(results["dense"])
    print(f"{'':28s}" + " ".join(f"{task:>10s}" for task in tasks) + f"   ({time.time() - started:.0f} s)")
    for name, _ in settings:
        print(f"{name:28s}" + " ".join(f"{np.mean(results[name][task]):10.3f}" for task in tasks), flush=True)


if __name__ == "__main__":
    main()
