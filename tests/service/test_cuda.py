"""The whole service on the CUDA backend without a GPU: real coordinator, launcher and workers, which load a libavl_cuda.so that
is the same kernels compiled for the execution shim (tests/cuda). Expected are the tokens of the CPU backend."""
import ctypes
import os
import unittest

from harness import *  # noqa: F403
from test_model import expected_of, load_cases, request_of

FOLDER = os.path.join(BINARIES, "tests", "cuda_service")
GPU = "cuda: execution shim (sm_80)"


def start(*arguments, gpus=1, driver=True, **options):
    environment = {"AVL_SHIM_DEVICES": str(gpus)}
    if driver:
        environment["LD_LIBRARY_PATH"] = FOLDER
    return Service("--worker-program", os.path.join(FOLDER, "avl-worker"), "--dtype", "f32", "--threads", "1",
                   "--memory", "192M",
                   # The shim is slow, and nothing on its stream happens before somebody waits: no layer tells of progress.
                   "--worker-timeout", "300", *arguments, environment=environment, timeout=300, **options)


def info_of(service):
    return service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=60)


def case_of(name):
    return next(case for case in load_cases() if case["name"] == name)


class Cuda(unittest.TestCase):
    def check(self, service, jobs):
        calls = [service.inference.Generate(request_of(*job), timeout=600) for job in jobs]
        for (case, setting), call in zip(jobs, calls):
            answer = Answer(call)
            where = f"case {case['name']} {setting}"
            self.assertEqual(answer.ids, expected_of(case, setting), where)
            stored = int(case["image_tokens"] * case["settings"][setting]["store"] + 1e-9)
            self.assertEqual(answer.finished.attention.visual_rows_stored, stored, where)

    def test_1_rank(self):
        """The shipped cases' tokens, dense and with A-VL, together in the steps; then prompts that were seen before."""
        with start("--device", "cuda") as service:
            info = info_of(service)
            self.assertEqual((info.ranks, info.dtype, info.device), (1, "f32", GPU))
            self.check(service, [(case_of("01"), "full"), (case_of("01"), "avl50"), (case_of("02"), "avl90")])
            self.check(service, [(case_of("01"), "avl50")])

    def test_2_ranks(self):
        """Two processes under mpirun, a GPU each, which add up what they have by NCCL (its stand-in)."""
        with start("--device", "cuda", "--tp", "2", gpus=2) as service:
            info = info_of(service)
            self.assertEqual((info.ranks, info.device), (2, GPU))
            service.wait_log("the ranks' GPUs exchange through NCCL 2.28.9")
            self.check(service, [(case_of("01"), "full"), (case_of("01"), "avl50")])

    def test_2_ranks_without_nccl(self):
        """Through host memory: when asked to, and when the ranks share a GPU; unless NCCL is insisted on."""
        with start("--device", "cuda", "--tp", "2", "--exchange", "host", gpus=2) as service:
            self.check(service, [(case_of("01"), "avl50")])
            self.assertNotIn("NCCL", service.log)
        with start("--device", "cuda", "--tp", "2", gpus=1) as service:
            service.wait_log("the ranks exchange through host memory: ranks 0 and 1 share one GPU")
        service = start("--device", "cuda", "--tp", "2", "--exchange", "nccl", gpus=1, wait=False)
        self.assertEqual(service.process.wait(300), 1, service.log)
        service.wait_log("ranks 0 and 1 share one GPU", timeout=10)

    def test_evicted_text(self):
        """Text of prompt and answer evicted head by head: as the CPU backend does it in the same service."""
        def ask(service):
            case = case_of("01")
            return Answer(service.inference.Generate(
                raw(case["prompt"], [case["image"]], max_tokens=6, ignore_eos=True,
                    sampling=pb.SamplingParameters(temperature=0),
                    attention=pb.AttentionParameters(visual_store_ratio=0.5, visual_compute_ratio=0.3, text_keep_ratio=0.5,
                                                     text_keep_min=4, protect_prompt=False)), timeout=600))
        with start("--device", "cpu") as service:
            self.assertTrue(info_of(service).device.startswith("cpu: "))
            expected = ask(service)
        with start("--device", "cuda") as service:
            answer = ask(service)
        self.assertEqual(len(answer.ids), 6)
        self.assertEqual(answer.ids, expected.ids)
        report, other = answer.finished.attention, expected.finished.attention
        self.assertLess(report.text_rows_stored, report.text_rows_seen)
        self.assertEqual((report.text_rows_seen, report.text_rows_stored), (other.text_rows_seen, other.text_rows_stored))

    def test_draws(self):
        """Tokens drawn on the device, with everything that can be asked of a draw: those that the CPU backend draws, and
        their logprobs."""
        def ask(service, **fields):
            case = case_of("01")
            deltas = [event.delta for event in service.inference.Generate(
                raw(case["prompt"], [case["image"]], max_tokens=6, ignore_eos=True,
                    sampling=pb.SamplingParameters(logprobs=3, **fields)), timeout=600)
                      if event.WhichOneof("event") == "delta"]
            logprobs = [entry for delta in deltas for entry in delta.logprobs]
            return ([token for delta in deltas for token in delta.token_ids],
                    [best.token_id for entry in logprobs for best in entry.best],
                    [best.logprob for entry in logprobs for best in [entry.token, *entry.best]])
        settings = [dict(temperature=1.1, seed=7),
                    dict(temperature=1.5, seed=8, top_p=.9, top_k=50, min_p=.01, repetition_penalty=1.2, presence_penalty=.3,
                         frequency_penalty=.2, min_tokens=4)]
        answers = {}
        for device in ("cpu", "cuda"):
            with start("--device", device) as service:
                answers[device] = [ask(service, **fields) for fields in settings]
        for (ids, best, logprobs), (other_ids, other_best, other_logprobs) in zip(answers["cuda"], answers["cpu"]):
            self.assertEqual(len(ids), 6)
            self.assertEqual((ids, best), (other_ids, other_best))
            for logprob, other in zip(logprobs, other_logprobs, strict=True):
                self.assertAlmostEqual(logprob, other, delta=1e-3)

    def test_auto(self):
        """`auto` takes a GPU where library, driver and GPU are, else the CPU, and says why."""
        tries = [({"gpus": 1}, GPU, "a GPU, an NVIDIA driver and libavl_cuda.so are here"),
                 ({"gpus": 0}, "cpu: ", "no CUDA device: no CUDA-capable device is detected")]
        try:
            ctypes.CDLL("libcuda.so.1")
            print("this host has a driver: its absence is left out")
        except OSError:
            tries.append(({"driver": False}, "cpu: ", "no CUDA device: no NVIDIA driver"))
        for options, device, why in tries:
            with start("--device", "auto", **options) as service:
                self.assertTrue(info_of(service).device.startswith(device), info_of(service).device)
                self.assertIn(why, service.wait_log("--device auto takes "))
        service = start("--device", "cuda", gpus=0, wait=False)
        self.assertEqual(service.process.wait(300), 1, service.log)
        service.wait_log("no CUDA-capable device is detected", timeout=10)


if __name__ == "__main__":
    unittest.main()
