#!/usr/bin/env python3
"""Measures what adaptive attention costs in quality and writes docs/QUALITY.md with its plots.

For each model: starts the service, runs `avl eval` over the evaluation set, checks the controls, and ends the service. Builds
nothing and trains nothing. Python's own library suffices; only writing the evaluation set (tools/train/tasks.py) needs more.
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUDGETS = [".5/.3/3", ".3/.15/3", ".2/.1/3", ".1/.05/3"]
STEP = "visual_core=step"
METHODS = ["a-vl", "question", "coverage", "random", "uniform",
           # The same stores, and in every step a core that reads as many bytes.
           *(f"{name}+{STEP}" for name in ("coverage", "random", "uniform")),
           # A prefill filter alone: each budget's store is the share that goes on.
           "fastv",
           # Text eviction alone; every visual row stays.
           "a-vl:1/1/1+text_keep_ratio=.5", "h2o:.5"]
AGAIN = "dense, again"
CONTROL = "a-vl:1/1/1"  # attends to everything, by A-VL's path
SUMMARISED = ["a-vl", f"coverage+{STEP}"]  # named beforehand, not for their figures here
START_S = 300


def fail(text):
    sys.exit(f"tools/quality: {text}")


class Service:
    """avl-coordinator with one model, on a free port."""

    def __init__(self, build, model, arguments):
        command = [os.path.join(build, "bin", "avl-coordinator"), "--model", model, "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log, lines = [], queue.Queue()
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        threading.Thread(target=lambda: [lines.put(line) for line in self.process.stdout] or lines.put(""), daemon=True).start()
        try:
            line = lines.get(timeout=START_S)
        except queue.Empty:
            line = ""
        if not line.startswith("ready "):
            self.stop()
            fail(f"the service does not start with {model}:\n" + "".join(self.log[-20:]))
        self.address = line.split(" ", 1)[1].strip()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def spelt_out(method, budgets):
    """With its budgets, where those of the columns do not say it: a core in every step reads the keys of the store and the
    values of a share k, store / 2 + k / 2, where the others read the store every `interval` steps, else a share `compute`."""
    head, _, options = method.partition("+")
    if STEP not in options or ":" in head:
        return [method]
    specs = []
    for budget in budgets:
        store, compute, interval = (float(part) for part in (budget + "/3").split("/")[:3])
        share = 2 * ((interval - 1) * compute + store) / interval - store
        specs.append(f"{head}:{budget.split('/')[0]}/{max(share, .01):.3g}+{options}")
    return specs


def evaluate(build, service, tasks, methods, output, *arguments):
    command = [os.path.join(build, "bin", "avl"), "eval", "--server", service.address, "--tasks", tasks, "--methods",
               ",".join(methods), "--json", output] + list(arguments)
    print(" ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        fail("avl eval failed")
    with open(output, encoding="utf-8") as file:
        return json.load(file)


def write_shuffled(tasks, path):
    """The same questions, each expecting the answer of another one of its task; those without an answer are left out."""
    with open(tasks, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    folder = os.path.dirname(os.path.abspath(tasks))
    groups = {}
    for line in lines:
        for holder in [line] + line.get("turns", []):
            if "images" in holder:
                holder["images"] = [os.path.join(folder, image) for image in holder["images"]]
        group = groups.setdefault(line.get("task", "all"), [])
        if "answer" in line:
            group.append(line)
    for task, group in groups.items():
        if len(group) < 2:
            fail(f"{task}: {len(group)} expected answers; the control of exchanged answers needs two")
    with open(path, "w", encoding="utf-8") as file:
        for group in groups.values():
            answers = [line["answer"] for line in group]
            for place, line in enumerate(group):
                line["answer"] = answers[(place + len(group) // 2) % len(group)]
                file.write(json.dumps(line) + "\n")


def cells_of(report):
    """{(method, task): cell}"""
    return {(method["method"], cell["task"]): cell for method in report["methods"] for cell in method["tasks"]}


def check_controls(report, shuffled):
    """What must hold for the figures to mean anything; returns the table's rows."""
    cells, other, rows = cells_of(report), cells_of(shuffled), []
    for task in [task["task"] for task in report["tasks"]]:
        figures = []
        if cells["dense", task]["score"] is None:
            fail(f"{task}: no expected answers; `avl eval` alone measures agreement")
        for method in (AGAIN, CONTROL):
            keys = "same_as_dense", "forced_agreement", "forced_kl"
            same, forced, divergence = (cells[method, task][key]["mean"] for key in keys)
            if same < .999 or forced < .999 or divergence > 1e-6:
                fail(f"{task}: {method} is not dense attention: same {same}, forced {forced}, divergence {divergence}")
            figures.append(f"{100 * same:.1f} / {100 * forced:.1f} / {divergence:.1g}")
        wrong = other["dense", task]["score"]["mean"]
        if wrong > cells["dense", task]["score"]["mean"] / 2:
            fail(f"{task}: other questions' answers score {wrong}")
        rows.append(f"| {task} | {figures[0]} | {figures[1]} | {100 * wrong:.1f} |")
    return rows


