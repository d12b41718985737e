"""Who is let in and in which order, and several worker groups; workers are fakes."""
import os
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from harness import *  # noqa: F403


def seeded(seed, **fields):
    return raw(sampling=pb.SamplingParameters(seed=seed), **fields)


def pace(step_ms, tokens=20, sequences=2):
    return {"AVL_FAKE_STEP_MS": str(step_ms), "AVL_FAKE_TOKENS": str(tokens), "AVL_FAKE_SEQUENCES": str(sequences)}


class Asked(threading.Thread):
    """A call on a thread of its own; `order` gathers who ended when."""

    def __init__(self, service, request, timeout=60, tenant=None, order=None):
        super().__init__()
        self.code, self.details, self.trailing, self.answer = "OK", "", {}, None
        metadata = [("x-avl-tenant", tenant)] if tenant else None
        self.stream = service.inference.Generate(request, timeout=timeout, metadata=metadata)
        self.tenant, self.order = tenant, order
        self.start()

    def run(self):
        try:
            self.answer = Answer(self.stream)
            if self.order is not None:
                self.order.append(self.tenant)
        except grpc.RpcError as error:
            self.code, self.details = error.code().name, error.details()
            self.trailing = dict(error.trailing_metadata() or ())


def together(service, count, **options):
    asked = [Asked(service, seeded(i), **options) for i in range(count)]
    for one in asked:
        one.join()
    return asked


