"""What a request brought is there for the next one: pictures, whole prompts, prefixes; the answers stay the same."""
import time
import unittest

from harness import Answer, Service, pb
from test_model import expected_of, load_cases, request_of


def ask(service, request):
    begin, first = time.monotonic(), None
    answer = Answer([])
    for event in service.inference.Generate(request, timeout=120):
        if first is None and event.WhichOneof("event") == "delta":
            first = time.monotonic() - begin
        answer.add(event)
    return answer, first


class Reuse(unittest.TestCase):
    def check(self, ranks):
        with Service("--tp", str(ranks), "--dtype", "f32", "--threads", "1") as service:
            for case in load_cases()[:3]:
                for setting in case["settings"]:
                    answers = [ask(service, request_of(case, setting)) for _ in range(3)]
                    for number, (answer, first) in enumerate(answers):
                        where = f"case {case['name']} {setting}, time {number + 1}, {ranks} ranks"
                        self.assertEqual(answer.ids, expected_of(case, setting), where)
                        usage = answer.finished.usage
                        if number > 0:
                            self.assertEqual(usage.cached_tokens, usage.prompt_tokens, where)
                            self.assertEqual(usage.encoder_cache_hits, 1, where)
                            self.assertEqual(answer.finished.timings.encode_seconds, 0, where)
                        print(f"{where}: first token after {1000 * first:.1f} ms, {usage.cached_tokens} of "
                              f"{usage.prompt_tokens} tokens and {usage.encoder_cache_hits} pictures were there")

    def test_1_rank(self):
        self.check(1)

    def test_2_ranks(self):
        self.check(2)

    def test_off(self):
        with Service("--kept-prompts", "0", "--encoder-cache", "1M", "--dtype", "f32", "--threads", "1") as service:
            case = load_cases()[0]
            for _ in range(2):
                answer, _first = ask(service, request_of(case, next(iter(case["settings"]))))
                self.assertEqual(answer.finished.usage.cached_tokens, 0)
            self.assertEqual(answer.finished.usage.encoder_cache_hits, 1)


if __name__ == "__main__":
    unittest.main()