# ---- the text ----

def percent(mean, bold=False):
    if mean is None:
        return "–"
    text = f"{100 * mean['mean']:.1f}"
    return (f"**{text}**" if bold else text) + f" ({100 * mean['low']:.1f}–{100 * mean['high']:.1f})"


def difference(mean):
    return "–" if mean is None else f"{100 * mean['mean']:+.1f} ({100 * mean['low']:+.1f} to {100 * mean['high']:+.1f})"


def budget_name(budget):
    return "/".join(part for part in budget.split("/")[:2])


class Report:
    """One model's figures as tables: a row per family of methods, a column per budget."""

    def __init__(self, report, budgets):
        self.cells, self.budgets = cells_of(report), budgets
        self.tasks = [task["task"] for task in report["tasks"]]
        self.kinds = {task["task"]: task["score"] for task in report["tasks"]}
        self.counts = {task["task"]: task["questions"] for task in report["tasks"]}
        self.families, self.others = {}, []
        for method in report["methods"]:
            name, family = method["method"], method["family"]
            own = self.budget_of(name)
            if own and STEP in name:
                own = own.split("/")[0]
            budget = next((b for b in budgets if own in (b, b.split("/")[0])), None)
            if budget is not None:
                self.families.setdefault(family, {})[budget] = name
            elif name not in ("dense", AGAIN, CONTROL):
                self.others.append(name)

    @staticmethod
    def budget_of(name):
        """What stands behind the name: a budget, of `fastv` its store alone; None where it is none of visual rows."""
        head, _, budget = name.split("+")[0].partition(":")
        return None if head == "h2o" or (head != "fastv" and "/" not in budget) else budget

    def cell(self, family, budget, task):
        return self.cells.get((self.families[family].get(budget), task))

    def head(self, first):
        names = " | ".join(budget_name(budget) for budget in self.budgets)
        return [f"| {first} | {names} |", "|---|" + "---|" * len(self.budgets)]

    def best(self, task, budget, key):
        """Of the methods that keep to the budget: a filter holds more rows than the column says."""
        found = [(self.cell(family, budget, task) or {}).get(key) for family in self.families if not family.startswith("fastv")]
        return max((mean["mean"] for mean in found if mean), default=None)

    def table(self, task, key, first):
        lines = self.head(first)
        for family in self.families:
            row = []
            for budget in self.budgets:
                mean = (self.cell(family, budget, task) or {}).get(key)
                row.append(percent(mean, mean is not None and mean["mean"] == self.best(task, budget, key)))
            lines.append(f"| {family} | " + " | ".join(row) + " |")
        return lines

    def scores(self):
        lines = []
        for task in self.tasks:
            dense = self.cells["dense", task]
            kind = {"exact": "share of exact answers", "items": "F1 of the listed items"}.get(self.kinds[task], "score")
            lines += [f"**{task}**, {self.counts[task]} questions, {kind}, %; dense {percent(dense['score'])}", ""]
            lines += self.table(task, "score", "store/compute") + [""]
            after = dense["score_after_first"]
            if after is not None:
                lines += [f"without the first token ({after['count']} questions); dense {percent(after)}", ""]
                lines += self.table(task, "score_after_first", "store/compute") + [""]
        return lines

    def summary(self):
        """Few methods at each budget, the same everywhere, and how far they are from dense attention: the best of many by
        these figures would look better than it is."""
        lines = []
        for family in [name for name in SUMMARISED if name in self.families] or list(self.families)[:1]:
            lines += self.head(f"`{family}`, difference to dense")
            for task in self.tasks:
                cells = [self.cell(family, budget, task) for budget in self.budgets]
                figures = ("–" if not cell else difference(cell["score_minus_dense"]) for cell in cells)
                lines.append(f"| {task} | " + " | ".join(figures) + " |")
            lines.append("")
        return lines

    def agreement(self):
        lines = []
        for task in self.tasks:
            lines += self.head(task)
            for family in self.families:
                row = []
                for budget in self.budgets:
                    cell = self.cell(family, budget, task)
                    if not cell or not cell["forced_kl_after_first"]:
                        row.append("–")
                        continue
                    mass = f", {100 * cell['captured_mass']['mean']:.0f} % mass" if cell["captured_mass"] else ""
                    row.append(f"{100 * cell['same_as_dense']['mean']:.0f} / "
                               f"{100 * cell['forced_agreement_after_first']['mean']:.1f} / "
                               f"{cell['forced_kl_after_first']['mean']:.2g}{mass}")
                lines.append(f"| {family} | " + " | ".join(row) + " |")
            lines.append("")
        return lines

    def memory(self):
        lines = []
        for task in self.tasks:
            dense = self.cells[AGAIN, task]
            lines += self.head(f"{task}: dense {dense['visual_rows']:.0f} rows, {dense['kv_bytes'] / 1024:.0f} KiB, "
                               f"{1e3 * dense['seconds_per_token']:.2f} ms")
            for family in self.families:
                row = []
                for budget in self.budgets:
                    cell = self.cell(family, budget, task)
                    row.append("–" if not cell else
                               f"{cell['visual_rows_stored']:.0f} / {cell['visual_rows_computed']:.1f}, "
                               f"{cell['kv_bytes'] / 1024:.0f} KiB, {1e3 * cell['seconds_per_token']:.2f} ms")
                lines.append(f"| {family} | " + " | ".join(row) + " |")
            lines.append("")
        return lines

    def without_budgets(self):
        if not self.others:
            return []
        lines = ["Methods without a visual budget of this list:", "",
                 "| | " + " | ".join(self.tasks) + " |", "|---|" + "---|" * len(self.tasks)]
        for name in self.others:
            row = []
            for task in self.tasks:
                cell = self.cells[name, task]
                row.append(f"{percent(cell['score'])}, {cell['kv_bytes'] / 1024:.0f} KiB")
            lines.append(f"| {name} | " + " | ".join(row) + " |")
        return lines + [""]


