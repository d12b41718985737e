"""Forced tokens end to end, on the shipped model: what comes back, what is refused, and what a dead worker does not change."""
import json
import os
import signal
import unittest

from harness import *  # noqa: F403

CASE = os.path.join(SOURCES, "models", "cases", "00")
DENSE = pb.AttentionParameters(dense=True)
# Three rows are stored, and one computed: no answer that needs a picture survives that.
LEAN = pb.AttentionParameters(visual_store_ratio=.02, visual_compute_ratio=.01, visual_update_interval=3)


class Forced(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--threads", "1", "--dtype", "f32", "--answer-tokens-max", "600")
        with open(os.path.join(CASE, "case.json")) as file:
            cls.case = json.load(file)
        with open(os.path.join(CASE, "image.png"), "rb") as file:
            cls.image = file.read()
        cls.answer = cls.case["settings"]["full"]["token_ids"]

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def request(self, **fields):
        fields.setdefault("sampling", pb.SamplingParameters(temperature=0, logprobs=20))
        return raw(self.case["prompt"], [self.image], **fields)

    def run_request(self, **fields):
        """Ids, text, logprobs and the end of an answer."""
        answer, logprobs = Answer([]), []
        for event in self.service.inference.Generate(self.request(**fields), timeout=60):
            answer.add(event)
            logprobs += event.delta.logprobs
        return answer, logprobs

    def test_returned(self):
        free, free_logprobs = self.run_request(attention=DENSE)
        self.assertEqual(free.ids, self.answer)
        forced, logprobs = self.run_request(attention=DENSE, forced_token_ids=self.answer)
        self.assertEqual((forced.ids, forced.text), (free.ids, free.text))
        self.assertEqual(logprobs, free_logprobs)
        self.assertEqual(forced.finished.finish_reason, pb.FINISH_REASON_STOP)
        self.assertGreater(forced.finished.attention.kv_bytes_held, 0)
        lean, lean_logprobs = self.run_request(attention=LEAN, forced_token_ids=self.answer)
        self.assertEqual(lean.ids, self.answer)
        self.assertEqual([entry.token.token_id for entry in lean_logprobs], self.answer)
        self.assertEqual(lean_logprobs[0], logprobs[0])  # of the prefill
        self.assertNotEqual(lean_logprobs, logprobs)
        # A-VL's own answer to this question is another one: somewhere the forced token is not the likeliest.
        self.assertTrue(any(entry.best[0].token_id != entry.token.token_id for entry in lean_logprobs))
        self.assertLess(lean.finished.attention.kv_bytes_held, forced.finished.attention.kv_bytes_held)
        # Neither ends of sequence inside nor temperature count; the default is as many tokens as there are.
        ids = [self.answer[0], 2, 2, self.answer[1]]
        answer, _ = self.run_request(forced_token_ids=ids, sampling=pb.SamplingParameters(temperature=3))
        self.assertEqual(answer.ids, ids)
        self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(answer.finished.usage.completion_tokens, 4)

    def test_refusals(self):
        for fields, expected, words in (
                (dict(forced_token_ids=[5, -3]), "INVALID_ARGUMENT", "forced_token_ids[1] is -3; allowed: 0 to"),
                (dict(forced_token_ids=[1 << 20]), "INVALID_ARGUMENT", "forced_token_ids[0] is 1048576"),
                (dict(forced_token_ids=[5, 6], max_tokens=1), "INVALID_ARGUMENT", "2 tokens, and max_tokens is 1"),
                (dict(forced_token_ids=[5] * 601), "INVALID_ARGUMENT", "601 tokens; an answer can have 600"),
                (dict(forced_token_ids=[5], sampling=pb.SamplingParameters(stop=["a"])), "INVALID_ARGUMENT",
                 "forced_token_ids excludes sampling.stop")):
            code, text = failure(self.service.inference.Generate(self.request(**fields), timeout=30))
            self.assertEqual(code, expected, text)
            self.assertIn(words, text)

    def test_death_of_the_worker(self):
        ids = self.answer * 10
        whole, logprobs = self.run_request(attention=LEAN, forced_token_ids=ids)
        answer, again, killed = Answer([]), [], False
        request = self.request(attention=LEAN, forced_token_ids=ids)
        for event in self.service.inference.Generate(request, timeout=120):
            answer.add(event)
            again += event.delta.logprobs
            if len(answer.ids) >= 20 and not killed:
                killed = True
                os.kill(max(self.service.workers()), signal.SIGKILL)
        self.assertTrue(killed)
        self.assertEqual((answer.ids, answer.text), (ids, whole.text))
        self.assertEqual(again, logprobs)


if __name__ == "__main__":
    unittest.main(verbosity=2)
