"""Text eviction and the prefill filter end to end, on the shipped model: what the report says, what the client passes on, what is the same again."""
import json
import os
import subprocess
import unittest

from harness import *  # noqa: F403

CASE = os.path.join(SOURCES, "models", "cases", "00")


class Adaptive(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--threads", "1", "--dtype", "f32")
        with open(os.path.join(CASE, "case.json")) as file:
            cls.case = json.load(file)

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def ask(self, tokens=40, **attention):
        fields = dict(sampling=pb.SamplingParameters(temperature=0), max_tokens=tokens, ignore_eos=True,
                      attention=pb.AttentionParameters(**attention))
        return Answer(self.service.inference.Generate(raw(self.case["prompt"], [PICTURE], **fields), timeout=60))

    def test_text(self):
        dense = self.ask(dense=True)
        # A budget that is never full changes nothing.
        roomy = self.ask(visual_store_ratio=1, visual_compute_ratio=1, text_keep_ratio=.5, text_keep_min=60)
        self.assertEqual(roomy.ids, dense.ids)
        report = roomy.finished.attention
        self.assertEqual((report.text_rows_seen, report.text_rows_stored), (39, 39))
        lean = self.ask(visual_store_ratio=1, visual_compute_ratio=1, text_keep_ratio=.25, text_keep_min=4)
        report = lean.finished.attention
        self.assertEqual((report.text_rows_seen, report.text_rows_stored), (39, 10))
        self.assertTrue(report.parameters.protect_prompt)
        self.assertLess(report.kv_bytes_held, dense.finished.attention.kv_bytes_held)
        self.assertEqual(lean.ids[0], dense.ids[0])
        self.assertEqual(self.ask(visual_store_ratio=1, visual_compute_ratio=1, text_keep_ratio=.25,
                                  text_keep_min=4).ids, lean.ids)
        # The question goes as well, and both methods work on one request.
        bare = self.ask(visual_store_ratio=.5, visual_compute_ratio=.3, text_keep_ratio=.25, text_keep_min=4,
                        text_policy=pb.TEXT_POLICY_H2O, protect_prompt=False)
        report = bare.finished.attention
        self.assertGreater(report.text_rows_seen, 39)
        self.assertEqual(report.text_rows_stored, round(report.text_rows_seen / 4))
        self.assertEqual(len(bare.ids), 40)

    def test_filter(self):
        dense = self.ask(dense=True)
        rows = dense.finished.attention.visual_rows_seen
        with open(os.path.join(MODEL, "config.json")) as file:
            layers = json.load(file)["text_config"]["num_hidden_layers"]
        alone = self.ask(visual_store_ratio=1, visual_compute_ratio=1, prefill_keep_ratio=.25, prefill_layer=1)
        report = alone.finished.attention
        self.assertEqual(report.visual_rows_stored, (rows + (layers - 1) * (rows // 4) + layers // 2) // layers)
        self.assertLess(report.kv_bytes_held, dense.finished.attention.kv_bytes_held)
        self.assertEqual(report.kv_bytes_returned, 0)
        every = self.ask(visual_store_ratio=.2, visual_compute_ratio=.1, prefill_keep_ratio=.25, prefill_layer=1,
                         text_keep_ratio=.5, text_keep_min=8)
        self.assertEqual(every.finished.attention.visual_rows_stored, rows // 5)
        for text, fields in (("the filter needs one behind it", dict(prefill_layer=layers)),
                             ("more than the prefill filter leaves", dict(visual_store_ratio=.5))):
            fields = dict(dict(visual_store_ratio=.2, visual_compute_ratio=.1, prefill_keep_ratio=.25), **fields)
            code, details = failure(lambda: self.ask(**fields))
            self.assertEqual(code, "INVALID_ARGUMENT")
            self.assertIn(text, details)

    def test_client(self):
        result = subprocess.run(
            [os.path.join(BINARIES, "bin", "avl"), "ask", "--server", self.service.address, "--json", "--image",
             os.path.join(CASE, "image.png"), "--text-keep", ".3", "--text-keep-min", "8", "--max-tokens", "30", "--ignore-eos",
             "--temperature", "0", "Describe the picture."],
            capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        attention = json.loads(result.stdout)["attention"]
        self.assertEqual(attention["parameters"]["text_keep_ratio"], .3)
        self.assertLess(attention["text_rows_stored"], attention["text_rows_seen"])


if __name__ == "__main__":
    unittest.main()
