"""Several answers to one request (n): each as if asked for alone with its seed; the prompt counted, encoded and read once; stop
texts, cancellation, deadlines, and the death of a worker."""
import json
import os
import signal
import subprocess
import unittest

from harness import *  # noqa: F403

CASE = os.path.join(SOURCES, "models", "cases", "00")
N = 5


class Choices:
    """A stream of several answers, read to its end."""

    def __init__(self, events):
        self.ids, self.texts, self.finished, self.logprobs = {}, {}, {}, {}
        for event in events:
            self.add(event)

    def add(self, event):
        if event.WhichOneof("event") == "delta":
            assert event.delta.choice not in self.finished, "something follows `finished`"
            self.ids.setdefault(event.delta.choice, []).extend(event.delta.token_ids)
            self.texts[event.delta.choice] = self.texts.get(event.delta.choice, "") + event.delta.text
            self.logprobs.setdefault(event.delta.choice, []).extend(entry.token.logprob for entry in event.delta.logprobs)
        elif event.WhichOneof("event") == "finished":
            assert event.finished.choice not in self.finished
            self.finished[event.finished.choice] = event.finished


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--threads", "1", "--dtype", "f32", "--kept-prompts", "0", "--choices-max", "6")
        with open(os.path.join(CASE, "case.json")) as file:
            cls.case = json.load(file)
        with open(os.path.join(CASE, "image.png"), "rb") as file:
            cls.image = file.read()

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def request(self, seed=77, **fields):
        sampling = dict(temperature=2.5, seed=seed, repetition_penalty=1.1, logprobs=0)
        sampling.update(fields.pop("sampling", {}))
        fields.setdefault("max_tokens", 40)
        return raw(self.case["prompt"], [self.image], sampling=pb.SamplingParameters(**sampling), **fields)

    def ask(self, **fields):
        return Choices(self.service.inference.Generate(self.request(**fields), timeout=60))

    def stats(self):
        """Of the group, when it has nothing to do and has told so."""
        limit, last = time.monotonic() + 60, None
        while time.monotonic() < limit:
            group = self.service.inference.GetStats(pb.GetStatsRequest(), timeout=10).groups[0]
            if group.reported and group.active + group.queued == 0 and last is not None and group.steps == last.steps:
                return group
            last = group
            time.sleep(1.5)  # it tells about once a second
        raise AssertionError("the group stays busy")

    def check(self, answers, count, **fields):
        self.assertEqual(sorted(answers.finished), list(range(count)))
        seeds = {answers.finished[i].seed for i in range(count)}
        self.assertEqual(len(seeds), count)
        self.assertEqual(answers.finished[0].seed, 77)
        self.assertGreater(len({tuple(ids) for ids in answers.ids.values()}), 1)
        for i in range(count):
            alone = self.ask(seed=answers.finished[i].seed, **fields)
            self.assertEqual(alone.ids[0], answers.ids[i], f"answer {i}")
            self.assertEqual(alone.texts[0], answers.texts[i])
            self.assertEqual(len(alone.logprobs[0]), len(alone.ids[0]))
            for value, expected in zip(answers.logprobs[i], alone.logprobs[0]):
                self.assertAlmostEqual(value, expected, places=3)
            self.assertEqual(alone.finished[0].finish_reason, answers.finished[i].finish_reason)
            self.assertEqual(answers.finished[i].usage.completion_tokens, len(answers.ids[i]))

    def test_each_as_alone(self):
        for attention in (pb.AttentionParameters(dense=True), pb.AttentionParameters()):
            self.check(self.ask(n=N, attention=attention), N, attention=attention)

    def test_the_prompt_counts_once(self):
        before = self.stats()
        answers = self.ask(n=N, ignore_eos=True)
        usage = [answers.finished[i].usage for i in range(N)]
        rows = max(one.prompt_tokens for one in usage)
        self.assertGreater(rows, 196)
        self.assertEqual(sum(one.prompt_tokens for one in usage), rows)
        self.assertEqual(sum(one.visual_tokens for one in usage), 196)
        self.assertEqual(sum(one.completion_tokens for one in usage), N * 40)
        limit = time.monotonic() + 30
        while self.stats().prompt_tokens == before.prompt_tokens:
            self.assertLess(time.monotonic(), limit)
        after = self.stats()
        self.assertEqual(after.prompt_tokens - before.prompt_tokens, rows)
        self.assertLessEqual(after.encoder_cache.queries - before.encoder_cache.queries, 1)

    def test_stop_text(self):
        whole = self.ask(n=3, ignore_eos=True)
        stop = whole.texts[1][5:9]
        answers = self.ask(n=3, ignore_eos=True, sampling=dict(stop=[stop]))
        for i in range(3):
            where = whole.texts[i].find(stop)
            self.assertEqual(answers.texts[i], whole.texts[i] if where < 0 else whole.texts[i][:where])
            reason = pb.FINISH_REASON_LENGTH if where < 0 else pb.FINISH_REASON_STOP
            self.assertEqual(answers.finished[i].finish_reason, reason)

    def test_refusals(self):
        for fields, words in ((dict(n=7), "n is 7; allowed: 0 or 1 (one answer) to 6"), (dict(n=2, forced_token_ids=[300]), "n = 2")):
            code, text = failure(self.service.inference.Generate(self.request(**fields), timeout=30))
            self.assertEqual((code, words in text), ("INVALID_ARGUMENT", True), text)
        self.assertEqual(self.service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=10).choices_max, 6)

    def test_deadline_and_cancellation(self):
        stream = self.service.inference.Generate(self.request(n=4, ignore_eos=True, max_tokens=0), timeout=60)
        for _, _ in zip(range(10), stream):
            pass
        stream.cancel()
        self.assertEqual(self.stats().pages_reserved, 0)
        code, _ = failure(self.service.inference.Generate(self.request(n=4, ignore_eos=True, max_tokens=0), timeout=.2))
        self.assertIn(code, ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"))
        self.assertEqual(self.stats().pages_reserved, 0)

    def test_death_of_the_worker(self):
        fields = dict(n=4, ignore_eos=True, max_tokens=300)
        whole = self.ask(**fields)
        stream, answers, killed = self.service.inference.Generate(self.request(**fields), timeout=120), Choices([]), False
        for event in stream:
            answers.add(event)
            if min(len(answers.ids.get(i, [])) for i in range(4)) >= 20 and not killed:
                killed = True
                os.kill(max(self.service.workers()), signal.SIGKILL)
        self.assertTrue(killed)
        self.assertEqual((answers.ids, answers.texts), (whole.ids, whole.texts))

    def test_ask(self):
        command = [os.path.join(BINARIES, "bin", "avl"), "ask", "--server", self.service.address, "--seed", "77", "--temperature",
                   "1.4", "--max-tokens", "12", "--n", "3", "What is this?"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        told = json.loads(subprocess.run(command + ["--json"], capture_output=True, text=True, timeout=60).stdout)
        self.assertEqual([choice["choice"] for choice in told["choices"]], [0, 1, 2])
        for i, choice in enumerate(told["choices"]):
            self.assertIn(f"[{i}, seed {choice['seed']}] {choice['text']}", shown.stdout)
        self.assertEqual(told["usage"]["completion_tokens"], sum(len(choice["token_ids"]) for choice in told["choices"]))


class LittleRoom(unittest.TestCase):
    def test_fewer_sequences_than_answers(self):
        with Service("--threads", "1", "--dtype", "f32", "--sequences", "2") as service:
            request = raw("Hello", n=5, max_tokens=20, sampling=pb.SamplingParameters(temperature=1, seed=3))
            answers = Choices(service.inference.Generate(request, timeout=60))
            self.assertEqual(sorted(answers.finished), list(range(5)))
            for i in range(5):
                alone = raw("Hello", max_tokens=20,
                            sampling=pb.SamplingParameters(temperature=1, seed=answers.finished[i].seed))
                self.assertEqual(Answer(service.inference.Generate(alone, timeout=60)).ids, answers.ids[i])


if __name__ == "__main__":
    unittest.main(verbosity=2)