def model_text(name, note, report, controls, budgets, plots):
    figures = Report(report, budgets)
    lines = [f"## {name}", "", note, ""] if note else [f"## {name}", ""]
    lines += [f"Served by {report['ranks']} rank{'s' * (report['ranks'] > 1)}, {report['device']}, {report['dtype']}.", ""]
    lines += figures.summary() + [f"![quality against bytes]({plots}/quality-by-bytes.png)", "",
                                  f"![quality against rows]({plots}/quality-by-rows.png)", ""]
    lines += ["### Scores", ""] + figures.scores() + figures.without_budgets()
    lines += ["### Agreement with dense attention", "",
              "Answers with all of its tokens, % / its tokens forced: also ranked first, % / divergence, nats (the first token "
              "left out of both).", ""] + figures.agreement()
    lines += ["### Rows, bytes, time", "",
              "Visual rows stored / computed a step, cache at the end of the answer, time per token under the evaluation's load.",
              ""] + figures.memory()
    lines += ["### Controls", "",
              f"Dense attention a second time and `{CONTROL}`, against dense attention: same answers, % / its tokens forced, % / "
              "divergence. Dense attention's score when every question expects the answer of another one.",
              "", f"| | dense again | {CONTROL} | others' answers, % |", "|---|---|---|---|"]
    return lines + controls + [""]


