"""Sampling parameters end to end, on the shipped model: stop texts and tokens, penalties, logprobs, min tokens, refusals, and
all of it across the death of a worker."""
import json
import math
import os
import signal
import unittest

from harness import *  # noqa: F403

CASE = os.path.join(SOURCES, "models", "cases", "00")


def sampling(**fields):
    fields.setdefault("temperature", 0)
    return pb.SamplingParameters(**fields)


class Sampling(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--threads", "1", "--dtype", "f32")
        with open(os.path.join(CASE, "case.json")) as file:
            cls.case = json.load(file)
        with open(os.path.join(CASE, "image.png"), "rb") as file:
            cls.image = file.read()
        cls.plain = cls.ask(cls, sampling(), ignore_eos=True)

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def request(self, parameters, **fields):
        fields.setdefault("max_tokens", 40)
        return raw(self.case["prompt"], [self.image], sampling=parameters, **fields)

    def ask(self, parameters, **fields):
        request = Sampling.request(self, parameters, **fields)
        return Answer(self.service.inference.Generate(request, timeout=60))

    def test_stop_text(self):
        text = self.plain.text
        self.assertGreater(len(text), 20)
        for begin, end in ((5, 9), (8, 20), (0, 2), (len(text) // 2, len(text) // 2 + 1)):
            stop = text[begin:end]
            where = text.find(stop)
            answer = self.ask(sampling(stop=["never to be seen", stop]), ignore_eos=True)
            self.assertEqual(answer.text, text[:where], stop)
            self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_STOP)
            self.assertEqual(answer.ids, self.plain.ids[:len(answer.ids)])
            self.assertEqual(answer.finished.usage.completion_tokens, len(answer.ids))
            self.assertGreater(answer.finished.attention.visual_rows_seen, 0)
        answer = self.ask(sampling(stop=["never to be seen"]), ignore_eos=True)
        self.assertEqual((answer.text, answer.ids), (text, self.plain.ids))
        # What might have become a stop text comes at the end.
        answer = self.ask(sampling(stop=[text[-3:] + "never"]), ignore_eos=True)
        self.assertEqual(answer.text, text)

    def test_stop_tokens_and_least(self):
        token = self.plain.ids[6]
        first = self.plain.ids.index(token)
        answer = self.ask(sampling(stop_token_ids=[token]), ignore_eos=True)
        self.assertEqual(answer.ids, self.plain.ids[:first + 1])
        self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_STOP)
        answer = self.ask(sampling(stop_token_ids=[token], min_tokens=first + 3), ignore_eos=True)
        self.assertEqual(answer.ids[:first], self.plain.ids[:first])
        self.assertNotIn(token, answer.ids[:first + 3])
        self.assertGreaterEqual(len(answer.ids), first + 3)

    def test_penalties(self):
        answer = self.ask(sampling(presence_penalty=100), ignore_eos=True, max_tokens=60)
        self.assertEqual(len(set(answer.ids)), 60)
        answer = self.ask(sampling(frequency_penalty=100), ignore_eos=True, max_tokens=60)
        self.assertEqual(len(set(answer.ids)), 60)
        answer = self.ask(sampling(repetition_penalty=1), ignore_eos=True)
        self.assertEqual(answer.ids, self.plain.ids)

    def test_min_p(self):
        answer = self.ask(sampling(temperature=5, min_p=1, seed=3), ignore_eos=True)
        self.assertEqual(answer.ids, self.plain.ids)
        answer = self.ask(sampling(temperature=5, seed=3), ignore_eos=True)
        self.assertNotEqual(answer.ids, self.plain.ids)

    def test_logprobs(self):
        request = self.request(sampling(logprobs=3), ignore_eos=True)
        deltas = [event.delta for event in self.service.inference.Generate(request, timeout=60)
                  if event.WhichOneof("event") == "delta"]
        ids = [token for delta in deltas for token in delta.token_ids]
        logprobs = [entry for delta in deltas for entry in delta.logprobs]
        self.assertEqual(ids, self.plain.ids)
        self.assertEqual([entry.token.token_id for entry in logprobs], ids)
        for entry in logprobs:
            self.assertEqual(len(entry.best), 3)
            self.assertEqual(entry.best[0].token_id, entry.token.token_id)  # greedy
            self.assertEqual(entry.best[0].logprob, entry.token.logprob)
            values = [best.logprob for best in entry.best]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(sum(math.exp(value) for value in values), 1 + 1e-5)
        request = self.request(sampling(logprobs=0))
        entry = next(event.delta.logprobs[0] for event in self.service.inference.Generate(request, timeout=60)
                     if event.WhichOneof("event") == "delta")
        self.assertEqual(len(entry.best), 0)
        self.assertLessEqual(entry.token.logprob, 0)

    def test_refusals(self):
        for fields, words in ((dict(min_p=2), "sampling.min_p is 2"), (dict(repetition_penalty=-1), "repetition_penalty"),
                              (dict(presence_penalty=math.nan), "presence_penalty"),
                              (dict(frequency_penalty=101), "frequency_penalty"), (dict(logprobs=21), "logprobs is 21"),
                              (dict(stop=[""]), "sampling.stop[0]"), (dict(stop=["x"] * 17), "sampling.stop has 17"),
                              (dict(stop_token_ids=[1] * 65), "stop_token_ids"), (dict(stop_token_ids=[-1]), "stop token 0 is -1"),
                              (dict(min_tokens=1 << 31), "min_tokens")):
            code, text = failure(self.service.inference.Generate(self.request(sampling(**fields)), timeout=30))
            self.assertEqual(code, "INVALID_ARGUMENT", text)
            self.assertIn(words, text)

    def test_death_of_the_worker(self):
        """Everything that looks back at the answer goes on as if nothing had been."""
        parameters = dict(temperature=1.2, seed=11, presence_penalty=.4, frequency_penalty=.2, repetition_penalty=1.2,
                          min_p=.02, min_tokens=70, logprobs=1)
        request = self.request(sampling(**parameters), ignore_eos=True, max_tokens=400)
        whole = Answer(self.service.inference.Generate(request, timeout=60))
        stream = self.service.inference.Generate(request, timeout=120)
        answer, killed = Answer([]), False
        for event in stream:
            answer.add(event)
            if len(answer.ids) >= 20 and not killed:
                killed = True
                os.kill(max(self.service.workers()), signal.SIGKILL)
        self.assertTrue(killed)
        self.assertEqual(answer.ids, whole.ids)
        self.assertEqual(answer.text, whole.text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
