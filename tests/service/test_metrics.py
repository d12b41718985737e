"""What watchers read: /metrics, /healthz, /readyz, avl top and the log, from a service under load and under hostile clients."""
import collections
import fcntl
import json
import pty
import re
import socket
import struct
import termios
import threading
import unittest
import urllib.error
import urllib.request

from harness import *  # noqa: F403
from test_requests import png
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Watched(Service):
    def __init__(self, *arguments, **options):
        wait = options.pop("wait", True)
        super().__init__("--metrics-listen", "127.0.0.1:0", *arguments, wait=False, **options)
        self.http = self.wait_log("metrics on http://").split("/")[0]
        if wait:
            self.wait_ready()

    def get(self, path, timeout=10, **headers):
        request = urllib.request.Request(f"http://{self.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def metrics(self):
        """Samples by name and labels; the text is checked on the way."""
        _, _, text = self.get("/metrics")
        check_names(text)
        samples = {}
        for family in parse_text(text):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in samples, f"twice: {key}"
                samples[key] = sample.value
        check_histograms(samples)
        return samples


def check_names(text):
    """Every family has a head of its own, once, before its samples, and all samples lie together."""
    seen, family = set(), None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in seen, f"{family} comes twice"
            seen.add(family)
        elif line.startswith("# TYPE "):
            assert line.split()[2] == family, line
        else:
            name = line.split("{")[0].split()[0]
            assert name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") == family or \
                name == family, f"{name} under {family}"


def check_histograms(samples):
    buckets = collections.defaultdict(list)
    for (name, labels), value in samples.items():
        if name.endswith("_bucket"):
            bound = float(dict(labels)["le"])
            rest = tuple(pair for pair in labels if pair[0] != "le")
            buckets[name.removesuffix("_bucket"), rest].append((bound, value))
    assert buckets
    for (name, labels), pairs in buckets.items():
        counts = [count for _, count in sorted(pairs)]
        assert counts == sorted(counts), f"{name}: {counts}"
        assert counts[-1] == samples[name + "_count", labels], name


def total(samples, name, **labels):
    return sum(value for (sample, has), value in samples.items()
               if sample == name and set(labels.items()) <= set(has))


class Formats(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Watched(fake="")

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def test_text(self):
        status, headers, _ = self.service.get("/metrics")
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
        samples = self.service.metrics()
        for name in ("avl_requests_running", "avl_requests_waiting", "avl_preprocess_queue_capacity",
                     "process_resident_memory_bytes", "process_cpu_seconds_total"):
            self.assertIn((name, ()), samples)
        self.assertEqual(total(samples, "avl_build_info", model_name="avl-tiny"), 1)
        self.assertEqual(total(samples, "avl_worker_group_ready", group="0"), 1)

    def test_openmetrics(self):
        Answer(self.service.inference.Generate(raw(), timeout=30))
        status, headers, text = self.service.get("/metrics", Accept=OPENMETRICS)
        self.assertEqual(status, 200)
        self.assertEqual(headers["Content-Type"], "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.assertTrue(text.endswith("# EOF\n"))
        families = {family.name: family for family in parse_openmetrics(text)}  # a strict parser
        self.assertEqual(families["avl_generation_tokens"].type, "counter")
        self.assertEqual(families["avl_time_to_first_token_seconds"].type, "histogram")

    def test_paths(self):
        self.assertEqual(self.service.get("/healthz")[0], 200)
        self.assertEqual(self.service.get("/readyz")[0], 200)
        for path in ("/", "/metrics/", "/../etc/passwd", "/%2e%2e/etc/passwd", "/metrics%00", "//metrics"):
            self.assertEqual(self.service.get(path)[0], 404, path)
        self.assertEqual(self.service.get("/metrics?x=1")[0], 200)


class Counts(unittest.TestCase):
    """Counters agree with what clients saw."""

    def load(self, service, requests, cancels):
        seen = collections.Counter()
        lock = threading.Lock()

        def ask(index):
            tokens = 5 + index % 7 if index >= cancels else 500  # a cancelled one would last
            request = talk(PICTURE, "What?", sampling=pb.SamplingParameters(seed=index), ignore_eos=True,
                           max_tokens=tokens, request_id=f"r{index}")
            call = service.inference.Generate(request, timeout=60)
            if index < cancels:
                next(call)
                call.cancel()
                with lock:
                    seen["cancelled"] += 1
                return
            answer = Answer(call)
            with lock:
                seen["answered"] += 1
                seen["prompt"] += answer.finished.usage.prompt_tokens
                seen["tokens"] += len(answer.ids)
                seen["first"] += 1
                seen["between"] += len(answer.ids) - 1
                seen["in"] += answer.finished.attention.visual_rows_seen
                seen["stored"] += answer.finished.attention.visual_rows_stored
                seen["bytes"] += answer.finished.attention.kv_bytes_returned
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(requests)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            samples = service.metrics()  # parses at any moment
            self.assertLessEqual(total(samples, "avl_requests_running") + total(samples, "avl_requests_waiting"),
                                 requests)
        for thread in threads:
            thread.join()
        return seen

    def wait_idle(self, service, unknown_calls=0):
        """A call counts as handled a moment after its client has the status; unknown ones are only counted then."""
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            samples = service.metrics()
            if total(samples, "avl_requests_running") + total(samples, "avl_requests_waiting") == 0 and \
                    total(samples, "grpc_server_started_total") == total(samples, "grpc_server_handled_total") and \
                    total(samples, "grpc_server_handled_total", grpc_service="unknown") >= unknown_calls:
                return samples
            time.sleep(0.05)
        raise AssertionError("requests or calls are left")

    def agree(self, service, requests, cancels):
        seen = self.load(service, requests, cancels)
        self.assertEqual(seen["answered"], requests - cancels)
        failure(service.inference.Generate(raw(""), timeout=10))
        failure(service.channel.unary_unary("/no.such/Method")(b"", timeout=10) for _ in (0,))
        samples = self.wait_idle(service, unknown_calls=1)
        answered = seen["answered"]
        self.assertEqual(total(samples, "avl_request_success_total"), answered)
        self.assertEqual(total(samples, "avl_request_success_total", finished_reason="length"), answered)
        self.assertEqual(total(samples, "avl_request_failure_total", code="CANCELLED"), cancels)
        self.assertEqual(total(samples, "avl_request_failure_total", code="INVALID_ARGUMENT"), 1)
        self.assertEqual(total(samples, "avl_prompt_tokens_total"), seen["prompt"])
        self.assertGreaterEqual(total(samples, "avl_generation_tokens_total"), seen["tokens"] + cancels)
        self.assertEqual(total(samples, "avl_request_generation_tokens_sum"), seen["tokens"])
        self.assertEqual(total(samples, "avl_time_to_first_token_seconds_count"), answered + cancels)
        self.assertEqual(total(samples, "avl_time_to_first_token_seconds_count")
                         + total(samples, "avl_inter_token_latency_seconds_count"),
                         total(samples, "avl_generation_tokens_total"))
        for stage in ("queue", "preprocess", "encode", "prefill", "decode"):
            self.assertEqual(total(samples, f"avl_request_{stage}_time_seconds_count"), answered, stage)
        self.assertEqual(total(samples, "avl_e2e_request_latency_seconds_count"), answered)
        self.assertGreaterEqual(total(samples, "avl_e2e_request_latency_seconds_sum"),
                                total(samples, "avl_request_prefill_time_seconds_sum"))
        self.assertEqual(total(samples, "avl_visual_tokens_total", state="in"), seen["in"])
        self.assertEqual(total(samples, "avl_visual_tokens_total", state="stored"), seen["stored"])
        self.assertEqual(total(samples, "avl_kv_bytes_returned_total"), seen["bytes"])
        generate = {"grpc_service": "avl.v1.Inference", "grpc_method": "Generate"}
        self.assertEqual(total(samples, "grpc_server_handled_total", grpc_code="OK", **generate), answered)
        self.assertEqual(total(samples, "grpc_server_handled_total", grpc_code="CANCELLED", **generate), cancels)
        self.assertEqual(total(samples, "grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", **generate), 1)
        self.assertEqual(total(samples, "grpc_server_handled_total", grpc_code="UNIMPLEMENTED",
                               grpc_service="unknown"), 1)
        self.assertEqual(total(samples, "avl_preprocess_jobs_total", result="completed"), requests + 1)

    def test_fake_workers(self):
        with Watched(fake="", environment={"AVL_FAKE_STEP_MS": "10", "AVL_FAKE_TOKENS": "500"}) as service:
            self.agree(service, 40, 8)

    def test_model(self):
        with Watched() as service:
            self.agree(service, 12, 3)
            samples = service.metrics()
            self.assertGreater(total(samples, "avl_visual_tokens_total", state="in"),
                               total(samples, "avl_visual_tokens_total", state="stored"))
            self.assertGreater(total(samples, "avl_kv_cache_pages", state="total"), 0)
            self.assertGreater(total(samples, "avl_rank_memory_bytes", rank="0", part="KV pages"), 0)

    def test_ranks(self):
        """What ranks tell of their collectives; and whose lines are whose."""
        with Watched("--tp", "2", "--log-json") as service:
            for index in range(3):
                Answer(service.inference.Generate(talk(PICTURE, "?", max_tokens=8, ignore_eos=True), timeout=60))
            limit = time.monotonic() + 20
            while total(service.metrics(), "avl_group_steps_total") < 24 and time.monotonic() < limit:
                time.sleep(0.1)
            samples = service.metrics()
            for rank in ("0", "1"):
                reduced = {"rank": rank, "operation": "all_reduce"}
                self.assertGreater(total(samples, "avl_collective_calls_total", **reduced), 24)
                self.assertGreater(total(samples, "avl_collective_seconds_total", **reduced), 0)
                self.assertGreater(total(samples, "avl_rank_memory_bytes", rank=rank), 0)
            self.assertEqual(len(service.inference.GetStats(pb.GetStatsRequest(), timeout=10)
                                 .groups[0].collective_seconds), 2)
            lines = [json.loads(line) for line in service.log.splitlines()]
            workers = [line for line in lines if line["program"] == "worker"]
            self.assertTrue(workers)
            self.assertEqual({(line["group"], line["rank"]) for line in workers}, {(1, 0)})

    def test_deadline_and_refusal(self):
        with Watched("--queue-max", "2", fake="", environment={"AVL_FAKE_STEP_MS": "50"}) as service:
            held = [service.inference.Generate(raw(), timeout=30) for _ in range(2)]
            for call in held:
                next(call)
            self.assertEqual(total(service.metrics(), "avl_requests_running"), 2)
            self.assertEqual(failure(service.inference.Generate(raw(), timeout=5))[0], "RESOURCE_EXHAUSTED")
            for call in held:
                call.cancel()
            self.wait_idle(service)
            self.assertEqual(failure(service.inference.Generate(raw(), timeout=0.3))[0], "DEADLINE_EXCEEDED")
            samples = self.wait_idle(service)
            for code, count in (("RESOURCE_EXHAUSTED", 1), ("CANCELLED", 2), ("DEADLINE_EXCEEDED", 1)):
                self.assertEqual(total(samples, "avl_request_failure_total", code=code), count, code)
                self.assertEqual(total(samples, "grpc_server_handled_total", grpc_code=code), count, code)

    def test_preprocessing_bound(self):
        """A full preprocessing queue refuses at once, and says so in its metrics; RPC threads stay free."""
        with Watched("--preprocess-threads", "1", "--preprocess-queue", "2", fake="") as service:
            large = png(4000, 4000)  # long to decode
            codes = collections.Counter()
            lock = threading.Lock()

            def ask():
                try:
                    Answer(service.inference.Generate(talk(large, "?"), timeout=60))
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                with lock:
                    codes[code] += 1
            threads = [threading.Thread(target=ask) for _ in range(24)]
            for thread in threads:
                thread.start()
            self.assertEqual(service.serving(), 1)
            for thread in threads:
                thread.join()
            samples = self.wait_idle(service)
            self.assertLessEqual(set(codes), {"OK", "RESOURCE_EXHAUSTED"})
            self.assertGreater(codes["OK"], 0)
            self.assertGreater(codes["RESOURCE_EXHAUSTED"], 0)
            self.assertEqual(total(samples, "avl_preprocess_queue_capacity"), 2)
            self.assertEqual(total(samples, "avl_preprocess_threads"), 1)
            for result, count in (("refused", codes["RESOURCE_EXHAUSTED"]), ("completed", codes["OK"])):
                self.assertEqual(total(samples, "avl_preprocess_jobs_total", result=result), count, result)

    def test_resumption(self):
        with Watched(fake="die-at=7", environment={"AVL_FAKE_FLAG": flag_path()}) as service:
            self.assertEqual(len(Answer(service.inference.Generate(raw(), timeout=60)).ids), 20)
            samples = self.wait_idle(service)
            self.assertEqual(total(samples, "avl_requests_resumed_total"), 1)
            self.assertEqual(total(samples, "avl_worker_group_restarts_total"), 1)
            self.assertEqual(total(samples, "avl_generation_tokens_total"), 20)
            self.assertEqual(total(samples, "avl_time_to_first_token_seconds_count"), 1)
            self.assertIn("request has lost its group and waits for another  request=1", service.log)
            self.assertIn("resumed=1", service.log)


class Readiness(unittest.TestCase):
    def test_life(self):
        with Watched(fake="slow-load=700", wait=False, environment={"AVL_FAKE_STEP_MS": "100"}) as service:
            status, _, text = service.get("/readyz")
            self.assertEqual(status, 503, text)
            self.assertEqual(service.get("/healthz")[0], 200)
            self.assertEqual(total(service.metrics(), "avl_ready"), 0)
            service.wait_ready()
            self.assertEqual(service.get("/readyz")[0], 200)
            self.assertEqual(total(service.metrics(), "avl_ready"), 1)
            call = service.inference.Generate(raw(), timeout=60)
            next(call)
            service.process.send_signal(signal.SIGTERM)
            service.wait_log("draining")
            status, _, text = service.get("/readyz")
            self.assertEqual((status, text), (503, "draining\n"))
            self.assertEqual(service.get("/healthz")[0], 200)
            Answer(call)
            self.assertEqual(service.process.wait(30), 0)

    def test_addresses(self):
        for address, text in (("nowhere", "HOST:PORT"), ("127.0.0.1:x", "HOST:PORT"), ("127.0.0.1:70000", "HOST:PORT"),
                              ("no.such.host.invalid:1", "no.such.host")):
            with self.assertRaisesRegex(AssertionError, text):
                Service("--metrics-listen", address, fake="")
        with Watched(fake="") as service:
            with self.assertRaisesRegex(AssertionError, "Address already in use"):
                Service("--metrics-listen", service.http, fake="")


class Hostile(unittest.TestCase):
    """Whatever comes to the HTTP port, gRPC serves on, and the port itself comes back."""

    def setUp(self):
        self.service = Watched(fake="", environment={"AVL_FAKE_STEP_MS": "1"})
        self.held = []

    def tearDown(self):
        for peer in self.held:
            peer.close()
        answer = Answer(self.service.inference.Generate(raw(), timeout=30))
        self.assertEqual(len(answer.ids), 20)
        limit = time.monotonic() + 30
        while True:
            try:
                self.assertEqual(self.service.get("/healthz", timeout=5)[0], 200)
                break
            except OSError:
                if time.monotonic() > limit:
                    raise
        self.service.stop()

    def connect(self):
        host, port = self.service.http.rsplit(":", 1)
        peer = socket.create_connection((host, int(port)), timeout=20)
        self.held.append(peer)
        return peer

    def send(self, data):
        peer = self.connect()
        try:
            peer.sendall(data)
            return peer.recv(65536)
        except OSError:
            return b""

    def test_garbage(self):
        for data in (b"\0" * 1000 + b"\r\n\r\n", os.urandom(3000) + b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n",
                     b"GET /metrics HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\n\r\n",  # no Host
                     b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                     b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"):
            self.send(data)
        answer = self.send(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc")
        self.assertIn(b" 405 ", answer.split(b"\r\n")[0])
        self.assertIn(b"Allow: GET, HEAD", answer)

    def test_large_headers(self):
        answer = self.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000000 + b"\r\n\r\n")
        self.assertNotIn(b" 200 ", answer.split(b"\r\n")[0])
        answer = self.send(b"GET /" + b"y" * 1000000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertNotIn(b" 200 ", answer.split(b"\r\n")[0])

    def test_slow_loris(self):
        """More connections than are served drip headers; they are cut off, however long they go on."""
        peers = [self.connect() for _ in range(80)]
        limit = time.monotonic() + 25
        for peer in peers:
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        cut = 0
        while time.monotonic() < limit and cut < 64:
            Answer(self.service.inference.Generate(raw(), timeout=10))
            cut = 0
            for peer in peers:
                try:
                    peer.sendall(b"X: y\r\n")
                except OSError:
                    cut += 1
            time.sleep(0.5)
        self.assertGreaterEqual(cut, 64)

    def test_nobody_reads(self):
        """Clients that ask and do not read the answer."""
        for _ in range(64):
            self.connect().sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        Answer(self.service.inference.Generate(raw(), timeout=10))


class Logs(unittest.TestCase):
    def test_json(self):
        hostile = "a \"quoted\" \x1b[31m\u00e4"
        with Watched("--log-json", "--tp", "1") as service:
            Answer(service.inference.Generate(talk(PICTURE, "?", request_id=hostile, max_tokens=4), timeout=60))
            failure(service.inference.Generate(raw("", request_id="bad"), timeout=10))
            call = service.inference.Generate(talk(PICTURE, "?", request_id="gone", ignore_eos=True), timeout=60)
            next(call)
            call.cancel()
            service.wait_log("cancelled by its client")
            lines = [json.loads(line) for line in service.log.splitlines()]  # each one is an object
        for line in lines:
            self.assertLessEqual({"time", "level", "program", "message"}, set(line))
        ends = {line["request"]: line for line in lines if "code" in line}
        self.assertEqual(sorted(ends), [1, 2, 3])
        answered, refused, cancelled = ends[1], ends[2], ends[3]
        self.assertEqual((answered["name"], answered["code"]), (hostile, "OK"))
        stages = ["queue", "preprocess", "encode", "prefill", "decode"]
        self.assertGreaterEqual(answered["total_seconds"] + 0.01, sum(answered[s + "_seconds"] for s in stages))
        self.assertGreaterEqual(answered["visual_tokens"], answered["visual_stored"])
        self.assertEqual((refused["name"], refused["code"]), ("bad", "INVALID_ARGUMENT"))
        self.assertEqual((cancelled["name"], cancelled["code"]), ("gone", "CANCELLED"))


class Documents(unittest.TestCase):
    """The manual names every metric there is, and dashboard and alerts ask for none that there is not."""

    def test_names(self):
        with Watched("--tp", "2") as service:
            Answer(service.inference.Generate(talk(PICTURE, "?", max_tokens=4), timeout=60))
            limit = time.monotonic() + 20
            while total(service.metrics(), "avl_group_steps_total") == 0 and time.monotonic() < limit:
                time.sleep(0.1)
            failure(service.inference.Generate(raw(""), timeout=10))
            _, _, text = service.get("/metrics")
        families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
        with open(os.path.join(SOURCES, "docs", "OPERATIONS.md")) as file:
            manual = file.read()
        for family in families:
            if not family.startswith(("process_", "avl_prefix_cache_")):
                self.assertIn(f"`{family}`", manual)
        for name in ("grafana.json", "alerts.yaml"):
            with open(os.path.join(SOURCES, "deploy", "dashboards", name)) as file:
                asked = set(re.findall(r"\b(?:avl|grpc|process)_[a-z0-9_]+", file.read()))
            asked = {re.sub("_(bucket|sum|count)$", "", metric) for metric in asked} - {"grpc_method", "grpc_code"}
            self.assertLessEqual(asked, families, name)
        with open(os.path.join(SOURCES, "deploy", "dashboards", "grafana.json")) as file:
            self.assertGreater(len(json.load(file)["panels"]), 10)


class Top(unittest.TestCase):
    """avl top, as a script and as a person run it."""

    program = os.path.join(BINARIES, "bin", "avl")

    def test_once(self):
        with Service(fake="", environment={"AVL_FAKE_STEP_MS": "10"}) as service:
            stats = service.inference.GetStats(pb.GetStatsRequest(), timeout=10)
            self.assertEqual((stats.model, stats.ready, len(stats.groups)), ("avl-tiny", True, 1))
            streams = [service.inference.Generate(raw(max_tokens=2000), timeout=60) for _ in range(3)]
            threads = [threading.Thread(target=Answer, args=(stream,)) for stream in streams]
            for thread in threads:
                thread.start()
            result = subprocess.run([self.program, "top", "--once", "--interval", "0.5", "-s", service.address],
                                    capture_output=True, text=True, timeout=30)
            for thread in threads:
                thread.join()
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("avl-tiny at " + service.address, result.stdout)
            self.assertIn("group 0    ready   1 rank, fake, f32", result.stdout)
            self.assertNotIn("\033", result.stdout)
            self.assertRegex(result.stdout, r"answered \d+ \(")
            stats = service.inference.GetStats(pb.GetStatsRequest(), timeout=10)
            self.assertGreater(stats.generation_tokens, 0)
            self.assertEqual(sum(stats.first_token_seconds.counts), 3)
            self.assertEqual(len(stats.first_token_seconds.counts), len(stats.first_token_seconds.bounds) + 1)

    def test_nobody_there(self):
        result = subprocess.run([self.program, "top", "--once", "-s", "127.0.0.1:1"], capture_output=True, text=True,
                                timeout=30)
        self.assertEqual(result.returncode, 1)
        self.assertIn("UNAVAILABLE", result.stderr)

    def watch(self, service, leave):
        """A terminal session: reads until the second drawing, leaves by `leave`, returns what was shown."""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
        before = termios.tcgetattr(follower)
        process = subprocess.Popen([self.program, "top", "-i", "0.1", "-s", service.address], stdin=follower,
                                   stdout=follower, stderr=follower, env=dict(os.environ, TERM="xterm"))
        shown = b""
        while shown.count(b"\033[J") < 3:
            shown += os.read(leader, 65536)
        leave(leader, process)
        while b"\033[?1049l" not in shown:
            shown += os.read(leader, 65536)
        self.assertEqual(process.wait(10), 0)
        self.assertEqual(termios.tcgetattr(follower)[3], before[3])  # echo is back
        os.close(leader)
        os.close(follower)
        return shown.decode()

    def test_terminal(self):
        with Service(fake="") as service:
            for leave in (lambda leader, _: os.write(leader, b"q"), lambda _, process: process.terminate()):
                shown = self.watch(service, leave)
                self.assertTrue(shown.startswith("\033[?1049h"), repr(shown[:40]))
                frame = shown.split("\033[H")[2].split("\033[J")[0].split("\033[K\r\n")
                self.assertLessEqual(len(frame), 12)
                self.assertTrue(all(len(line) <= 60 for line in frame), frame)


if __name__ == "__main__":
    unittest.main()
