"""The real workers with the shipped model: the reference tokens at 1 to 4 ranks, recovery, no orphans."""
import json
import os
import signal
import threading
import time
import unittest

from harness import *  # noqa: F403

CASES = os.path.join(SOURCES, "models", "cases")


def load_cases():
    cases = []
    for name in sorted(os.listdir(CASES)):
        with open(os.path.join(CASES, name, "case.json")) as file:
            case = json.load(file)
        with open(os.path.join(CASES, name, "image.png"), "rb") as file:
            case["image"] = file.read()
        case["name"] = name
        cases.append(case)
    return cases


def request_of(case, setting):
    numbers = case["settings"][setting]
    attention = pb.AttentionParameters(visual_store_ratio=numbers["store"], visual_compute_ratio=numbers["compute"],
                                       visual_update_interval=numbers["interval"],
                                       visual_selection=pb.VISUAL_SELECTION_LAST_ROW)
    return raw(case["prompt"], [case["image"]], max_tokens=case["max_tokens"], attention=attention,
               sampling=pb.SamplingParameters(temperature=0))


def expected_of(case, setting):
    return case["settings"][setting]["token_ids"]


class Model(unittest.TestCase):
    def check_ranks(self, ranks):
        with Service("--tp", str(ranks), "--dtype", "f32", "--threads", "1") as service:
            info = service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=30)
            self.assertEqual((info.ranks, info.dtype, info.ready), (ranks, "f32", True))
            jobs = [(case, setting) for case in load_cases() for setting in case["settings"]]
            calls = [service.inference.Generate(request_of(*job), timeout=240) for job in jobs]
            for (case, setting), call in zip(jobs, calls):
                answer = Answer(call)
                where = f"case {case['name']} {setting} at {ranks} ranks"
                self.assertEqual(answer.ids, expected_of(case, setting), where)
                self.assertEqual(answer.text, case["settings"][setting]["text"], where)
                self.assertEqual(answer.finished.usage.visual_tokens, case["image_tokens"], where)
                self.assertEqual(answer.finished.attention.visual_rows_seen, case["image_tokens"], where)
                stored = int(case["image_tokens"] * case["settings"][setting]["store"] + 1e-9)
                self.assertEqual(answer.finished.attention.visual_rows_stored, stored, where)

    def test_1_rank(self):
        self.check_ranks(1)

    def test_2_ranks(self):
        self.check_ranks(2)

    def test_3_ranks(self):
        self.check_ranks(3)

    def test_4_ranks(self):
        self.check_ranks(4)

    def test_grouped_heads(self):
        """Query heads that share KV heads, also among ranks: a random model, whose answers never end by themselves."""
        folder = os.path.join(SOURCES, "tests", "data", "cases", "llava-gqa", "01")
        with open(os.path.join(folder, "case.json")) as file:
            case = json.load(file)
        with open(os.path.join(folder, case["images"][0]), "rb") as file:
            image = file.read()
        jobs = [(dict(dense=True), case["greedy_ids"])]
        jobs += [(dict(visual_store_ratio=run["store"], visual_compute_ratio=run["compute"],
                       visual_update_interval=run["interval"],
                       visual_selection=pb.VISUAL_SELECTION_LAST_ROW), run["greedy_ids"]) for run in case["avl"]]
        model = os.path.join(SOURCES, "tests", "data", "models", case["model"])
        for ranks in (1, 4):
            with Service("--tp", str(ranks), "--dtype", "f32", "--threads", "1", model=model) as service:
                calls = [service.inference.Generate(
                    raw(case["prompt"], [image], max_tokens=len(ids), sampling=pb.SamplingParameters(temperature=0),
                        attention=pb.AttentionParameters(**attention)), timeout=240) for attention, ids in jobs]
                for (attention, ids), call in zip(jobs, calls):
                    self.assertEqual(Answer(call).ids, ids, f"{attention} at {ranks} ranks")

    def test_methods(self):
        """Every way to choose visual rows through the public API; what was in force is reported."""
        case = load_cases()[0]
        with Service("--tp", "2", "--dtype", "f32", "--threads", "1") as service:
            def ask(**fields):
                request = raw(case["prompt"], [case["image"]], max_tokens=16, ignore_eos=True,
                              sampling=pb.SamplingParameters(temperature=0, seed=3),
                              attention=pb.AttentionParameters(visual_store_ratio=0.3, visual_compute_ratio=0.15,
                                                               **fields))
                return Answer(service.inference.Generate(request, timeout=240))
            for selection in (pb.VISUAL_SELECTION_LAST_ROW, pb.VISUAL_SELECTION_QUESTION,
                              pb.VISUAL_SELECTION_RANDOM, pb.VISUAL_SELECTION_UNIFORM,
                              pb.VISUAL_SELECTION_COVERAGE):
                answer = ask(visual_selection=selection, visual_core=pb.VISUAL_CORE_INTERVAL)
                report = answer.finished.attention
                self.assertEqual(report.parameters.visual_selection, selection)
                self.assertEqual(report.visual_rows_stored, 58)
                self.assertEqual(report.captured_mass, 0)
                measured = ask(visual_selection=selection, visual_core=pb.VISUAL_CORE_INTERVAL,
                               measure_captured_mass=True)
                report = measured.finished.attention
                self.assertEqual(measured.ids, answer.ids)
                self.assertTrue(0 < report.captured_mass < report.stored_mass < 1, report)
                self.assertTrue(report.parameters.measure_captured_mass)
            step = ask(visual_core=pb.VISUAL_CORE_STEP).finished.attention
            self.assertEqual(step.parameters.visual_core, pb.VISUAL_CORE_STEP)
            self.assertFalse(step.parameters.HasField("visual_update_interval"))
            self.assertEqual((step.visual_update_interval, step.visual_rows_stored), (0, 58))
            self.assertAlmostEqual(step.visual_rows_computed_per_step, (58 + 29) / 2, delta=0.5 / 15)
            measured = ask(visual_core=pb.VISUAL_CORE_STEP, measure_captured_mass=True).finished.attention
            self.assertTrue(0 < measured.captured_mass < measured.stored_mass < 1, measured)

    def test_presets(self):
        """What `avl info` lists can be asked for by its name, and does what its parameters say."""
        case = load_cases()[0]
        rows, steps = 196, 15
        with Service("--tp", "2", "--dtype", "f32", "--threads", "1") as service:
            presets = service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=10).attention_presets
            self.assertEqual([preset.name for preset in presets], ["dense", "a-vl", "quality", "balanced", "lean"])
            first = set()
            for preset in presets:
                request = raw(case["prompt"], [case["image"]], max_tokens=steps + 1, ignore_eos=True,
                              sampling=pb.SamplingParameters(temperature=0),
                              attention=pb.AttentionParameters(preset=preset.name))
                answer = Answer(service.inference.Generate(request, timeout=240))
                report, said = answer.finished.attention, preset.parameters
                self.assertEqual(report.parameters, said)
                stored, core = (int(ratio * rows + 1e-9)
                                for ratio in (said.visual_store_ratio, said.visual_compute_ratio))
                self.assertEqual(report.visual_rows_stored, stored)
                if said.visual_core == pb.VISUAL_CORE_STEP:
                    self.assertAlmostEqual(report.visual_rows_computed_per_step, (stored + core) / 2, delta=0.5 / steps)
                first.add(answer.ids[0])
            self.assertEqual(len(first), 1)  # prefill attends to everything

    def test_too_many_ranks(self):
        service = Service("--tp", "7", wait=False)
        self.assertNotEqual(service.process.wait(120), 0)
        service.wait_log("cannot serve", timeout=5)

    def recover(self, ranks, name):
        """A rank is killed in mid-stream; sampled and greedy answers go on as if nothing had been."""
        case = load_cases()[0]
        requests = [request_of(case, "full"), request_of(case, "avl50"),
                    raw(case["prompt"], [case["image"]], max_tokens=400, ignore_eos=True,
                        sampling=pb.SamplingParameters(temperature=1, seed=5))]
        with Service("--tp", str(ranks), "--threads", "1") as service:
            undisturbed = [Answer(service.inference.Generate(r, timeout=120)).ids for r in requests]
            streams = [service.inference.Generate(r, timeout=240) for r in requests]
            first = [next(stream) for stream in streams]
            victims = [pid for pid in service.workers() if command_of(pid) == name]
            os.kill(max(victims), signal.SIGKILL)
            again = [Answer([event] + list(stream)).ids for event, stream in zip(first, streams)]
            self.assertEqual(again, undisturbed)
            service.wait_log("will be resumed", timeout=5)
            service.wait_serving(1)

    def test_recovery_of_1_rank(self):
        self.recover(1, "avl-worker")

    def test_recovery_of_2_ranks(self):
        self.recover(2, "avl-worker")

    def test_recovery_of_the_launcher(self):
        self.recover(2, "mpirun")

    def test_coordinator_killed(self):
        for ranks in (1, 2):
            service = Service("--tp", str(ranks), "--threads", "1")
            workers = service.workers()
            self.assertGreaterEqual(len(workers), ranks)
            service.process.kill()
            service.process.wait()
            wait_gone(workers)

    def test_bad_models(self):
        import shutil
        import tempfile
        for file, spoil, word in (("model.safetensors", lambda d: d[:5000], "model.safetensors"),
                                  ("config.json", lambda d: d.replace(b'"llava"', b'"mamba"'), "mamba"),
                                  ("tokenizer.json", lambda d: d[:3000], "tokenizer.json")):
            with tempfile.TemporaryDirectory() as directory:
                model = os.path.join(directory, "model")
                shutil.copytree(MODEL, model)
                path = os.path.join(model, file)
                with open(path, "rb") as source:
                    data = source.read()
                with open(path, "wb") as target:
                    target.write(spoil(data))
                service = Service(model=model, wait=False)
                self.assertEqual(service.process.wait(60), 1, service.log)
                service.wait_log(word, timeout=5)

    def test_concurrency_and_drain(self):
        case = load_cases()[0]
        service = Service("--threads", "2")
        answers = {}

        def ask(index):
            setting = ("full", "avl50", "avl70", "avl90")[index % 4]
            answers[index] = setting, Answer(service.inference.Generate(request_of(case, setting), timeout=240)).ids
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        self.assertEqual(len(answers), 16)
        service.stop()


def command_of(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return os.path.basename(file.read().split("\0")[0])


if __name__ == "__main__":
    unittest.main()
