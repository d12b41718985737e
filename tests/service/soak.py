"""Load and faults from a seed: every answer must be that of an undisturbed run, whatever happens behind the service.

    soak.py --tp 2 --kills 50                          fifty faults under load
    soak.py --tp 3 --kills 50 --faults kill            ranks alone, three in a group
    soak.py --replicas 2 --tp 1 --kills 50             two groups: what one loses the other takes over
    soak.py --faults coordinator --kills 5             the service itself, killed and started again
    soak.py --streams 64 --seconds 600 --kills 0       ten minutes of load
    soak.py --kills 6 --short                          what ctest runs

First every request of a catalog is answered once by a service that nothing disturbs. Then streams draw requests from the
catalog; some are cancelled, some have deadlines, some belong to a client process that is killed. Meanwhile faults are laid,
one at a time, each after the service has recovered from the last: a rank or the launcher killed (kill, launcher), a rank
stopped (stop), the link between the group and the coordinator cut or gone silent (cut, stall), a rank's memory limited to what it has
(memory), the coordinator killed (coordinator: its calls end with UNAVAILABLE and are made again). The link passes through a
proxy of this program's.

Fails when an answer differs from the catalog's (a cancelled one must be a beginning of it), when a call that was neither
cancelled nor late ends with an error, when recovery takes longer than its bound, when memory or files grow, when a page is
not given back, when ranks take more memory than their ledgers say, or when processes stay behind. Environment as for the
other tests of this folder."""
import argparse
import collections
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import zlib

from harness import *  # noqa: F403

CATALOG = 24
LEDGER_REST_MB = 64   # of a rank: libraries' own data, messages on their way
DETECTION_S = 15      # docs/OPERATIONS.md: from the fault to the group's end
RECOVERY_S = 90       # from the fault to the next group's readiness: a bound for slow machines
MEGABYTE = 1 << 20


# ---- requests ----

def picture(rng, width, height):
    """A PNG of smooth colours with some noise, so that pictures differ for the model too."""
    base, slope = [rng.randrange(256) for _ in range(3)], [rng.uniform(-1, 1) for _ in range(3)]
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        for x in range(width):
            for c in range(3):
                rows.append(int(base[c] + slope[c] * (x if c else y) + (x * y * 7) % 13) & 255)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(bytes(rows), 1)) + chunk(b"IEND", b""))


def make_request(rng):
    images = [picture(rng, rng.choice((31, 168, 224, 400)), rng.choice((40, 168, 300)))
              for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    words = ["the", "image", "of", "a", "red", "ring", "and", "blue", "star", "left", "right", "count"]
    text = " ".join(rng.choice(words) for _ in range(rng.randrange(3, 30)))
    attention = pb.AttentionParameters(dense=True)
    if rng.random() < 0.6:
        store = rng.choice((0.3, 0.5, 0.9))
        attention = pb.AttentionParameters(visual_store_ratio=store, visual_compute_ratio=store * rng.choice((0.4, 1)),
                                           visual_update_interval=rng.choice((1, 3, 7)))
    sampling = pb.SamplingParameters(temperature=0)
    if rng.random() < 0.5:
        sampling = pb.SamplingParameters(temperature=rng.choice((0.7, 1.2)), top_p=rng.choice((0.9, 1)),
                                         top_k=rng.choice((0, 40)), seed=rng.randrange(1 << 60))
    return raw("USER: " + "<image>" * len(images) + "\n" + text + " ASSISTANT:", images, attention=attention, sampling=sampling,
               max_tokens=rng.choice((1, 8, 24, 48)), ignore_eos=rng.random() < 0.7)


def catalog_of(seed):
    rng = random.Random(seed)
    return [make_request(rng) for _ in range(CATALOG)]


def stub_of(address):
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1),
                                                      ("grpc.initial_reconnect_backoff_ms", 100),
                                                      ("grpc.max_reconnect_backoff_ms", 500)])
    return channel, inference_pb2_grpc.InferenceStub(channel)


# ---- the proxy between the group and the coordinator ----

