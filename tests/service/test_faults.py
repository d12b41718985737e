"""What goes wrong behind the service: workers that misbehave, die or hang, and ends of every kind."""
import os
import signal
import threading
import time
import unittest

from harness import *  # noqa: F403

SEED = pb.SamplingParameters(seed=7)


def expected_ids(seed=7):
    with Service(fake="") as service:
        return Answer(service.inference.Generate(raw(sampling=pb.SamplingParameters(seed=seed)), timeout=20)).ids


class Loading(unittest.TestCase):
    def test_early_calls_wait(self):
        with Service(fake="slow-load=1500", wait=False) as service:
            service.connect_early()
            self.assertEqual(service.serving(), 2)
            info = service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
            self.assertFalse(info.ready)
            self.assertEqual(failure(service.inference.Generate(raw(), timeout=0.2))[0], "DEADLINE_EXCEEDED")
            watch = service.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
            self.assertEqual(next(watch).status, 2)
            answer = Answer(service.inference.Generate(raw(progress=True), timeout=30))
            self.assertEqual(next(watch).status, 1)
            watch.cancel()
            shares = [done for stage, done, _ in answer.progress if stage == pb.STAGE_LOADING]
            self.assertGreater(len(shares), 2)
            self.assertEqual(shares, sorted(shares))
            self.assertEqual(len(answer.ids), 20)
            service.wait_ready()

    def fails(self, fake, *words, arguments=()):
        service = Service(*arguments, fake=fake, wait=False)
        self.assertEqual(service.process.wait(60), 1)
        for word in words:
            service.wait_log(word, timeout=5)

    def test_failed_load(self):
        self.fails("fail", "DATA: tensor 17 is made of cheese")

    def test_worker_leaves(self):
        self.fails("exit", "exit status 3")

    def test_wrong_token(self):
        self.fails("wrong-token", "the group token is not the one expected")

    def test_no_worker(self):
        self.fails("", "the worker program /nonexistent", arguments=["--worker-program", "/nonexistent"])

    def test_no_executable(self):
        path = flag_path()
        with open(path, "w") as file:
            file.write("not a program")
        os.chmod(path, 0o755)
        self.fails("", "cannot execute", arguments=["--worker-program", path])

    def test_stop_while_loading(self):
        service = Service(fake="slow-load=60000", wait=False)
        service.connect_early()
        service.stop()

    def test_stop_without_attachment(self):
        service = Service(fake="no-attach", wait=False)
        service.wait_log("starts (process")
        service.stop()


