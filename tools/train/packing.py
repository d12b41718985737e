"""Training batches: step number -> pictures, and several conversations packed behind each.

A batch is a pure function of its number, so that a run can stop anywhere and go on. Made by a process of its own
while the last one is trained on.
"""

import multiprocessing
import os
import queue
import random
import tempfile

import numpy as np
from tokenizers import Tokenizer

import pictures
import questions
import wordpieces

IMAGE_ROWS = pictures.GRID * pictures.GRID
PICTURES = 8  # a step's pictures
PAIR_EVERY = 8  # every eighth step asks about two pictures at once
LOOK_UPS_UNTIL = 600  # batch up to which everything asked is a look-up
EVERYTHING_FROM = 2000  # batch from which questions are drawn as in evaluation, but for some look-ups
LOOK_UPS = 0.15  # their share from there on
MORE_CAPTIONS_FROM = 2680
LENGTH, PAIR_LENGTH = 416, 512  # rows of a packed sequence
FULL = {"grid": 0.7, "mixed": 0.85, "lines": 0.8, "table": 0.75}  # how crowded pictures get (pictures.make)
KINDS = ("grid",) * 7 + ("mixed",) * 4 + ("lines",) * 5 + ("table",) * 4
LOOK_UP_KINDS = ("grid",) * 3 + ("mixed", "table")
TASKS = ("caption", "questions", "reading")


