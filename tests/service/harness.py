"""Starts avl-coordinator as a user would and talks to it over gRPC."""
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time

BINARIES = os.environ["AVL_BINARY_DIR"]
SOURCES = os.environ["AVL_SOURCE_DIR"]
sys.path.insert(0, os.environ["AVL_STUBS"])

import grpc  # noqa: E402
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
import inference_pb2 as pb  # noqa: E402
import inference_pb2_grpc  # noqa: E402

MODEL = os.path.join(SOURCES, "models", "avl-tiny")
FAKE = os.path.join(BINARIES, "tests", "avl_fake_worker")
PICTURE = open(os.path.join(SOURCES, "models", "cases", "00", "image.png"), "rb").read()


class Service:
    """One coordinator and its workers; `log` holds what they wrote to standard error."""

    def __init__(self, *arguments, fake=None, wait=True, model=MODEL, environment=None, timeout=120,
                 listen="127.0.0.1:0"):
        command = [os.path.join(BINARIES, "bin", "avl-coordinator"), "--model", model, "--listen", listen,
                   "--preprocess-threads", "2"]
        if fake is not None:
            command += ["--worker-program", FAKE]
        command += list(arguments)
        variables = dict(os.environ)
        variables["AVL_FAKE"] = fake or ""
        variables.update(environment or {})
        self.process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        self.log_lines = []
        self.log_changed = threading.Condition()
        self.lines = queue.Queue()
        self.log_reader = threading.Thread(target=self._read_log, daemon=True)
        self.log_reader.start()
        threading.Thread(target=self._read_output, daemon=True).start()
        self.channel = None
        self.address = None
        if wait:
            self.wait_ready(timeout)

    def _read_log(self):
        for line in self.process.stderr:
            with self.log_changed:
                self.log_lines.append(line.rstrip("\n"))
                self.log_changed.notify_all()
        self.process.stderr.close()

    def _read_output(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)
        self.process.stdout.close()

    @property
    def log(self):
        with self.log_changed:
            return "\n".join(self.log_lines)

    def wait_log(self, text, timeout=60):
        """The rest of the first line that has `text`, after it."""
        limit = time.monotonic() + timeout
        with self.log_changed:
            while True:
                for line in self.log_lines:
                    if text in line:
                        return line.split(text, 1)[1]
                left = limit - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"no {text!r} in the log:\n" + "\n".join(self.log_lines))
                self.log_changed.wait(left)

    def wait_ready(self, timeout=120):
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.process.kill()
            raise AssertionError("not ready in time:\n" + self.log)
        if line is None or not line.startswith("ready "):
            self.process.wait(10)
            self.log_reader.join(10)
            raise AssertionError(f"expected `ready`, got {line!r}:\n{self.log}")
        self.connect(line.split(" ", 1)[1])

    def connect(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1),
                                                               ("grpc.enable_http_proxy", 0)])
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def connect_early(self):
        """Before the model has loaded: the address is in the log."""
        self.connect(self.wait_log("listening on ").split(";")[0])

    def serving(self, service=""):
        return self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status

    def wait_serving(self, status, timeout=60):
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            if self.serving() == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"health is not {status}:\n{self.log}")

    def workers(self):
        """Process ids of the children, and of theirs."""
        found, parents = set(), {self.process.pid}
        while parents:
            children = set()
            for name in os.listdir("/proc"):
                if not name.isdigit():
                    continue
                try:
                    with open(f"/proc/{name}/stat") as file:
                        if int(file.read().rsplit(")", 1)[1].split()[1]) in parents:
                            children.add(int(name))
                except (OSError, IndexError):
                    pass
            found |= children
            parents = children
        return found

    def stop(self, expected=0, timeout=60):
        """SIGTERM; nobody may be left behind."""
        workers = self.workers()
        if self.channel is not None:
            self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("it does not stop:\n" + self.log)
        self.log_reader.join(10)
        assert code == expected, f"exit status {code}:\n{self.log}"
        assert "Sanitizer" not in self.log, self.log
        wait_gone(workers)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.stop()
        else:
            print("\n".join(self.log.splitlines()[-200:]), file=sys.stderr)
            self.process.kill()
            self.process.wait()


def wait_gone(pids, timeout=30):
    limit = time.monotonic() + timeout
    left = set(pids)
    while left and time.monotonic() < limit:
        left = {pid for pid in left if running(pid)}
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def raw(text="Hello", images=(), **fields):
    return pb.GenerateRequest(raw_prompt=pb.RawPrompt(text=text, images=[pb.Image(data=i) for i in images]),
                              **fields)


def talk(*parts, role=pb.ROLE_USER, **fields):
    content = [pb.ContentPart(text=p) if isinstance(p, str) else pb.ContentPart(image=pb.Image(data=p))
               for p in parts]
    return pb.GenerateRequest(conversation=pb.Conversation(messages=[pb.Message(role=role, content=content)]),
                              **fields)


class Answer:
    """A stream read to its end."""

    def __init__(self, events):
        self.text, self.ids, self.progress, self.finished = "", [], [], None
        for event in events:
            assert self.finished is None, "something follows `finished`"
            self.add(event)

    def add(self, event):
        kind = event.WhichOneof("event")
        if kind == "progress":
            self.progress.append((event.progress.stage, event.progress.done, event.progress.total))
        elif kind == "delta":
            self.text += event.delta.text
            self.ids += event.delta.token_ids
        else:
            self.finished = event.finished


def failure(call):
    """Status name and text of a call that must fail."""
    try:
        Answer(call) if hasattr(call, "__iter__") else call()
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call succeeded")


def flag_path():
    directory = tempfile.mkdtemp(prefix="avl-test-")
    return os.path.join(directory, "flag")