class Recovery(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.ids = expected_ids()

    def same_answer(self, fake, *arguments):
        with Service(*arguments, fake=fake, environment={"AVL_FAKE_FLAG": flag_path()}) as service:
            answer = Answer(service.inference.Generate(raw(sampling=SEED), timeout=60))
            self.assertEqual(answer.ids, self.ids)
            self.assertEqual(answer.finished.usage.completion_tokens, 20)
            service.wait_serving(1)
            return service.log

    def test_worker_dies(self):
        for at in (0, 1, 13):
            log = self.same_answer(f"die-at={at}")
            self.assertIn("1 request will be resumed", log)
            self.assertIn("killed by signal 9", log)

    def test_worker_hangs(self):
        log = self.same_answer("stuck-at=5", "--worker-timeout", "1")
        self.assertIn("made no progress", log)

    def test_killed_from_outside(self):
        with Service(fake="", environment={"AVL_FAKE_STEP_MS": "20"}) as service:
            answers = [None] * 8

            def ask(index):
                stream = service.inference.Generate(raw(sampling=pb.SamplingParameters(seed=index)), timeout=60)
                answers[index] = Answer(stream)
            threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            for pid in service.workers():
                os.kill(pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
            again = [Answer(service.inference.Generate(raw(sampling=pb.SamplingParameters(seed=index)), timeout=60))
                     for index in range(8)]
            self.assertEqual([a.ids for a in answers], [a.ids for a in again])
            self.assertEqual([a.text for a in answers], [a.text for a in again])

    def test_stopped_from_outside(self):
        with Service("--worker-timeout", "1", fake="", environment={"AVL_FAKE_STEP_MS": "20"}) as service:
            stream = service.inference.Generate(raw(sampling=SEED), timeout=60)
            events = [next(stream)]
            for pid in service.workers():
                os.kill(pid, signal.SIGSTOP)
            answer = Answer(events + list(stream))
            self.assertEqual(answer.ids, self.ids)

    def test_poison(self):
        with Service(fake="poison", environment={"AVL_FAKE_STEP_MS": "10"}) as service:
            results = {}

            def ask(seed):
                try:
                    results[seed] = Answer(service.inference.Generate(
                        raw(sampling=pb.SamplingParameters(seed=seed)), timeout=60)).ids
                except grpc.RpcError as error:
                    results[seed] = error.code().name, error.details()
            threads = [threading.Thread(target=ask, args=(seed,)) for seed in (7, 666, 8, 9)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(results[666][0], "INTERNAL")
            self.assertIn("died three times", results[666][1])
            self.assertEqual(results[7], self.ids)
            self.assertEqual((len(results[8]), len(results[9])), (20, 20))

    def test_restarts_fail(self):
        directory = os.path.dirname(flag_path())
        program = os.path.join(directory, "worker")
        with open(program, "w") as file:  # runs the fake once, then fails
            file.write(f'#!/bin/sh\n[ -e "{directory}/ran" ] && exit 9\ntouch "{directory}/ran"\nexec {FAKE} "$@"\n')
        os.chmod(program, 0o755)
        with Service("--worker-program", program, fake="die-at=3",
                     environment={"AVL_FAKE_FLAG": os.path.join(directory, "flag")}) as service:
            code, text = failure(service.inference.Generate(raw(), timeout=60))
            self.assertEqual(code, "UNAVAILABLE", text)
            self.assertIn("exit status 9", text)
            self.assertEqual(service.serving(), 2)
            code, text = failure(service.inference.Generate(raw(), timeout=60))
            self.assertEqual(code, "UNAVAILABLE", text)


class Misbehaviour(unittest.TestCase):
    def test_unknown_requests(self):
        with Service(fake="unknown") as service:
            self.assertEqual(len(Answer(service.inference.Generate(raw(), timeout=20)).ids), 20)

    def test_bad_token(self):
        with Service(fake="bad-token") as service:
            code, text = failure(service.inference.Generate(raw(), timeout=20))
            self.assertEqual((code, "token 1073741824" in text), ("INTERNAL", True), text)

    def test_too_many(self):
        with Service(fake="too-many") as service:
            code, text = failure(service.inference.Generate(raw(max_tokens=4), timeout=20))
            self.assertEqual((code, "more tokens" in text), ("INTERNAL", True), text)
            code, text = failure(service.inference.Generate(raw(max_tokens=2), timeout=20))
            self.assertEqual(code, "INTERNAL")

    def test_strangers_at_the_link(self):
        import worker_pb2
        import worker_pb2_grpc
        with Service(fake="") as service:
            link = link_of(service)
            self.assertEqual(os.stat(os.path.dirname(link)).st_mode & 0o777, 0o700)
            channel = grpc.insecure_channel("unix:" + link)
            attach = worker_pb2_grpc.WorkerLinkStub(channel).Attach
            message = worker_pb2.WorkerMessage
            for first in (message(hello=worker_pb2.Hello(version="0.0.0", group_token="x")),
                          message(hello=worker_pb2.Hello(version="0.1.0", group_token="x")),
                          message(ready=worker_pb2.Ready()), message()):
                code, text = failure(attach(iter([first]), timeout=10))
                self.assertIn(code, ("PERMISSION_DENIED", "INVALID_ARGUMENT"), text)
            channel.close()
            Answer(service.inference.Generate(raw(), timeout=20))


class Limits(unittest.TestCase):
    def test_queue_max(self):
        with Service("--queue-max", "2", fake="", environment={"AVL_FAKE_STEP_MS": "100"}) as service:
            streams = [service.inference.Generate(raw(), timeout=30) for _ in range(2)]
            for stream in streams:
                next(stream)
            code, text = failure(service.inference.Generate(raw(), timeout=30))
            self.assertEqual((code, "2 requests" in text), ("RESOURCE_EXHAUSTED", True), text)
            for stream in streams:
                stream.cancel()
            limit = time.monotonic() + 20
            while time.monotonic() < limit:
                try:
                    next(service.inference.Generate(raw(), timeout=30))
                    break
                except grpc.RpcError:
                    time.sleep(0.02)
            else:
                self.fail("the places are not free again")

    def test_request_timeout(self):
        with Service("--request-timeout", "0.5", fake="", environment={"AVL_FAKE_STEP_MS": "100"}) as service:
            code, text = failure(service.inference.Generate(raw()))
            self.assertEqual((code, "deadline passed" in text), ("DEADLINE_EXCEEDED", True), text)

    def test_waiting_without_group(self):
        with Service("--request-timeout", "0.5", fake="slow-load=3000", wait=False) as service:
            service.connect_early()
            code, _ = failure(service.inference.Generate(raw()))
            self.assertEqual(code, "DEADLINE_EXCEEDED")
            service.wait_ready()


class Ends(unittest.TestCase):
    def test_drain_finishes_streams(self):
        service = Service(fake="", environment={"AVL_FAKE_STEP_MS": "30"})
        streams = [service.inference.Generate(raw(), timeout=60) for _ in range(4)]
        first = [next(stream) for stream in streams]
        watch = service.health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        self.assertEqual(next(watch).status, 1)
        service.process.send_signal(signal.SIGTERM)
        self.assertEqual(next(watch).status, 2)
        self.assertEqual(failure(service.inference.Generate(raw(), timeout=20))[0], "UNAVAILABLE")
        for stream, event in zip(streams, first):
            self.assertEqual(len(Answer([event] + list(stream)).ids), 20)
        self.assertEqual(self.end_of(watch), "UNAVAILABLE")
        service.stop()

    def end_of(self, call):
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    def test_drain_timeout(self):
        service = Service("--drain-timeout", "0.5", fake="", environment={"AVL_FAKE_STEP_MS": "1000"})
        stream = service.inference.Generate(raw(), timeout=60)
        next(stream)
        service.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.end_of(stream), "UNAVAILABLE")
        service.stop()

    def test_second_signal(self):
        service = Service(fake="", environment={"AVL_FAKE_STEP_MS": "1000"})
        stream = service.inference.Generate(raw(), timeout=60)
        next(stream)
        service.process.send_signal(signal.SIGTERM)
        service.wait_log("draining")
        time.sleep(0.5)
        service.process.send_signal(signal.SIGINT)
        self.assertIn(self.end_of(stream), ("UNAVAILABLE", "CANCELLED"))
        service.stop()

    def test_coordinator_killed(self):
        for fake in ("", "no-attach", "slow-load=60000"):
            service = Service(fake=fake, wait=False)
            service.wait_log("starts (process")
            if fake == "":
                service.wait_ready()
            workers = service.workers()
            self.assertEqual(len(workers), 1)
            link = link_of(service)
            service.process.kill()
            service.process.wait()
            wait_gone(workers)
            self.assertTrue(os.path.exists(os.path.dirname(link)))
            with Service(fake=""):  # clears away what only a killed one leaves
                self.assertFalse(os.path.exists(os.path.dirname(link)))

    def test_restart_on_the_same_address(self):
        service = Service(fake="", environment={"AVL_FAKE_STEP_MS": "100"})
        address, workers = service.address, service.workers()
        streams = [service.inference.Generate(raw(), timeout=60) for _ in range(4)]
        for stream in streams:
            next(stream)
        service.process.kill()
        for stream in streams:
            self.assertEqual(self.end_of(stream), "UNAVAILABLE")
        service.process.wait()
        with Service(fake="", listen=address) as again:
            self.assertEqual(again.address, address)
            self.assertEqual(len(Answer(again.inference.Generate(raw(), timeout=20)).ids), 20)
            wait_gone(workers)
        service.channel.close()

    def test_nothing_stays_behind(self):
        with Service(fake="") as service:
            Answer(service.inference.Generate(raw(), timeout=20))
            directory = os.path.dirname(link_of(service))
            self.assertTrue(os.path.isdir(directory))
        self.assertFalse(os.path.exists(directory))


def link_of(service):
    """Path of the socket that workers call."""
    with open(f"/proc/{min(service.workers())}/cmdline") as file:
        return file.read().split("\0")[2][len("unix:"):]


if __name__ == "__main__":
    unittest.main()
