"""avl eval against the real service and the shipped model: the references' scores come out, and the controls that must fail do."""
import collections
import json
import os
import subprocess
import tempfile
import unittest

from harness import *  # noqa: F403

CASES = os.path.join(SOURCES, "models", "cases")
AVL = os.path.join(BINARIES, "bin", "avl")


def load_cases():
    cases = {}
    for name in sorted(os.listdir(CASES)):
        with open(os.path.join(CASES, name, "case.json")) as file:
            cases[name] = json.load(file)
    return cases


def f1_of_items(text, expected):
    """As tools/train/README.md defines it."""
    def items(text):
        text = text.strip().removesuffix(".")
        text = text.split(": ", 1)[-1]
        return collections.Counter(item.strip() for item in text.split(",") if item.strip())
    got, wanted = items(text), items(expected)
    count = got.total() + wanted.total()
    return 2 * (got & wanted).total() / count if count else 1


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Defaults that no method of `avl eval` may take over.
        cls.service = Service("--threads", "1", "--dtype", "f32", "--text-keep", ".5", "--text-keep-min", "1")
        cls.cases = load_cases()
        cls.folder = tempfile.TemporaryDirectory(prefix="avl-test-")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        cls.service.stop()

    def write_tasks(self, name, answer_of):
        """The cases as a task file; answer_of(place) chooses whose answer is expected."""
        path = os.path.join(self.folder.name, name)
        cases = list(self.cases.items())
        with open(path, "w") as file:
            for place, (case_name, case) in enumerate(cases):
                question = case["prompt"].split("<image>\n", 1)[1].rsplit(" ASSISTANT:", 1)[0]
                line = {"id": case_name, "task": case["task"], "question": question, "max_tokens": case["max_tokens"],
                        "images": [os.path.join(CASES, case_name, "image.png")],
                        "score": "items" if case["task"] == "caption" else "exact"}
                answer = answer_of(place)
                if answer is not None:
                    line["answer"] = cases[answer][1]["truth"]
                file.write(json.dumps(line) + "\n")
        return path

    def evaluate(self, tasks, *arguments):
        answers = os.path.join(self.folder.name, "answers")
        command = [AVL, "eval", "--server", self.service.address, "--tasks", tasks, "--json", "-", "--answers", answers]
        done = subprocess.run(command + list(arguments), capture_output=True, text=True, timeout=240)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with open(answers) as file:
            lines = [json.loads(line) for line in file]
        report = {method["method"]: {cell["task"]: cell for cell in method["tasks"]}
                  for method in json.loads(done.stdout)["methods"]}
        return report, {(line["method"], line["id"]): line for line in lines}

    def test_against_the_references(self):
        """Every answer is the reference decoder's, so is every score; a budget of everything changes nothing."""
        names = {"dense": "full", "a-vl:.5/.3/3": "avl50", "a-vl:.3/.15/3": "avl70", "a-vl:.1/.05/3": "avl90"}
        tasks = self.write_tasks("tasks", lambda place: place)
        report, answers = self.evaluate(tasks, "--methods", ",".join(list(names) + ["a-vl:1/1/1"]), "-c", "3")
        for (method, case), answer in answers.items():
            expected = self.cases[case]["settings"][names.get(method, "full")]
            self.assertEqual(answer["text"], expected["text"], (method, case))
            self.assertEqual(answer["tokens"], len(expected["token_ids"]), (method, case))
        for task, cell in report["a-vl:1/1/1"].items():
            dense = report["dense"][task]
            self.assertEqual(dense["score"]["mean"], 1, task)
            for key in ("same_as_dense", "tokens_before_first_other", "forced_agreement"):
                self.assertEqual(cell[key]["mean"], 1, (task, key))
            self.assertEqual((cell["forced_kl"]["mean"], cell["score_minus_dense"]["mean"]), (0, 0))
            self.assertEqual(cell["kv_bytes"], dense["kv_bytes"])
        for method, setting in names.items():
            self.expect_cells(report[method], setting)
        self.assertTrue(any(cell["same_as_dense"]["mean"] < 1 for cell in report["a-vl:.1/.05/3"].values()))
        lean, half = report["a-vl:.1/.05/3"]["caption"], report["a-vl:.5/.3/3"]["caption"]
        self.assertGreater(lean["forced_kl"]["mean"], half["forced_kl"]["mean"])
        self.assertGreater(half["forced_kl"]["mean"], 0)
        self.assertLess(lean["kv_bytes"], half["kv_bytes"])
        self.assertEqual((half["visual_rows_stored"], lean["visual_rows_stored"]), (98, 19))
        self.assertLess(lean["visual_rows_computed"], 19)
        self.assertLess(lean["captured_mass"]["mean"], half["captured_mass"]["mean"])
        self.assertLess(half["captured_mass"]["mean"], half["stored_mass"]["mean"])

    def expect_cells(self, cells, setting):
        """Scores, and what is compared with dense attention, follow from the references' answers."""
        for task, cell in cells.items():
            cases = [case for case in self.cases.values() if case["task"] == task]
            runs = [(case, case["settings"][setting], case["settings"]["full"]) for case in cases]
            scores = [f1_of_items(run["text"], case["truth"]) if task == "caption"
                      else float(run["text"] == case["truth"]) for case, run, _ in runs]
            self.assertAlmostEqual(cell["score"]["mean"], sum(scores) / len(cases), places=6, msg=(task, setting))
            if setting == "full":
                continue
            same = sum(run["token_ids"] == full["token_ids"] for _, run, full in runs)
            self.assertAlmostEqual(cell["same_as_dense"]["mean"], same / len(cases), places=6, msg=(task, setting))
            # Up to the first other token an answer of one's own and a forced one are the same run.
            self.assertEqual(cell["forced_agreement"]["mean"] < 1, same < len(cases), (task, setting))
            if same < len(cases):  # the first token comes from dense prefill
                self.assertGreater(cell["first_other_token"], 0, (task, setting))

    def test_other_questions_answers(self):
        """Expecting the answers of other pictures scores near nothing."""
        count = len(self.cases)
        tasks = self.write_tasks("shuffled", lambda place: (place + 2) % count)
        report, _ = self.evaluate(tasks, "--methods", "dense", "--scores-only")
        for task, cell in report["dense"].items():
            self.assertLess(cell["score"]["mean"], .35, task)
            self.assertIsNone(cell["forced_kl"])

    def test_methods_that_keep_one_share(self):
        """A prefill filter, which has no mass to tell, and text eviction alone."""
        tasks = self.write_tasks("shares", lambda place: place)
        report, _ = self.evaluate(tasks, "--methods", "fastv:.25,h2o:.5+text_keep_min=1+protect_prompt=false")
        dense, filtered = report["dense"]["caption"], report["fastv:.25"]["caption"]
        self.assertLess(filtered["visual_rows_stored"], dense["visual_rows_stored"])
        self.assertLess(filtered["kv_bytes"], dense["kv_bytes"])
        self.assertGreater(filtered["forced_kl"]["mean"], 0)
        self.assertIsNone(filtered["captured_mass"])
        text = report["h2o:.5+text_keep_min=1+protect_prompt=false"]["caption"]
        self.assertEqual(text["visual_rows_stored"], dense["visual_rows_stored"])
        self.assertGreater(text["forced_kl"]["mean"], 0)

    def test_without_answers(self):
        report, _ = self.evaluate(self.write_tasks("bare", lambda place: None), "--methods", "a-vl:.1/.05/3")
        cell = report["a-vl:.1/.05/3"]["caption"]
        self.assertIsNone(cell["score"])
        self.assertGreater(cell["forced_kl"]["mean"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