class Proxy:
    """Passes bytes between a group's leader and the coordinator; `cut` closes, `stall` keeps silent."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="avl-soak-")
        self.program = os.path.join(self.directory, "worker")
        self.path = os.path.join(self.directory, "proxy")
        self.target = os.path.join(self.directory, "target")
        with open(self.program, "w") as file:
            file.write(f'#!/bin/sh\nshift\necho "${{1#unix:}}" >"{self.target}.$$"\nmv "{self.target}.$$" "{self.target}"\nshift\n'
                       f'exec "{BINARIES}/bin/avl-worker" --coordinator "unix:{self.path}" "$@"\n')
        os.chmod(self.program, 0o755)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.lock = threading.Lock()
        self.pairs = []  # [worker's end, coordinator's end, stalled]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                with open(self.target) as file:
                    far.connect(file.read().strip())
            except OSError:
                near.close()
                continue
            pair = [near, far, False]
            with self.lock:
                self.pairs.append(pair)
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(pair, source, target), daemon=True).start()

    def _pass(self, pair, source, target):
        try:
            while True:
                data = source.recv(1 << 16)
                if not data:
                    break
                while pair[2]:
                    time.sleep(0.05)
                target.sendall(data)
        except OSError:
            pass
        pair[2] = False
        for end in pair[:2]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.lock:
            if pair in self.pairs:
                self.pairs.remove(pair)
                pair[0].close()
                pair[1].close()

    def cut(self):
        with self.lock:
            for near, far, _ in self.pairs:
                near.shutdown(socket.SHUT_RDWR)
                far.shutdown(socket.SHUT_RDWR)

    def stall(self):
        with self.lock:
            for pair in self.pairs:
                pair[2] = True

    def release(self):
        with self.lock:
            for pair in self.pairs:
                pair[2] = False

    def close(self):
        self.release()
        self.cut()
        self.listener.close()
        shutil.rmtree(self.directory)


# ---- looking at processes ----

def name_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return os.path.basename(file.read().split("\0")[0])
    except OSError:
        return ""


def ranks_of(service):
    return sorted(pid for pid in service.workers() if name_of(pid) == "avl-worker" and running(pid))


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


def memory_of(pid):
    """Megabytes that are the process's own."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024
    except (OSError, ValueError):
        return 0


