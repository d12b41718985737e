"""What the language model is born with, so that it finds the picture.

Left to chance, the loss stays for a thousand steps where a text model without eyes would be: no head looks up a patch,
so nothing rewards looking. `align` moves the projector's rows towards the embeddings of the words that name what a
patch shows; both stay there for the first steps of phase B (train.py, --keep-aligned). `look_ups` gives every layer two
heads that look at what is like the row that asks, and two that listen to the words that can name something. All of it
is only a start; training moves every weight. packing.py has the other half: look-ups before everything else.
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
LISTEN = 9.0  # what the listening heads' score adds for words that can name something
COPY = 0.08  # of a look-up head's value
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
        ids([space + size for size in pictures.SIZES]),
    ]


def word_labels(picture):
    """[kinds, patches]: index into the kind's vocabulary, -1 where it has no word."""
    colour, shape, size, character, row, column, _ = pictures.patch_labels(picture) - 1
    found = np.stack([colour, shape, character, character, row * 4 + column, row, size])
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
    """Two kinds of head in every layer, all of which copy what they see, in the same 64 directions everywhere. Look-up
    heads: the score is likeness, apart from two directions, the one that sets patches that show something apart from
    empty ones, and one that is given to all embeddings here: rows of text look at what is shown, and less at themselves.
    Listening heads: rows of text look at the words that can name something in a picture, by a third direction, which
    these words' embeddings are given. The other heads start at random."""
    weights, shape = run.weights, model.SHAPE
    hidden, heads = shape["hidden"], shape["heads"]
    d = hidden // heads
    embedding = weights[model.LLAMA + "embed_tokens.weight"]
    batch = run.tensors(packing.lesson_batch(10**6, 16))
    rows = F.layer_norm(model.project(weights, model.tower(weights, shape, batch["pictures"])), (hidden,))
    shown = (batch["labels"] > 0).any(1)
    seen = direction(rows[shown].mean(0) - rows[~shown].mean(0))  # what sets patches that show something apart

    def another(*others):
        vector = torch.randn(hidden, generator=run.generator).to(run.device)
        for other in others:
            vector = vector - (vector @ other) * other
        return direction(vector)

    text = another(seen)
    word = another(seen, text)
    rest = torch.eye(hidden, device=run.device)
    for vector in (seen, text, word):
        embedding -= (embedding @ vector)[:, None] * vector
        rest -= torch.outer(vector, vector)
    named = sorted(set(sum(vocabularies(run.text), [])))
    length = embedding.norm(dim=-1).mean() * 0.7
    embedding += text * length
    embedding[named] += word * length
    # Rows are scaled to a length of sqrt(hidden) before; the shares of the directions in them are about one half.
    unit = (d / 2 - SLOW) * 2 / d * hidden / d**0.5  # the score that likeness 1 gets from keys of unit gain
    asks = GAIN / unit * rest + torch.outer(text, text)
    keeps = rest + 4 / unit * (PICTURE * torch.outer(text, seen) - TEXT * torch.outer(text, text))
    slow = (torch.arange(d, device=run.device) % (d // 2) >= SLOW).float()[:, None]
    directions = torch.linalg.qr(torch.randn(hidden, 2 * d, generator=run.generator).to(run.device))[0].T.split(d)
    listen = (LISTEN * d**0.5 / (0.5**2 * hidden)) ** 0.5
    for i in range(shape["layers"]):
        layer = f"{model.LLAMA}layers.{i}.self_attn."
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = weights[f"{layer}{name}.weight"]
            weight.copy_(torch.randn(weight.shape, generator=run.generator) * 0.5 * hidden**-0.5)
        for head in range(4):
            some, copied = slice(head * d, (head + 1) * d), directions[head % 2]
            weights[layer + "v_proj.weight"][some] = copied @ rest
            weights[layer + "o_proj.weight"][:, some] = COPY * copied.T
            if head < 2:
                look = copied * (hidden / d) ** 0.5
                weights[layer + "q_proj.weight"][some] = slow * (look @ asks)
                weights[layer + "k_proj.weight"][some] = slow * (look @ keeps)
            else:
                slowest = (head + 1) * d - 1
                weights[layer + "q_proj.weight"][slowest] = listen * text
                weights[layer + "k_proj.weight"][slowest] = listen * word
    weights["language_model.lm_head.weight"].copy_(0.3 * (embedding @ rest))