def write_document(path, sections):
    with open(os.path.join(HERE, "text.md"), encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace("{{models}}\n", "\n".join(line for section in sections for line in section) + "\n"))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="model directories (default: those of models.json)")
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="build directory")
    parser.add_argument("--tasks", help="evaluation set (default: written by tools/train/tasks.py, 300 questions a task)")
    parser.add_argument("--limit", type=int, default=300, help="questions of each task")
    parser.add_argument("--methods", default=",".join(METHODS), help="as of `avl eval`")
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--service", default="", help="more options of avl-coordinator, in one text")
    parser.add_argument("--work", default=os.path.join(ROOT, "build", "quality"), help="folder for what is not kept")
    parser.add_argument("--out", default=os.path.join(ROOT, "docs"), help="folder of QUALITY.md and quality/")
    return parser.parse_args()


def ensure_tasks(arguments):
    if arguments.tasks:
        return arguments.tasks
    folder = os.path.join(arguments.work, f"tasks{arguments.limit}")
    path = os.path.join(folder, "tasks.jsonl")
    if not os.path.exists(path):
        script = os.path.join(ROOT, "tools", "train", "tasks.py")
        if subprocess.run([sys.executable, script, "--out", folder, "--count", str(arguments.limit)], check=False).returncode:
            fail("the evaluation set could not be written: see tools/train/README.md for what that needs, or give --tasks")
    return path


def main():
    arguments = parse_arguments()
    with open(os.path.join(HERE, "models.json"), encoding="utf-8") as file:
        notes = {entry["model"]: entry["note"] for entry in json.load(file)}
    models = arguments.models or [os.path.join(ROOT, "models", name) for name in notes]
    os.makedirs(arguments.work, exist_ok=True)
    tasks, budgets = ensure_tasks(arguments), arguments.budgets.split(",")
    methods = [spec for method in arguments.methods.split(",") for spec in spelt_out(method, budgets)]
    shuffled_tasks = os.path.join(arguments.work, "shuffled.jsonl")
    write_shuffled(tasks, shuffled_tasks)
    sections = []
    for model in models:
        name = os.path.basename(os.path.normpath(model))
        plots = os.path.join(arguments.work, "quality", name)
        os.makedirs(plots, exist_ok=True)
        common = ["--limit", str(arguments.limit), "--concurrency", str(arguments.concurrency)]
        begin = time.monotonic()
        service = Service(arguments.build, model, arguments.service.split())
        try:
            report = evaluate(arguments.build, service, tasks, ["dense"] + methods + [CONTROL],
                              os.path.join(plots, "figures.json"), "--budgets", arguments.budgets, "--plots", plots, *common)
            shuffled = evaluate(arguments.build, service, shuffled_tasks, ["dense"], os.path.join(arguments.work, "shuffled.json"),
                                "--scores-only", *common)
        finally:
            service.stop()
        controls = check_controls(report, shuffled)
        sections.append(model_text(name, notes.get(name, ""), report, controls, budgets, f"quality/{name}"))
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    # Only what has passed the controls of every model is published.
    for model in models:
        name = os.path.basename(os.path.normpath(model))
        shutil.copytree(os.path.join(arguments.work, "quality", name), os.path.join(arguments.out, "quality", name),
                        dirs_exist_ok=True)
    write_document(os.path.join(arguments.out, "QUALITY.md"), sections)


if __name__ == "__main__":
    main()
