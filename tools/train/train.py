#!/usr/bin/env python3
"""Trains a small LVLM from a seed: README.md has the commands behind the shipped models.

Phase A (`lessons`): the vision tower alone, on what every patch shows. Phase B (`answers`): everything. A run stops at
SIGTERM or --until with a checkpoint and goes on from it exactly; --aids attention adds the aids that favour
adaptive attention (README.md), --aids none is the control without them.
"""

import argparse
import math
import os
import signal
import time

import torch
import torch.nn.functional as F

import birth
import model
import packing

HELD = (0, 1, 2, 3, 7)  # batches of the split "held" that are scored on the way
LESSON_PICTURES = 32
SELECTED = 0.6  # share of the aided batches with the selecting aid; the others have the dropping one


class Run:
    """All state of a training run."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.text = packing.Text()
        self.phase, self.step, self.pictures = "lessons", 0, 0
        self.generator = torch.Generator().manual_seed(arguments.seed)
        weights = model.make_weights(model.SHAPE, self.text.facts["vocabulary"], self.generator)
        self.weights = {k: v.to(self.device).requires_grad_() for k, v in weights.items()}
        self.optimizer = None
        self.path = os.path.join(arguments.out, "checkpoint.pt")
        start = self.path if os.path.exists(self.path) else arguments.branch
        if start:
            self.load(start)
        if self.optimizer is None:
            self.begin(self.phase)

    def begin(self, phase):
        """A phase starts with fresh moments."""
        self.phase = phase
        groups = []
        parts = {"tower": [], "aligned": [], "rest": []}
        for key, value in self.weights.items():
            aligned = "embed_tokens" in key or key.startswith("multi_modal_projector")
            tower = key.startswith((model.TOWER, "lessons"))
            parts["tower" if tower else "aligned" if aligned else "rest"].append(value)
        for part, some in parts.items():
            scale = 0.3 if part == "tower" and phase == "answers" else 1.0  # it has had its lessons
            still = part == "aligned" and phase == "answers"
            for matrices, decay in ((True, 0.03), (False, 0.0)):
                values = [v for v in some if (v.ndim > 1) == matrices]
                groups.append({"params": values, "weight_decay": decay, "scale": scale, "still": still})
        groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-8, foreach=True)

    def load(self, path):
        saved = torch.load(path, map_location=self.device)
        taught = saved["phase"] == "lessons"  # the rest of such a checkpoint is as it was born
        for key, value in saved["weights"].items():
            if not taught or key.startswith((model.TOWER, "lessons")):
                self.weights[key].data.copy_(value)
        self.begin(saved["phase"])
        if len(saved["optimizer"]["param_groups"]) == len(self.optimizer.param_groups):
            self.optimizer.load_state_dict(saved["optimizer"])
        self.generator.set_state(saved["generator"].cpu())
        self.step, self.pictures = saved["step"], saved["pictures"]
        self.log(f"goes on from {path}: {self.phase}, step {self.step}")

    def save(self, name="checkpoint.pt"):
        path = os.path.join(self.arguments.out, name)
        state = {"weights": {k: v.detach() for k, v in self.weights.items()}, "optimizer": self.optimizer.state_dict(),
                 "phase": self.phase, "step": self.step, "pictures": self.pictures, "shape": model.SHAPE,
                 "generator": self.generator.get_state(), "arguments": vars(self.arguments)}  # fmt: skip
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)

    def log(self, line):
        line = time.strftime("%H:%M:%S ", time.gmtime()) + line
        print(line, flush=True)
        with open(os.path.join(self.arguments.out, "train.log"), "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def cast(self):
        return {k: v.to(torch.bfloat16) for k, v in self.weights.items()}

    def tensors(self, batch):
        return {k: torch.from_numpy(v).to(self.device) for k, v in batch.items()}


def rate(step, steps, peak, warm, hold):
    """Warm-up, constant, then a linear fall to a fiftieth: the constant part can be made longer later."""
    if step < warm:
        return peak * (step + 1) / warm
    fall = max(0.0, step - hold * steps) / max(1.0, (1 - hold) * steps)
    return peak * (1 - 0.98 * min(1.0, fall))


class Watch:
    """The attention aid: the last prompt row and one answer row should attend to the patches they need."""

    def __init__(self, run, batch, image_columns):
        asks, block = batch["asks"], batch["block"]
        rows = (asks == 1).nonzero()
        answers = (asks == 2).nonzero()
        some = torch.randperm(len(answers), generator=run.generator)[: len(rows)].to(rows.device)
        self.rows = torch.cat([rows, answers[some]])
        target = batch["needed"][self.rows[:, 0], block[self.rows[:, 0], self.rows[:, 1]]].float()
        kept = target.sum(-1) > 0
        self.rows, target = self.rows[kept], target[kept]
        self.target = target / target.sum(-1, keepdim=True)
        self.columns, self.losses = image_columns, []

    def __call__(self, layer, attention):
        seen = attention[self.rows[:, 0], :, :, self.rows[:, 1]].float().mean((1, 2))[:, self.columns] + 1e-6
        seen = seen / seen.sum(-1, keepdim=True)
        cross = -(self.target * seen.log()).sum(-1)
        entropy = -(self.target * (self.target + 1e-9).log()).sum(-1)
        self.losses.append((cross - entropy).mean())


def hidden_patches(run, batch):
    """The dropping aid: [n, rows, image columns], true where an answer row must do without a patch. Mostly patches it
    does not need; in some blocks half of its rows also miss half of the needed ones, as between two selections."""
    needed, block, asks = batch["needed"], batch["block"], batch["asks"]
    n, blocks, columns = needed.shape

    def draw(*size):
        return torch.rand(*size, generator=run.generator).to(needed.device)

    share = draw(n, blocks, 1) * 0.97 * (draw(n, blocks, 1) < 0.75)
    hide = (draw(n, blocks, columns) < share) & ~needed
    core = (draw(n, blocks, columns) < 0.5) & needed & (draw(n, blocks, 1) < 0.2)
    index = block.clamp(min=0)[..., None].expand(-1, -1, columns)
    rows = hide.gather(1, index) | (core.gather(1, index) & (draw(*block.shape) < 0.5)[..., None])
    return rows & (asks == 2)[..., None]


class Selection:
    """The selecting aid: answer rows see what the published method would let them see: of the store that the layer's
    last prompt row chooses all in every third step, else the core that the last such step chose."""

    INTERVAL = 3

    def __init__(self, batch, mask, image_columns, store, compute):
        asks = batch["asks"]
        order = torch.arange(asks.shape[1], device=asks.device).expand_as(asks)
        asked = torch.where(asks == 1, order, -1).cummax(1).values.clamp(min=0)
        step = order - asked
        self.answers = asks == 2
        self.whole = step % self.INTERVAL == 0
        self.asked, self.chosen = asked, order - step % self.INTERVAL
        self.mask, self.columns = mask, image_columns
        self.store, self.core = (max(1, int(share * len(image_columns))) for share in (store, compute))

    def best(self, scores, count):
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(count, -1).indices, True)

    def of(self, rows, table):
        return table.gather(1, rows[..., None].expand(-1, -1, table.shape[-1]))

    def __call__(self, attention):
        seen = attention.float().mean((1, 2))[:, :, self.columns]
        store = self.of(self.asked, self.best(seen, self.store))
        core = self.best(seen.masked_fill(~store, -1), self.core)
        allowed = torch.where(self.whole[..., None], store, self.of(self.chosen, core) & store)
        mask = self.mask.clone()
        mask[:, :, self.columns] = mask[:, :, self.columns].masked_fill(self.answers[..., None] & ~allowed, -math.inf)
        return mask


def forward(run, batch, aided):
    """(hidden states of the rows behind the prefix, lesson loss, aid loss)."""
    weights, shape = run.cast(), model.SHAPE
    lessons = torch.zeros(())
    if run.step < run.arguments.freeze:
        with torch.no_grad():
            features = model.tower(weights, shape, batch["pictures"])
    else:
        features = model.tower(weights, shape, batch["pictures"])
        lessons = model.lesson_loss(weights, features, batch["labels"])
    rows = model.project(weights, features)
    n, room = batch["ids"].shape
    embedding = weights[model.LLAMA + "embed_tokens.weight"]
    prefix = batch["prefix"]
    length = len(prefix)
    images = prefix == run.text.image
    first = F.embedding(torch.where(images, 0, prefix), embedding).expand(n, -1, -1).clone()
    first[:, images] = rows.reshape(n, -1, rows.shape[-1])
    x = torch.cat([first, F.embedding(batch["ids"], embedding)], 1)
    before = torch.arange(length, device=x.device).expand(n, -1)
    positions = torch.cat([before, batch["position"]], 1)
    block = batch["block"]
    order = torch.arange(room, device=x.device)
    own = (block[:, :, None] == block[:, None, :]) & (order[:, None] >= order[None, :])
    mask = torch.zeros(n, room, length + room, device=x.device, dtype=x.dtype)
    mask[:, :, length:].masked_fill_(~own, -math.inf)
    watch, select, columns = None, None, images.nonzero()[:, 0]
    if aided:
        watch = Watch(run, batch, columns)
    selects = aided and run.step >= run.arguments.select_from
    draw = torch.rand(1, generator=run.generator).item() if selects else 1.0
    if draw < SELECTED:
        select = Selection(batch, mask, columns, *((0.5, 0.3) if draw < SELECTED * 2 / 3 else (0.3, 0.15)))
    elif aided:
        hidden = torch.zeros(n, room, length, dtype=torch.bool, device=x.device)
        hidden[:, :, columns] = hidden_patches(run, batch)
        mask[:, :, :length].masked_fill_(hidden, -math.inf)
    x = model.decoder(weights, shape, x, positions, length, mask, watch, select)
    aid = sum(watch.losses) / len(watch.losses) if watch else torch.zeros(())
    return weights, x[:, length:], lessons, aid


def answer_loss(weights, x, batch):
    """(loss, logits' best ids, chosen rows): head rows are padded to a fixed multiple, oneDNN likes few shapes."""
    chosen = (batch["target"] >= 0).flatten().nonzero()[:, 0]
    padded = torch.cat([chosen, chosen[:1].expand(-len(chosen) % 256)])
    out = model.logits(weights, model.SHAPE, x.reshape(-1, x.shape[-1])[padded]).float()[: len(chosen)]
    losses = F.cross_entropy(out, batch["target"].flatten()[chosen], reduction="none")
    weight = batch["weight"].flatten()[chosen]
    return (losses * weight).sum() / weight.sum(), out, chosen


@torch.no_grad()
def score(run):
    """{task: share of answers that teacher forcing gets entirely right} on the held-out batches."""
    right, total = {}, {}
    for number in HELD:
        batch = run.tensors(packing.make(number, run.text, "held"))
        weights, x, _, _ = forward(run, batch, False)
        _, out, chosen = answer_loss(weights, x, batch)
        good = (out.argmax(-1) == batch["target"].flatten()[chosen]).tolist()
        turn = batch["asks"].flatten().eq(1).cumsum(0)[chosen].tolist()
        task = batch["task"].flatten()[chosen].tolist()
        answers = {}
        for t, k, g in zip(turn, task, good):
            answers[t, k] = answers.get((t, k), True) and g
        for (_, k), g in answers.items():
            name = packing.TASKS[k] + ("2" if number % packing.PAIR_EVERY == packing.PAIR_EVERY - 1 else "")
            right[name] = right.get(name, 0) + g
            total[name] = total.get(name, 0) + 1
    return {name: right[name] / total[name] for name in sorted(total)}


def apply(run, loss, peak, steps, warm, hold):
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([v for v in run.weights.values() if v.grad is not None], 1.0)
    for group in run.optimizer.param_groups:
        still = group["still"] and run.step < run.arguments.keep_aligned
        group["lr"] = 0.0 if still else group["scale"] * rate(run.step, steps, peak, warm, hold)
    if torch.isfinite(norm):
        run.optimizer.step()
    else:
        run.log(f"step {run.step}: the gradient is not finite, skipped")
    run.optimizer.zero_grad(set_to_none=True)


def lessons_step(run, batch):
    arguments = run.arguments
    weights = run.cast()
    features = model.tower(weights, model.SHAPE, batch["pictures"])
    loss = model.lesson_loss(weights, features, batch["labels"])
    apply(run, loss, arguments.lesson_peak, arguments.lessons, 60, 0.4)
    return {"lessons": loss.item()}


def answers_step(run, batch):
    arguments = run.arguments
    aided = arguments.aids == "attention"
    weights, x, lessons, aid = forward(run, batch, aided)
    answers, _, _ = answer_loss(weights, x, batch)
    loss = answers + arguments.lesson_weight * lessons + arguments.aid_weight * aid
    apply(run, loss, arguments.peak, arguments.steps, 100, arguments.hold)
    losses = {"answers": answers.item(), "lessons": lessons.item()}
    if aided:
        losses["attention"] = aid.item()
    return losses


def train(run, phase, steps, stopped):
    """One phase, from wherever it stands. Returns false when it was told to stop."""
    arguments = run.arguments
    count = LESSON_PICTURES if phase == "lessons" else packing.PICTURES
    source = packing.Source(phase, run.step, steps, count)
    started, saved, sums, counted, first = time.time(), time.time(), {}, 0, run.step
    while run.step < steps:
        if stopped() or (arguments.until and time.strftime("%H:%M", time.gmtime()) == arguments.until):
            run.save()
            source.close()
            run.log(f"stopped: {phase}, step {run.step}")
            return False
        batch = run.tensors(source.get(run.step))
        for name, value in (lessons_step if phase == "lessons" else answers_step)(run, batch).items():
            sums[name] = sums.get(name, 0.0) + value
        counted += 1
        run.step += 1
        run.pictures += count
        if run.step % arguments.every == 0 or run.step == steps:
            pace = (run.step - first) / (time.time() - started)
            left = (steps - run.step) / pace
            losses = " ".join(f"{name} {value / counted:.4f}" for name, value in sums.items())
            run.log(f"{phase} {run.step}/{steps} {losses} {pace * count:.1f} pictures/s, {left / 60:.0f} min left")
            sums, counted = {}, 0
        if phase == "answers" and (run.step % arguments.score_every == 0 or run.step == steps):
            run.log("held out: " + " ".join(f"{k} {v:.3f}" for k, v in score(run).items()))
        if time.time() - saved > 240:
            run.save()
            saved = time.time()
        if phase == "answers" and run.step in arguments.keep:
            run.save(f"checkpoint-{run.step}.pt")
    source.close()
    run.save(f"{phase}.pt")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder of checkpoints and the log")
    parser.add_argument("--aids", choices=("none", "attention"), default="none")
    parser.add_argument("--branch", help="checkpoint of another run to start from")
    parser.add_argument("--birth", choices=("look", "random"), default="look", help="birth.py, or all at random")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lessons", type=int, default=1500, help="steps of phase A, 32 pictures each")
    parser.add_argument("--lesson-peak", type=float, default=1.5e-3)
    parser.add_argument("--lesson-weight", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=6500, help="steps of phase B, 8 pictures each")
    parser.add_argument("--peak", type=float, default=1.2e-3)
    parser.add_argument("--hold", type=float, default=0.5, help="share of phase B before the rate falls")
    parser.add_argument("--freeze", type=int, default=3000, help="steps of phase B in which the tower stays as it is")
    parser.add_argument("--keep-aligned", type=int, default=2500, help="steps of phase B in which projector and embeddings stay")
    parser.add_argument("--aid-weight", type=float, default=0.1)
    parser.add_argument("--select-from", type=int, default=0, help="step of phase B from which on the selecting aid helps")
    parser.add_argument("--every", type=int, default=25, help="steps between lines of the log")
    parser.add_argument("--score-every", type=int, default=200)
    parser.add_argument("--keep", type=int, nargs="*", default=[], help="steps whose checkpoint is kept")
    parser.add_argument("--until", help="UTC time HH:MM at which to stop with a checkpoint")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    signal.signal(signal.SIGINT, lambda *_: told.append(True))
    run = Run(arguments)
    run.log(f"{vars(arguments)}; {sum(v.numel() for k, v in run.weights.items() if 'lessons' not in k)} parameters")
    if run.phase == "lessons":
        if not train(run, "lessons", arguments.lessons, lambda: told):
            return
        run.step = 0
        run.begin("answers")
        pictures = packing.lesson_batch(arguments.lessons, LESSON_PICTURES)["pictures"]
        model.centre_projector(run.weights, model.SHAPE, torch.from_numpy(pictures).to(run.device))
        if arguments.birth == "look":
            birth.align(run)
            birth.look_ups(run)
        run.save()
    if train(run, "answers", arguments.steps, lambda: told):
        run.save()


if __name__ == "__main__":
    main()