def files_of(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


# ---- the run ----

class Soak:
    def __init__(self, options):
        self.options = options
        self.rng = random.Random(options.seed)
        self.requests = catalog_of(options.seed)
        self.counts = collections.Counter()
        self.problems = []
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.times = []       # of whole answers
        self.gaps = []        # longest pause of each answer
        self.faults = []      # (kind, detected after, ready after)
        self.memory = []      # (time, coordinator, sum of ranks, processes)
        self.outages = []     # [begin, end] of the coordinator's; the end is open while it lasts
        self.first_tokens = []
        self.last = {}        # stream -> time of its last event
        self.doubled = False

    def problem(self, text):
        with self.lock:
            self.problems.append(text)
        print("PROBLEM:", text, file=sys.stderr, flush=True)

    def service_arguments(self):
        options = self.options
        arguments = ["--tp", str(options.tp), "--replicas", str(options.replicas), "--threads", "1", "--dtype", "f32",
                     "--queue-max", str(2 * options.streams + 64), "--log-level", "info", "--metrics-listen", "127.0.0.1:0"]
        if options.worker_timeout is not None:
            arguments += ["--worker-timeout", str(options.worker_timeout)]
        return arguments + options.service

    def learn(self):
        """The answers of a service that nothing disturbs."""
        with Service(*self.service_arguments(), timeout=300) as service:
            answers = [Answer(service.inference.Generate(request, timeout=300)) for request in self.requests]
        self.expected = [answer.ids for answer in answers]
        self.texts = [answer.text for answer in answers]

    def check_beginning(self, number, ids, what):
        if ids != self.expected[number][:len(ids)]:
            self.problem(f"request {number}, {what}: {ids} is no beginning of {self.expected[number]}")

    def one(self, index, stub, rng):
        number = rng.randrange(len(self.requests))
        kind = rng.random()
        cancel_at = deadline = None
        if kind < self.options.cancel:
            cancel_at = rng.randrange(0, 20)
        elif kind < self.options.cancel + self.options.deadline:
            deadline = rng.choice((0.05, 0.3, 1.0))
        begin = last = time.monotonic()
        longest, first = 0, None
        answer = Answer([])
        call = stub.Generate(self.requests[number], timeout=deadline)
        try:
            if cancel_at == 0:
                time.sleep(rng.random() * 0.1)
                call.cancel()
            for event in call:
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                first = first or now - begin
                answer.add(event)
                self.last[index] = now
                if cancel_at is not None and len(answer.ids) >= cancel_at:
                    call.cancel()
        except grpc.RpcError as error:
            code = error.code()
            self.check_beginning(number, answer.ids, code.name)
            self.last[index] = time.monotonic()
            if cancel_at is not None and code == grpc.StatusCode.CANCELLED:
                self.count("cancelled")
            elif deadline is not None and code == grpc.StatusCode.DEADLINE_EXCEEDED:
                self.count("late")
            elif deadline is not None and code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.count("refused")
            elif code == grpc.StatusCode.UNAVAILABLE and self.was_out(begin):
                self.count("to be made again")
                time.sleep(0.1)
            else:
                self.problem(f"request {number} after {len(answer.ids)} tokens and {time.monotonic() - begin:.3f} s: "
                             f"{code.name}: {error.details()}")
            return
        if answer.ids != self.expected[number]:
            self.problem(f"request {number}: {answer.ids}; undisturbed {self.expected[number]}")
        elif answer.text != self.texts[number]:
            self.problem(f"request {number}: {answer.text!r}; undisturbed {self.texts[number]!r}")
        with self.lock:
            self.counts["finished"] += 1
            self.counts["tokens"] += len(answer.ids)
            self.times.append(time.monotonic() - begin)
            self.gaps.append(longest)
            self.first_tokens.append(first)

    def was_out(self, begin):
        """Whether the coordinator was killed or away since then; a client looks up again within the pause of its channel."""
        with self.lock:
            return any(end is None or end + 2 * self.options.patience > begin for _, end in self.outages)

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def stream(self, index):
        rng = random.Random(self.options.seed * 1000 + index)
        try:
            while not self.ending.is_set():
                self.one(index, self.stubs[index % len(self.stubs)], rng)
        except Exception:
            self.problem(traceback.format_exc())

    def vanish(self):
        """Client processes that are killed in the middle of their calls."""
        rng = random.Random(self.options.seed + 1)
        while not self.ending.is_set():
            process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--victim", self.service.address,
                                        "--seed", str(self.options.seed)], stdout=subprocess.PIPE)
            process.stdout.readline()
            self.ending.wait(rng.uniform(0.05, 0.5))
            process.kill()
            process.wait()
            process.stdout.close()
            self.count("clients killed")
            self.ending.wait(3)

    # ---- faults ----

    def wait_recovered(self, begin, old):
        """Until a group with other ranks serves; returns when the old one was seen to end and that time."""
        detected = None
        while time.monotonic() - begin < RECOVERY_S:
            ranks = ranks_of(self.service)
            if detected is None and not set(old) <= set(ranks):
                detected = time.monotonic() - begin
            if detected is not None and not set(old) & set(ranks) and len(ranks) == self.rank_count():
                try:
                    if self.service.serving() == 1:
                        return detected, time.monotonic() - begin
                except grpc.RpcError:
                    pass
            time.sleep(0.02)
        raise AssertionError(f"no new group after {RECOVERY_S} s; of {old} there are {ranks_of(self.service)}")

    def rank_count(self):
        return self.options.tp * self.options.replicas

    def group_of(self, victim, ranks):
        """The ranks of the victim's group: a launcher's children, or a process alone."""
        return [pid for pid in ranks if pid == victim or (self.options.tp > 1 and parent_of(pid) == parent_of(victim))]

    def lay(self, kind):
        ranks = ranks_of(self.service)
        if len(ranks) != self.rank_count():
            time.sleep(0.1)
            return False
        if kind == "coordinator":
            return self.lay_coordinator()
        begin = time.monotonic()
        victim = self.rng.choice(ranks)
        old = self.group_of(victim, ranks)
        if kind == "kill":
            os.kill(victim, signal.SIGKILL)
            old = [pid for pid in old if pid != victim] or old
        elif kind == "launcher":
            launchers = [pid for pid in self.service.workers() if name_of(pid) == self.options.launcher]
            own = parent_of(victim)
            os.kill(own if own in launchers else launchers[0], signal.SIGKILL)
        elif kind == "stop":
            os.kill(victim, signal.SIGSTOP)
        elif kind == "cut":
            old = ranks
            self.proxy.cut()
        elif kind == "stall":
            old = ranks
            self.proxy.stall()
        elif kind == "memory":
            return self.lay_memory(victim, old)
        try:
            detected, ready = self.wait_recovered(begin, old)
        finally:
            self.proxy.release()
        self.faults.append((kind, detected, ready))
        bound = (self.options.worker_timeout or DETECTION_S) + 5 if kind in ("stop", "stall") else 5
        if detected > bound * self.options.patience:
            self.problem(f"{kind}: the old group ended after {detected:.1f} s; bound {bound} s")
        return True

    def lay_memory(self, victim, ranks):
        """Less than the process has: every further mapping fails. It lives on what it has, or dies."""
        try:
            resource.prlimit(victim, resource.RLIMIT_AS, (1, 1))
        except (ProcessLookupError, PermissionError):
            return False
        begin = time.monotonic()
        while time.monotonic() - begin < 5 and running(victim):
            time.sleep(0.02)
        died = not running(victim)
        self.count("memory: died" if died else "memory: lived on")
        if not died:
            os.kill(victim, signal.SIGKILL)
        detected, ready = self.wait_recovered(time.monotonic(), [pid for pid in ranks if pid != victim] or ranks)
        self.faults.append(("memory", detected, ready))
        return True

    def lay_coordinator(self):
        """Killed as it is: its processes end, its calls end, and it can be started again where it was."""
        begin = time.monotonic()
        with self.lock:
            self.outages.append([begin, None])
        old = self.service
        workers = old.workers()
        old.process.kill()
        old.process.wait()
        wait_gone(workers)
        detected = time.monotonic() - begin
        old.channel.close()
        self.service = Service(*self.arguments, timeout=300, listen=old.address)
        with self.lock:
            self.outages[-1][1] = time.monotonic()
        self.files = files_of(self.service.process.pid)
        self.faults.append(("coordinator", detected, time.monotonic() - begin))
        return True

    def wait_progress(self):
        """Three group deaths without a token in between end a request, rightly: no more than two faults are laid so."""
        self.doubled = not self.doubled
        begin = time.monotonic()
        while not self.doubled and not self.ending.is_set() and time.monotonic() - begin < RECOVERY_S:
            if all(self.last.get(index, 0) > begin for index in range(self.options.streams)):
                return
            time.sleep(0.02)

    def monkey(self):
        kinds = [kind for kind in self.options.faults.split(",") if kind != "launcher" or self.options.tp > 1]
        done = 0
        order = []
        while done < self.options.kills and not self.ending.is_set():
            if not order:
                order = kinds[:]
                self.rng.shuffle(order)
            time.sleep(self.rng.uniform(0, self.options.pause))
            self.wait_progress()
            if self.lay(order[0]):
                kind, detected, ready = self.faults[-1]
                done += 1
                print(f"fault {done}: {kind}: old group gone after {detected:.2f} s, new one ready after {ready:.2f} s; "
                      f"{self.counts['finished']} finished", file=sys.stderr, flush=True)
                order.pop(0)

    # ---- measures ----

    def sample(self):
        begin = time.monotonic()
        while not self.ending.wait(1):
            ranks = ranks_of(self.service)
            coordinator = self.service.process.pid
            self.memory.append((time.monotonic() - begin, memory_of(coordinator),
                                sum(memory_of(pid) for pid in ranks), (coordinator, *ranks)))

    def check_memory(self):
        """Growth between the second and the last quarter of the run, by medians."""
        figures = {}
        same = [row for row in self.memory if row[3] == self.memory[-1][3]]
        own = [row for row in self.memory if row[3][0] == self.memory[-1][3][0]]
        for name, rows, column in (("coordinator", own, 1), ("ranks", same, 2)):
            values = [row[column] for row in rows if row[column] > 0]
            quarter = len(values) // 4
            if quarter < 5:
                continue
            early, late = statistics.median(values[quarter:2 * quarter]), statistics.median(values[-quarter:])
            minutes = (rows[-1][0] - rows[0][0]) / 60 * 0.625  # between the middles of those quarters
            figures[name] = {"early_mb": round(early, 1), "late_mb": round(late, 1), "mb_per_minute": round((late - early) / minutes, 3)}
            if late - early > max(16, 0.1 * early):
                self.problem(f"memory of the {name} grew from {early:.1f} to {late:.1f} MB")
        return figures

    def run(self):
        self.learn()
        self.proxy = Proxy()
        options = self.options
        self.arguments = self.service_arguments() + ["--worker-program", self.proxy.program]
        self.service = Service(*self.arguments, timeout=300)
        try:
            pairs = [stub_of(self.service.address) for _ in range(min(8, options.streams))]
            self.stubs = [stub for _, stub in pairs]
            Answer(self.stubs[0].Generate(self.requests[0], timeout=300))
            self.files = files_of(self.service.process.pid)
            if options.log:
                threading.Thread(target=self.keep_log, daemon=True).start()
            begin = time.monotonic()
            threads = [threading.Thread(target=self.stream, args=(index,)) for index in range(options.streams)]
            if options.victims:
                threads.append(threading.Thread(target=self.vanish))
            threads.append(threading.Thread(target=self.sample))
            for thread in threads:
                thread.start()
            try:
                self.monkey()
                while time.monotonic() - begin < options.seconds and not self.problems:
                    time.sleep(0.2)
            finally:
                self.ending.set()
            for thread in threads:
                thread.join(RECOVERY_S * 3)
                if thread.is_alive():
                    raise AssertionError("a request hangs")
            seconds = time.monotonic() - begin
            for number, request in enumerate(self.requests):  # the last group is sound too
                ids = Answer(self.service.inference.Generate(request, timeout=300)).ids
                if ids != self.expected[number]:
                    self.problem(f"request {number} at the end: {ids}; undisturbed {self.expected[number]}")
            self.check_pages()
            self.check_ledger()
            for channel, _ in pairs:
                channel.close()
            self.check_idle(self.files)
            report = self.report(seconds)
        except BaseException:
            self.service.__exit__(*sys.exc_info())
            raise
        self.service.stop()
        self.proxy.close()
        print(json.dumps(report, indent=1))
        return 1 if self.problems else 0

    def keep_log(self):
        with open(self.options.log, "w", buffering=1) as file:
            done = 0
            while True:
                with self.service.log_changed:
                    lines = self.service.log_lines[done:]
                done += len(lines)
                file.writelines(line + "\n" for line in lines)
                time.sleep(0.2)

    def metrics(self):
        """Samples of the service by name and labels."""
        address = self.service.wait_log("metrics on http://").split("/")[0]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}

    def check_pages(self):
        """When nothing is asked for, nothing is held but kept prompts. Groups tell how they stand once a second."""
        limit = time.monotonic() + 20
        while True:
            samples = self.metrics()

            def values(name, *words):
                return [value for key, value in samples.items() if re.match(name + r"($|{)", key) and all(word in key for word in words)]
            taken, kept = sum(values("avl_kv_cache_pages", "taken")), sum(values("avl_kv_cache_pages", "kept"))
            held = sum(values("avl_kv_cache_pages", "reserved")) + sum(values("avl_group_requests_active"))
            held += sum(values("avl_group_requests_queued")) + sum(values("avl_requests_running")) + sum(values("avl_requests_waiting"))
            if values("avl_kv_cache_pages", "total") and taken <= kept and held == 0:
                self.counts["pages kept"], self.counts["pages taken"] = int(kept), int(taken)
                return
            if time.monotonic() > limit:
                self.problem(f"pages taken {taken}, kept {kept}; requests and reservations left: {held}")
                return
            time.sleep(0.2)

    def check_ledger(self):
        """What ranks hold is what they said at their start that they would, and some for their libraries."""
        limit = time.monotonic() + RECOVERY_S
        while True:  # a group that starts again holds memory before it can say so
            parts = {key: value for key, value in self.metrics().items() if key.startswith("avl_rank_memory_bytes{")}
            ranks = ranks_of(self.service)
            if len({key.split(",part=")[0] for key in parts}) == len(ranks) or time.monotonic() > limit:
                break
            time.sleep(0.2)
        said, held = sum(parts.values()), 0
        for pid in ranks:
            with open(f"/proc/{pid}/status") as file:
                held += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))
        self.ledger = {"said_mb": round(said / 1e6, 1), "held_mb": round(held / 1e6, 1)}
        if self.options.ledger and not 0.97 * said <= held <= said + LEDGER_REST_MB * 1e6 * len(ranks):
            self.problem(f"{len(ranks)} ranks hold {held / 1e6:.1f} MB; their ledgers say {said / 1e6:.1f} MB")

    def check_idle(self, files):
        """Connections of clients that are gone close within a moment."""
        limit = time.monotonic() + 20
        while time.monotonic() < limit and files_of(self.service.process.pid) > files + 2:
            time.sleep(0.1)
        if files_of(self.service.process.pid) > files + 2:
            self.problem(f"the coordinator has {files_of(self.service.process.pid)} files open, {files} at the start")

    def report(self, seconds):
        def spread(values):
            if not values:
                return None
            ordered = sorted(values)
            return {"p50": round(ordered[len(ordered) // 2], 3), "p99": round(ordered[int(len(ordered) * 0.99)], 3),
                    "max": round(ordered[-1], 3)}
        by_kind = {}
        for kind in sorted({fault[0] for fault in self.faults}):
            rows = [fault for fault in self.faults if fault[0] == kind]
            by_kind[kind] = {"count": len(rows), "detected_s": spread([row[1] for row in rows]),
                             "ready_s": spread([row[2] for row in rows])}
        return {"seed": self.options.seed, "tp": self.options.tp, "replicas": self.options.replicas,
                "streams": self.options.streams, "seconds": round(seconds, 1),
                "counts": dict(self.counts), "tokens_per_second": round(self.counts["tokens"] / seconds, 1),
                "answer_s": spread(self.times), "first_token_s": spread(self.first_tokens), "longest_pause_s": spread(self.gaps),
                "faults": by_kind, "memory": self.check_memory() if self.memory else {}, "ledger": self.ledger, "problems": self.problems[:20]}


def victim(address, seed):
    """A client that is killed sooner or later."""
    requests = catalog_of(seed)
    channel, stub = stub_of(address)

    def ask(number):
        while True:
            try:
                for _ in stub.Generate(requests[number % len(requests)]):
                    pass
            except grpc.RpcError:
                time.sleep(0.1)
    for number in range(4):
        threading.Thread(target=ask, args=(number,), daemon=True).start()
    print("started", flush=True)
    time.sleep(60)
    channel.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0, help="at least so long")
    parser.add_argument("--kills", type=int, default=6, help="faults to lay")
    parser.add_argument("--pause", type=float, default=2.0, help="between recovery and the next fault, at most")
    parser.add_argument("--faults", default="kill,launcher,stop,cut,stall,memory")
    parser.add_argument("--cancel", type=float, default=0.1, help="share of requests")
    parser.add_argument("--deadline", type=float, default=0.1, help="share of requests")
    parser.add_argument("--worker-timeout", type=float)
    parser.add_argument("--launcher", default="mpirun")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on bounds of time")
    parser.add_argument("--no-ledger", dest="ledger", action="store_false", help="under a sanitizer memory is not the service's alone")
    parser.add_argument("--no-victims", dest="victims", action="store_false")
    parser.add_argument("--log", help="where to write the service's log")
    parser.add_argument("--service", nargs="*", default=[], help="further arguments of the coordinator, without the dashes")
    parser.add_argument("--victim", help=argparse.SUPPRESS)
    parser.add_argument("-v", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.service = [word if index % 2 else "--" + word for index, word in enumerate(options.service)]
    if options.victim:
        victim(options.victim, options.seed)
        return 0
    return Soak(options).run()


if __name__ == "__main__":
    sys.exit(main())
