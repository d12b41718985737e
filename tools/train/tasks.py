#!/usr/bin/env python3
"""Writes an evaluation set: a folder of PNGs and tasks.jsonl (README.md, "Evaluation sets").

The pictures' seeds start with the set's name, and training's start with "train": no picture of a set was ever
trained on.
"""

import argparse
import json
import os
import random

import packing
import pictures
import questions

# Per task: kinds of picture in turn.
KINDS = {
    "caption": ("grid", "grid", "grid", "grid", "mixed"),
    "questions": ("grid", "grid", "grid", "mixed"),
    "reading": ("lines", "table", "mixed", "lines"),
}


def example(name, task, index):
    """(pictures, [Question, ...]) of the set `name`: the last question is the one that is scored."""
    rng = random.Random(f"{name} {task} {index}")
    kinds = KINDS[task]
    pair = task != "caption" and index % 20 == 19  # 5 % ask about one of two pictures
    shown = []
    for i in range(1 + pair):
        kind = kinds[(index + i) % len(kinds)]
        shown.append(pictures.make(f"{name} {task} {index} {i}", kind, packing.FULL[kind]))
    if pair:
        return shown, [questions.ask_pair(shown, rng, task)]
    if task == "caption":
        return shown, [questions.caption(shown[0], rng)]
    turns = questions.conversation(shown[0], rng, task)
    return shown, turns


def record(name, task, index, images, turns):
    last = turns[-1]
    line = {"id": f"{task}-{index:04d}", "task": task, "images": images}
    if len(turns) == 1:
        line["question"] = last.text
    else:
        line["turns"] = []
        for question in turns[:-1]:
            line["turns"] += [{"role": "user", "text": question.text}, {"role": "assistant", "text": question.answer}]
        line["turns"].append({"role": "user", "text": last.text})
    line.update(answer=last.answer, score=last.score)
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=300, help="examples per task")
    parser.add_argument("--name", default="eval", help="names the pictures' seeds")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    with open(os.path.join(arguments.out, "tasks.jsonl"), "w", encoding="utf-8") as file:
        for task in KINDS:
            for index in range(arguments.count):
                shown, turns = example(arguments.name, task, index)
                images = []
                for i, picture in enumerate(shown):
                    images.append(f"{task}-{index:04d}-{i}.png")
                    picture.image.save(os.path.join(arguments.out, images[-1]), optimize=False)
                file.write(json.dumps(record(arguments.name, task, index, images, turns)) + "\n")


if __name__ == "__main__":
    main()
