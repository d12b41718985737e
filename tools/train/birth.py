"""What the language model is born with, so that it finds the picture.

Left to chance, the loss stays for a thousand steps where a text model without eyes would be: no head looks up a patch,
so nothing rewards looking. Two things end that, and a third one lies in packing.py: nearly empty pictures first. `align` moves the projector's rows towards the embeddings of the words
that name what a patch shows. `look_ups` starts the query heads of one KV head equal to their key head and their output as its value
head's transpose, with the vocabulary's head a share of its embeddings: a row looks at patches that look like it, and what
it sees is what it is inclined to say. All of it is only a start; training moves every weight.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F

import model
import packing
import pictures
from questions import NUMBERS, place

PICTURES = 192  # pictures to align on
STEPS = 300
GAIN = 4.0  # how much likeness counts for a look-up head
PICTURE, TEXT = 3.0, 1.0  # what its score adds for patches that show something, and takes off for rows of text
COPY = 0.25  # of a look-up head's value
SLOW = 6  # its keys start at this frequency of the 16: faster ones turn too far over a picture


def vocabularies(text):
    """Ids of the words of each kind: colours, shapes, characters after a space and within a word, places, numbers."""

    def ids(words):
        found = [text.tokenizer.token_to_id(word) for word in words]
        assert None not in found, words
        return found

    space = "\u2581"
    places = [place(row, column) for row in range(4) for column in range(4)]
    return [
        ids([space + word for word in pictures.COLOURS]),
        ids([space + word for word in pictures.SHAPES]),
        ids([space + c for c in pictures.CHARACTERS]),
        ids(list(pictures.CHARACTERS)),
        ids([space + p for p in places]),
        ids([space + NUMBERS[row + 1] for row in range(5)]),
    ]


def word_labels(picture):
    """[kinds, patches]: index into the kind's vocabulary, -1 where it has no word."""
    colour, shape, _, character, row, column, _ = pictures.patch_labels(picture) - 1
    found = np.stack([colour, shape, character, character, row * 4 + column, row])
    shown = row >= 0
    is_line = (character >= 0) & (picture.kind != "table")
    found[4, ~shown | is_line] = -1
    found[5, ~is_line] = -1
    return found


def align(run):
    """Trains the projector and the embeddings alone, on patches that show something; the tower stays."""
    rng = random.Random("align")
    made = [pictures.make(f"align {i}", rng.choice(packing.KINDS)) for i in range(PICTURES)]
    with torch.no_grad():
        features = []
        for i in range(0, PICTURES, 32):
            pixels = np.stack([np.asarray(p.image, dtype=np.uint8) for p in made[i : i + 32]])
            features.append(model.tower(run.weights, model.SHAPE, torch.from_numpy(pixels).to(run.device)))
        features = torch.cat(features).flatten(0, 1)
    labels = torch.from_numpy(np.stack([word_labels(p) for p in made])).permute(0, 2, 1).flatten(0, 1).to(run.device)
    shown = (labels >= 0).any(-1).nonzero()[:, 0]
    features, labels = features[shown], labels[shown]
    words = [torch.tensor(ids, device=run.device) for ids in vocabularies(run.text)]
    embedding = run.weights[model.LLAMA + "embed_tokens.weight"]
    moved = [v for k, v in run.weights.items() if k.startswith("multi_modal_projector")] + [embedding]
    optimizer = torch.optim.Adam(moved, lr=2e-3)
    for step in range(STEPS):
        some = torch.randint(len(features), (1024,), generator=run.generator).to(run.device)
        rows = F.layer_norm(model.project(run.weights, features[some]), (model.SHAPE["hidden"],))
        losses = []
        for kind, ids in enumerate(words):
            target = labels[some, kind]
            losses.append(F.cross_entropy(rows @ embedding[ids].T, target, ignore_index=-1))
        loss = sum(losses)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            run.log(f"align {step + 1}/{STEPS}: " + " ".join(f"{v.item():.3f}" for v in losses))
    for value in moved:
        value.grad = None


def direction(vector):
    return vector / vector.norm()


@torch.no_grad()
def look_ups(run):
    """The first KV head of every layer looks things up: its score is likeness, apart from two directions, the one that
    sets patches that show something apart from empty ones, and one that is given to all embeddings here: rows of text
    look at what is shown, and less at themselves. The other heads start at random."""
    weights, shape = run.weights, model.SHAPE
    hidden, heads, kv = shape["hidden"], shape["heads"], shape["kv_heads"]
    d, group = hidden // heads, heads // kv
    embedding = weights[model.LLAMA + "embed_tokens.weight"]
    batch = run.tensors(packing.lesson_batch(10**6, 16))
    rows = F.layer_norm(model.project(weights, model.tower(weights, shape, batch["pictures"])), (hidden,))
    shown = (batch["labels"] > 0).any(1)
    seen = direction(rows[shown].mean(0) - rows[~shown].mean(0))  # what sets patches that show something apart
    text = torch.randn(hidden, generator=run.generator).to(run.device)
    text = direction(text - (text @ seen) * seen)
    embedding -= (embedding @ seen)[:, None] * seen
    embedding -= (embedding @ text)[:, None] * text
    embedding += text * embedding.norm(dim=-1).mean() * 0.7
    rest = torch.eye(hidden, device=run.device) - torch.outer(seen, seen) - torch.outer(text, text)
    # Rows are scaled to a length of sqrt(hidden) before; the shares of the two directions in them are about one half.
    unit = (d / 2 - SLOW) * 2 / d * hidden / d**0.5  # the score that likeness 1 gets from keys of unit gain
    asks = GAIN / unit * rest + torch.outer(text, text)
    keeps = rest + 4 / unit * (PICTURE * torch.outer(text, seen) - TEXT * torch.outer(text, text))
    for i in range(shape["layers"]):
        layer = f"{model.LLAMA}layers.{i}.self_attn."
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = weights[f"{layer}{name}.weight"]
            weight.copy_(torch.randn(weight.shape, generator=run.generator) * 0.5 * hidden**-0.5)
        look = torch.randn(d, hidden, generator=run.generator).to(run.device)
        look = torch.linalg.qr(look.T)[0].T * (hidden / d) ** 0.5  # d directions at right angles
        slow = (torch.arange(d, device=run.device) % (d // 2) >= SLOW).float()[:, None]
        weights[layer + "k_proj.weight"][:d] = slow * (look @ keeps)
        weights[layer + "q_proj.weight"][: group * d] = (slow * (look @ asks)).repeat(group, 1)
        for head in range(group):  # one value head serves both
            out = look.T if head == 0 else torch.zeros_like(look.T)
            weights[layer + "o_proj.weight"][:, head * d : (head + 1) * d] = COPY * out * (d / hidden) ** 0.5
        weights[layer + "v_proj.weight"][:d] = look @ rest * (d / hidden) ** 0.5
    weights["language_model.lm_head.weight"].copy_(0.3 * (embedding - (embedding @ text)[:, None] * text))