class Text:
    """The tokenizer, and prompts as the server renders them."""

    def __init__(self, directory=None):
        with tempfile.TemporaryDirectory() as scratch:
            self.facts = wordpieces.save(directory or scratch)
            self.tokenizer = Tokenizer.from_file(os.path.join(directory or scratch, "tokenizer.json"))
        self.image = self.facts["image"]

    def ids(self, text):
        return self.tokenizer.encode(text).ids

    def prompt(self, turns, images):
        """Rendered text: `turns` are questions; all but the last one are followed by their answers."""
        text = "USER: " + "<image>\n" * images
        for i, turn in enumerate(turns):
            text += ("USER: " if i else "") + turn.text + " ASSISTANT:"
            if i + 1 < len(turns):
                text += " " + turn.answer + " "
        return text

    def block(self, turns, images):
        """(prefix ids, the others' ids, [(row of the last prompt token, answer ids), ...])."""
        ids = self.ids(self.prompt(turns, images) + " " + turns[-1].answer)
        cut = len(ids) - ids[::-1].index(self.image)
        spans = []
        for i, turn in enumerate(turns):
            before = self.ids(self.prompt(turns[: i + 1], images))
            whole = self.ids(self.prompt(turns[: i + 1], images) + " " + turn.answer)
            assert ids[: len(whole)] == whole and whole[: len(before)] == before, (turn.text, turn.answer)
            spans.append((len(before) - 1 - cut, whole[len(before) :]))
        return ids[:cut], ids[cut:], spans

    def answer(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def conversations(shown, rng, look_ups, captions):
    """Endless conversations on one picture or two; `look_ups` is their share beside `captions`, of which so many
    come first (one of these numbers)."""
    if len(shown) == 2:
        while True:
            pair_task = "caption" if rng.random() < 0.12 and all(p.things for p in shown) else None
            yield [questions.ask_pair(shown, rng, pair_task)]
    picture = shown[0]
    if picture.kind == "grid" or (picture.kind == "mixed" and rng.random() < 0.4):
        for _ in range(rng.choice(captions)):
            yield [questions.caption(picture, rng)]
    while True:
        if rng.random() < look_ups and (picture.things or look_ups == 1.0):
            yield [questions.look_up(picture, rng)]
        else:
            yield questions.conversation(picture, rng)


def make(number, text, split="train"):
    """The batch as a dictionary of arrays."""
    rng = random.Random(f"{split} batch {number}")
    # Look-ups first. As soon as longer answers and several steps of thought are asked for as well, the loss says little
    # about where to look, and what has not been learnt by then is learnt ten times as slowly.
    train = split == "train"
    begins = train and number < LOOK_UPS_UNTIL
    done = min(1.0, max(0.0, (number - LOOK_UPS_UNTIL) / (EVERYTHING_FROM - LOOK_UPS_UNTIL))) if train else 1.0
    look_ups = 1.0 - (1.0 - LOOK_UPS) * done if train else 0.0
    captions = (0,) if begins else (1,) if done < 0.5 else (2,)
    if train and number >= MORE_CAPTIONS_FROM:  # what comes next in an order is learnt last
        captions = (1, 4)
    pair = number % PAIR_EVERY == PAIR_EVERY - 1 and done == 1.0
    per = 2 if pair else 1
    rows, length = PICTURES // per, PAIR_LENGTH if pair else LENGTH
    batch = {"pictures": [], "labels": [], "ids": [], "target": [], "weight": [], "block": [], "position": [],
             "task": [], "asks": [], "needed": []}  # fmt: skip
    for row in range(rows):
        shown = []
        for i in range(per):
            kind, crowd = rng.choice(LOOK_UP_KINDS if begins else KINDS), 1.0
            if begins:
                crowd = rng.uniform(0.4, 0.9)
            elif train and rng.random() < max(0.2, 1.0 - done):
                crowd = rng.uniform(0.2, 1.0)
            shown.append(pictures.make(f"{split} {number} {row} {i}", kind, crowd * FULL[kind]))
        for picture in shown:
            batch["pictures"].append(np.asarray(picture.image, dtype=np.uint8))
            batch["labels"].append(pictures.patch_labels(picture))
        pack(batch, text, conversations(shown, rng, look_ups, captions), per, length)
    count = max(len(n) for n in batch["needed"])
    for needed in batch["needed"]:
        needed += [np.zeros(per * IMAGE_ROWS, dtype=bool)] * (count - len(needed))
    arrays = {key: np.stack([np.asarray(v) for v in value]) for key, value in batch.items() if key != "needed"}
    arrays["needed"] = np.stack([np.stack(n) for n in batch["needed"]])
    arrays["prefix"] = np.array(batch_prefix(text, per))
    return arrays


def batch_prefix(text, images):
    """Ids of the rows up to the last image row, placeholders expanded."""
    ids = text.ids("USER: " + "<image>\n" * images + "x")
    ids = ids[: len(ids) - ids[::-1].index(text.image)]
    return [i for token in ids for i in [token] * (IMAGE_ROWS if token == text.image else 1)]


def pack(batch, text, source, images, length):
    """Appends one packed sequence: what follows the prefix. `asks` is 1 on a last prompt row, 2 on answer rows that
    read an answer's token, `block` the block's number (from 0), -1 for filling."""
    room = length - (images * (IMAGE_ROWS + 2) + 1)
    ids, target = np.zeros(room, np.int64), np.full(room, -1, np.int64)
    weight, block = np.zeros(room, np.float32), np.full(room, -1, np.int64)
    position, task, asks = np.zeros(room, np.int64), np.full(room, -1, np.int64), np.zeros(room, np.int64)
    used, number, misses, needed, asked = 0, 0, 0, [], set()
    while misses < 4:
        turns = next(source)
        if turns[0].text in asked:
            misses += 0.25
            continue
        asked.add(turns[0].text)
        _, tail, spans = text.block(turns, images)
        if used + len(tail) > room:
            misses += 1
            continue
        end = used + len(tail)
        ids[used:end], block[used:end] = tail, number
        position[used:end] = room_start(images) + np.arange(len(tail))
        for turn, (row, answer) in zip(turns, spans):
            at = used + row
            target[at : at + len(answer) + 1] = answer + [2]
            weight[at : at + len(answer) + 1] = (len(answer) + 1) ** -0.5
            task[at : at + len(answer) + 1] = TASKS.index(turn.task)
            asks[at] = 1
            asks[at + 1 : at + len(answer) + 1] = 2
        mark = np.zeros(images * IMAGE_ROWS, dtype=bool)
        mark[list(set().union(*(turn.needed for turn in turns)))] = True
        needed.append(mark)
        used, number = end, number + 1
    for key, value in (("ids", ids), ("target", target), ("weight", weight), ("block", block), ("position", position),
                       ("task", task), ("asks", asks), ("needed", needed)):  # fmt: skip
        batch[key].append(value)


def room_start(images):
    """Position of the first row behind the last image row."""
    return images * (IMAGE_ROWS + 2) + 1


def lesson_batch(number, count):
    """Pictures and patch labels alone, for the first phase."""
    rng = random.Random(f"lesson batch {number}")
    made = [pictures.make(f"lesson {number} {i}", rng.choice(KINDS)) for i in range(count)]
    return {"pictures": np.stack([np.asarray(p.image, dtype=np.uint8) for p in made]),
            "labels": np.stack([pictures.patch_labels(p) for p in made])}  # fmt: skip


def produce(out, phase, first, last, count):
    text = Text()
    for number in range(first, last):
        out.put((number, lesson_batch(number, count) if phase == "lessons" else make(number, text)))


class Source:
    """Batches first, first + 1, ... of a phase, made ahead by another process."""

    def __init__(self, phase, first, last, count=PICTURES):
        self.phase, self.last, self.count = phase, last, count
        self.start(first)

    def start(self, first):
        context = multiprocessing.get_context("spawn")
        self.queue = context.Queue(maxsize=4)
        work = (self.queue, self.phase, first, self.last, self.count)
        self.process = context.Process(target=produce, args=work, daemon=True)
        self.process.start()

    def get(self, number):
        """A producer that died or hangs is replaced: a batch depends on its number alone."""
        for _ in range(3):
            try:
                found, batch = self.queue.get(timeout=60)
                assert found == number, (found, number)
                return batch
            except queue.Empty:
                self.close()
                self.start(number)
        raise RuntimeError(f"no batch {number}: the producer does not start")

    def close(self):
        self.process.terminate()
        self.process.join()