class Doors(unittest.TestCase):
    def test_overload(self):
        with Service(fake="", environment=pace(20)) as service:
            together(service, 6)  # it learns how long answers take
            asked = together(service, 100, timeout=4)
            codes = [one.code for one in asked]
            self.assertLessEqual(set(codes), {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
            self.assertGreater(codes.count("OK"), 0)
            self.assertGreater(codes.count("RESOURCE_EXHAUSTED"), 30)
            self.assertLess(codes.count("DEADLINE_EXCEEDED"), 3)  # where the machine suddenly has less to give
            for one in asked:
                if one.code == "OK":
                    self.assertEqual(len(one.answer.ids), 20)
                elif one.code == "RESOURCE_EXHAUSTED":
                    self.assertTrue("the deadline is in" in one.details or "would miss their deadlines" in one.details, one.details)
                    self.assertGreaterEqual(int(one.trailing["retry-after-ms"]), 50)
                    self.assertEqual(one.trailing["grpc-retry-pushback-ms"], one.trailing["retry-after-ms"])
            self.assertEqual(together(service, 2)[0].code, "OK")

    def test_hopeless_deadline(self):
        with Service(fake="", environment=pace(10, tokens=200)) as service:
            together(service, 4)
            busy = Asked(service, seeded(1))
            limit = time.monotonic() + 30
            while service.inference.GetStats(pb.GetStatsRequest(), timeout=10).requests_running == 0:
                self.assertLess(time.monotonic(), limit)
                time.sleep(0.01)
            late = Asked(service, seeded(2), timeout=1)
            late.join()
            self.assertEqual((late.code, "the answer takes about" in late.details), ("DEADLINE_EXCEEDED", True),
                             late.details)
            brief = Asked(service, seeded(4, max_tokens=2), timeout=1.5)  # others take two seconds: that is not held against it
            short = Asked(service, seeded(3, max_tokens=20), timeout=30)
            for one in (busy, brief, short):
                one.join()
                self.assertEqual(one.code, "OK", one.details)

    def test_queue_timeout(self):
        with Service("--queue-timeout", "0.3", fake="", environment=pace(100, sequences=1)) as service:
            asked = together(service, 4)
            codes = sorted(one.code for one in asked)
            self.assertEqual(codes, ["OK", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"])
            for one in asked:
                if one.code != "OK":
                    self.assertIn("retry-after-ms", one.trailing)

    def test_full(self):
        with Service("--queue-max", "2", fake="", environment=pace(50)) as service:
            asked = together(service, 5)
            self.assertEqual(sorted(one.code for one in asked), ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 3)
            self.assertTrue(all("retry-after-ms" in one.trailing for one in asked if one.code != "OK"))

    def test_pictures_at_hand(self):
        """A group is given no more prepared pictures than it has room for."""
        room = str(3 * 168 * 168 * 3 // 2)  # one and a half
        with Service(fake="", environment={**pace(20, sequences=8), "AVL_FAKE_PICTURE_BYTES": room}) as service:
            running, asked = [], [Asked(service, talk(PICTURE, "?", sampling=pb.SamplingParameters(seed=i))) for i in range(3)]
            while any(one.is_alive() for one in asked):
                running.append(service.inference.GetStats(pb.GetStatsRequest(), timeout=10).requests_running)
                time.sleep(0.01)
            self.assertEqual([one.code for one in asked], ["OK"] * 3)
            self.assertEqual(max(running), 1)
            two = Asked(service, talk(PICTURE, PICTURE, "?"))
            two.join()
            self.assertEqual(two.code, "INVALID_ARGUMENT")
            self.assertIn(f"has room for {room}", two.details)

    def test_tenants_share(self):
        with Service(fake="", environment=pace(5, sequences=1)) as service:
            order = []
            flood = [Asked(service, seeded(i), tenant="flood", order=order) for i in range(40)]
            flood[0].stream.initial_metadata()
            few = [Asked(service, seeded(i), tenant="few", order=order) for i in range(5)]
            for one in flood + few:
                one.join()
                self.assertEqual(one.code, "OK", one.details)
            last = max(place for place, tenant in enumerate(order) if tenant == "few")
            self.assertLess(last, 25, order)

    def test_weights(self):
        with Service("--tenant-weight", "heavy=4", fake="", environment=pace(5, sequences=1)) as service:
            order = []
            asked = [Asked(service, seeded(i), tenant=tenant, order=order)
                     for i in range(30) for tenant in ("light", "heavy")]
            for one in asked:
                one.join()
            self.assertGreater(order[:25].count("heavy"), order[:25].count("light") + 5, order)

    def test_priorities(self):
        with Service(fake="", environment=pace(5, sequences=1)) as service:
            order = []
            low = [Asked(service, seeded(i), tenant="low", order=order) for i in range(30)]
            high = [Asked(service, seeded(i, priority=9), tenant="high", order=order) for i in range(3)]
            for one in low + high:
                one.join()
                self.assertEqual(one.code, "OK", one.details)
            last = max(place for place, tenant in enumerate(order) if tenant == "high")
            self.assertLess(last, 20, order)

    def test_limits(self):
        with Service("--request-pixels-max", "100", "--prompt-tokens-max", "50", "--answer-tokens-max", "7",
                     fake="") as service:
            for request, word in ((talk(PICTURE, "?"), "may have 100 pixels"), (raw("word " * 60), "50"),
                                  (raw(priority=101), "priority is 101"), (raw(priority=-101), "-101")):
                code, text = failure(service.inference.Generate(request, timeout=20))
                self.assertEqual((code, word in text), ("INVALID_ARGUMENT", True), text)
            self.assertEqual(len(Answer(service.inference.Generate(raw(), timeout=20)).ids), 7)
            self.assertEqual(len(Answer(service.inference.Generate(raw(max_tokens=9), timeout=20)).ids), 7)
            for tenant in ("x" * 65, "a b"):
                code, text = failure(service.inference.Generate(raw(), timeout=20,
                                                                metadata=[("x-avl-tenant", tenant)]))
                self.assertEqual((code, "x-avl-tenant" in text), ("INVALID_ARGUMENT", True), text)


class Replicas(unittest.TestCase):
    def stubborn_program(self, runs):
        """A worker program that runs so many times; later starts never call."""
        directory = os.path.dirname(flag_path())
        program = os.path.join(directory, "worker")
        with open(program, "w") as file:
            file.write(f'#!/bin/sh\nfor n in $(seq {runs}); do\n  mkdir "{directory}/$n" 2>/dev/null && exec {FAKE} "$@"\n'
                       'done\nexec sleep 600\n')
        os.chmod(program, 0o755)
        return program

    def test_one_dies(self):
        expected = {}
        with Service(fake="") as service:
            for seed in range(12):
                expected[seed] = Answer(service.inference.Generate(seeded(seed), timeout=60))
        with Service("--replicas", "2", "--worker-program", self.stubborn_program(2), fake="",
                     environment=pace(50, sequences=16)) as service:
            wait_groups(service, 2)
            asked = [Asked(service, seeded(seed)) for seed in range(12)]
            threading.Event().wait(0.3)
            os.kill(min(service.workers()), signal.SIGKILL)
            for seed, one in enumerate(asked):
                one.join()
                self.assertEqual(one.code, "OK", one.details)
                self.assertEqual(one.answer.ids, expected[seed].ids)
                self.assertEqual(one.answer.text, expected[seed].text)
            resumed = resumed_count(service)
            self.assertTrue(0 < resumed < 12, service.log)
            self.assertEqual(service.serving(), 1)

    def test_one_cannot_start(self):
        directory = os.path.dirname(flag_path())
        program = os.path.join(directory, "worker")
        with open(program, "w") as file:
            file.write(f'#!/bin/sh\nmkdir "{directory}/1" 2>/dev/null && AVL_FAKE=fail exec {FAKE} "$@"\nexec {FAKE} "$@"\n')
        os.chmod(program, 0o755)
        with Service("--replicas", "2", "--worker-program", program, fake="") as service:
            service.wait_log("is given up")
            self.assertEqual(together(service, 4)[3].code, "OK")

    def test_pictures_stay_with_their_group(self):
        with Service("--replicas", "3", "--log-level", "debug", fake="") as service:
            wait_groups(service, 3)
            for _ in range(6):
                Answer(service.inference.Generate(talk(PICTURE, "?"), timeout=20))
            groups = {line.split("group=")[1].split()[0] for line in service.log.split("\n")
                      if "goes to a worker group" in line}
            self.assertEqual(len(groups), 1, service.log)

    def test_join_and_leave(self):
        secret = "a secret of many bytes"
        path = os.path.join(tempfile.mkdtemp(prefix="avl-test-"), "secret")
        with open(path, "w") as file:
            file.write(secret + "\n")
        service = Service("--replicas", "0", "--join", "127.0.0.1:0", "--join-secret-file", path, fake="", wait=False)
        address = service.wait_log("worker groups may join at ").split()[0]
        workers = []

        fingerprint = service.wait_log("model with fingerprint ").split()[0]

        def join(token=secret, fingerprint=fingerprint, dtype="f32"):
            variables = dict(os.environ, AVL_GROUP_TOKEN=token, AVL_FAKE="", AVL_FAKE_FINGERPRINT=fingerprint,
                             AVL_FAKE_DTYPE=dtype, **pace(30))
            workers.append(subprocess.Popen([FAKE, "--coordinator", address], env=variables, stderr=subprocess.DEVNULL))
            return workers[-1]
        try:
            with service:
                service.connect_early()
                self.assertEqual(service.serving(), 2)
                self.assertEqual(join("guessed, not known").wait(30), 2)
                service.wait_log("the group token is not the one expected")
                early = Asked(service, seeded(5))  # waits for somebody to come
                first = join()
                service.wait_ready()
                early.join()
                self.assertEqual(early.code, "OK", early.details)
                for fields, words in ((dict(fingerprint="0" * 16), 'fingerprint is "0000000000000000"'), (dict(fingerprint=""), "another model"),
                                      (dict(dtype="bf16"), "computes in bf16, and the service in f32")):
                    self.assertEqual(join(**fields).wait(30), 5)  # its link was ended
                    service.wait_log(words)
                join()
                wait_groups(service, 2)
                asked = [Asked(service, seeded(5)) for _ in range(4)]
                for one in asked:
                    one.stream.initial_metadata()
                threading.Event().wait(0.2)
                first.kill()
                for one in asked:
                    one.join()
                    self.assertEqual((one.code, one.answer.ids), ("OK", early.answer.ids), one.details)
                service.wait_log("has left")
                workers[-1].kill()
                service.wait_serving(2)
                waiting = Asked(service, seeded(5))
                join()
                waiting.join()
                self.assertEqual((waiting.code, waiting.answer.ids), ("OK", early.answer.ids), waiting.details)
            self.assertEqual(workers[-1].wait(30), 0)  # drained by the coordinator's end
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()

    def test_options(self):
        for arguments, word in ((["--replicas", "0"], "needs --join"), (["--join", "127.0.0.1:0"], "belong together"),
                                (["--tenant-weight", "x"], "NAME=W"), (["--tenant-weight", "x=-1"], "NAME=W")):
            service = Service(*arguments, fake="", wait=False)
            self.assertEqual(service.process.wait(30), 64)
            service.wait_log(word, timeout=5)
        path = os.path.join(tempfile.mkdtemp(prefix="avl-test-"), "secret")
        with open(path, "w") as file:
            file.write("short")
        service = Service("--join", "127.0.0.1:0", "--join-secret-file", path, fake="", wait=False)
        self.assertEqual(service.process.wait(30), 1)
        service.wait_log("needs 16 to", timeout=5)


def wait_groups(service, count):
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        stats = service.inference.GetStats(pb.GetStatsRequest(), timeout=10)
        if [group.state for group in stats.groups].count("ready") == count:
            return
        time.sleep(0.02)
    raise AssertionError(f"not {count} groups:\n{service.log}")


def resumed_count(service):
    return service.inference.GetStats(pb.GetStatsRequest(), timeout=10).requests_resumed


if __name__ == "__main__":
    unittest.main()
