"""What a client may send, and how the service answers; workers are fakes, so this is the coordinator alone."""
import os
import socket
import struct
import threading
import unittest
import zlib

from harness import *  # noqa: F403
import reflection_pb2
from google.protobuf import descriptor_pb2


def png(width, height, pixels=True):
    """A grey PNG of any claimed extent."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    rows = zlib.compress(b"".join(b"\0" + bytes(width) for _ in range(height))) if pixels else zlib.compress(b"")
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


class Requests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.service = Service("--message-bytes-max", "2M", "--images-max", "3", "--image-pixels-max", "1M",
                              "--queue-max", "40", fake="")

    @classmethod
    def tearDownClass(cls):
        cls.service.stop()

    def generate(self, request, timeout=30, **options):
        return self.service.inference.Generate(request, timeout=timeout, **options)

    def refused(self, request, code, *words):
        got, text = failure(self.generate(request))
        self.assertEqual(got, code, text)
        for word in words:
            self.assertIn(word, text)

    def tearDown(self):  # whatever happened, the next request is answered
        answer = Answer(self.generate(raw("Still there?", sampling=pb.SamplingParameters(seed=1))))
        self.assertEqual(len(answer.ids), 20)

    def test_answer(self):
        request = talk(PICTURE, "What is this?", sampling=pb.SamplingParameters(seed=7), request_id="first")
        answer = Answer(self.generate(request))
        self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_STOP)
        self.assertEqual(answer.finished.usage.completion_tokens, 20)
        self.assertEqual(answer.finished.usage.visual_tokens, 196)
        self.assertGreater(answer.finished.usage.prompt_tokens, 196)
        self.assertEqual(answer.finished.seed, 7)
        chosen = answer.finished.attention  # the service's own choice
        self.assertAlmostEqual(chosen.visual_store_ratio, 0.5)
        self.assertAlmostEqual(chosen.visual_compute_ratio, 0.1)
        self.assertEqual(chosen.parameters.visual_selection, pb.VISUAL_SELECTION_COVERAGE)
        self.assertEqual(chosen.parameters.visual_core, pb.VISUAL_CORE_STEP)
        self.assertGreater(answer.finished.timings.preprocess_seconds, 0)
        again = Answer(self.generate(request))
        self.assertEqual(again.ids, answer.ids)
        self.assertEqual(again.text, answer.text)

    def test_length(self):
        answer = Answer(self.generate(raw(max_tokens=5)))
        self.assertEqual(answer.finished.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(len(answer.ids), 5)
        self.assertEqual(answer.progress, [])

    def test_progress(self):
        answer = Answer(self.generate(talk(PICTURE, "?", progress=True)))
        stages = [stage for stage, _, _ in answer.progress]
        self.assertIn(pb.STAGE_PREPROCESS, stages)
        self.assertIn(pb.STAGE_QUEUED, stages)

    def test_attention_given(self):
        chosen = pb.AttentionParameters(visual_store_ratio=0.05)
        report = Answer(self.generate(raw(attention=chosen))).finished.attention
        self.assertAlmostEqual(report.visual_store_ratio, 0.05)
        self.assertAlmostEqual(report.visual_compute_ratio, 0.05)
        report = Answer(self.generate(raw(attention=pb.AttentionParameters(dense=True)))).finished.attention
        self.assertEqual((report.visual_store_ratio, report.visual_compute_ratio), (1, 1))
        report = Answer(self.generate(raw(attention=pb.AttentionParameters(preset="dense")))).finished.attention
        self.assertEqual(report.parameters.visual_compute_ratio, 1)
        self.assertEqual(report.parameters.visual_selection, pb.VISUAL_SELECTION_LAST_ROW)
        chosen = pb.AttentionParameters(visual_selection=pb.VISUAL_SELECTION_RANDOM)
        finished = Answer(self.generate(raw(attention=chosen))).finished
        self.assertEqual(finished.attention.parameters.selection_seed, finished.seed)

    def test_empty(self):
        self.refused(pb.GenerateRequest(), "INVALID_ARGUMENT", "no input")
        self.refused(pb.GenerateRequest(conversation=pb.Conversation()), "INVALID_ARGUMENT", "messages is empty")
        self.refused(raw(""), "INVALID_ARGUMENT", "raw_prompt.text is empty")
        message = pb.Message(role=pb.ROLE_USER)
        self.refused(pb.GenerateRequest(conversation=pb.Conversation(messages=[message])), "INVALID_ARGUMENT",
                     "messages[0].content is empty")
        message = pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart()])
        self.refused(pb.GenerateRequest(conversation=pb.Conversation(messages=[message])), "INVALID_ARGUMENT",
                     "content[0]")

    def test_roles(self):
        self.refused(talk("Hi", role=pb.ROLE_UNSPECIFIED), "INVALID_ARGUMENT", "messages[0].role is 0")
        self.refused(talk("Hi", role=17), "INVALID_ARGUMENT", "messages[0].role is 17")

    def test_sampling(self):
        for field, value, word in (("temperature", -1, "-1"), ("temperature", float("nan"), "nan"),
                                   ("temperature", float("inf"), "inf"), ("top_p", 0, "top_p is 0"),
                                   ("top_p", 1.5, "1.5"), ("top_k", 2**31, "2147483648")):
            self.refused(raw(sampling=pb.SamplingParameters(**{field: value})), "INVALID_ARGUMENT",
                         "sampling." + field, word)

    def test_attention(self):
        for fields, word in (({"visual_store_ratio": 0}, "visual_store_ratio is 0"),
                             ({"visual_store_ratio": 1.5}, "visual_store_ratio is 1.5"),
                             ({"visual_store_ratio": float("nan")}, "nan"),
                             ({"visual_compute_ratio": 0.8}, "at most visual_store_ratio (0.5)"),
                             ({"visual_compute_ratio": -0.1}, "-0.1"),
                             ({"visual_update_interval": 0}, "visual_update_interval is 0"),
                             ({"visual_update_interval": 2**32 - 1}, "4294967295"),
                             ({"dense": True, "visual_store_ratio": 0.5}, "dense excludes"),
                             ({"preset": "best"}, "there are dense, a-vl"),
                             ({"visual_selection": 9}, "visual_selection is 9"),
                             ({"prefill_keep_ratio": 2}, "prefill_keep_ratio is 2"),
                             ({"visual_core": 5}, "visual_core is 5"),
                             ({"visual_core": pb.VISUAL_CORE_STEP, "visual_update_interval": 2}, "without an interval"),
                             ({"selection_seed": 1}, "random alone"),
                             ({"text_keep_min": 5}, "text_keep_min needs text_keep_ratio")):
            self.refused(raw(attention=pb.AttentionParameters(**fields)), "INVALID_ARGUMENT", "attention.", word)

    def test_limits(self):
        self.refused(raw(request_id="x" * 129), "INVALID_ARGUMENT", "129 bytes")
        self.refused(raw(max_tokens=2**31), "INVALID_ARGUMENT", "max_tokens is 2147483648")
        self.refused(talk(*[PICTURE] * 4, "?"), "INVALID_ARGUMENT", "4 images", "at most 3")
        self.refused(raw("word " * 5000), "INVALID_ARGUMENT", "2048")
        self.refused(raw("x" * (3 << 20)), "RESOURCE_EXHAUSTED")

    def test_pictures(self):
        self.refused(talk(b"", "?"), "INVALID_ARGUMENT", "image 1 is empty")
        self.refused(talk(b"not a picture at all", "?"), "INVALID_ARGUMENT", "image 1")
        self.refused(talk(PICTURE[:200], "?"), "INVALID_ARGUMENT", "image 1")
        self.refused(talk(PICTURE, PICTURE[:-40], "?"), "INVALID_ARGUMENT", "image 2")
        self.refused(talk(png(10000, 10000, pixels=False), "?"), "INVALID_ARGUMENT", "image 1", "10000 x 10000", "1048576")
        self.refused(talk(png(0, 5, pixels=False), "?"), "INVALID_ARGUMENT", "image 1")
        Answer(self.generate(talk(png(1, 1), "?")))

    def test_placeholders(self):
        self.refused(raw("<image>\nWhat?"), "INVALID_ARGUMENT", "1", "0")
        self.refused(raw("What?", [PICTURE]), "INVALID_ARGUMENT", "0", "1")
        self.refused(talk("What is <image>?"), "INVALID_ARGUMENT", "<image>")
        Answer(self.generate(raw("<image> and <image>?", [PICTURE, PICTURE])))

    def call_bytes(self, method, data, timeout=10):
        return self.service.channel.unary_stream(method)(data, timeout=timeout)

    def test_malformed(self):
        path = "/avl.v1.Inference/Generate"
        for data in (b"\xff\xff\xff", b"\x12\x7f", b"\x1a\x05\x0a\x7fab", os.urandom(1000), b"\x0f"):
            code, text = failure(self.call_bytes(path, data))
            self.assertEqual(code, "INVALID_ARGUMENT", text)
        prompt = b"\x0a\x04ab\xffc"
        code, text = failure(self.call_bytes(path, b"\x1a" + bytes([len(prompt)]) + prompt))
        self.assertEqual((code, "UTF-8" in text), ("INVALID_ARGUMENT", True), text)
        prompt = b"\x0a\x04ab\0c"
        code, text = failure(self.call_bytes(path, b"\x1a" + bytes([len(prompt)]) + prompt))
        self.assertEqual((code, "NUL" in text), ("INVALID_ARGUMENT", True), text)

    def test_unknown_methods(self):
        for path in ("/avl.v1.Inference/Nothing", "/no.Service/Method", "/avl.worker.v1.WorkerLink/Attach"):
            code, text = failure(self.call_bytes(path, b""))
            self.assertEqual(code, "UNIMPLEMENTED")
            self.assertIn(path, text)

    def test_compressed(self):
        code, _ = failure(self.generate(raw("x" * 100000), compression=grpc.Compression.Gzip))
        self.assertEqual(code, "UNIMPLEMENTED")

    def test_large_metadata(self):
        # On a connection of its own: the server may close it.
        with grpc.insecure_channel(self.service.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            flood = [("x-flood", "y" * 100000)]
            code, _ = failure(channel.unary_stream("/avl.v1.Inference/Generate")(b"", timeout=10, metadata=flood))
        self.assertIn(code, ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"))

    def test_garbage_on_the_port(self):
        host, port = self.service.address.rsplit(":", 1)
        held = []
        for data in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(5000),
                     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(2000)):
            peer = socket.create_connection((host, int(port)), timeout=5)
            try:
                peer.sendall(data)
            except OSError:
                pass
            held.append(peer)
        for peer in held:
            peer.close()

    def test_deadline(self):
        code, _ = failure(self.generate(raw(max_tokens=2000), timeout=0.02))
        self.assertEqual(code, "DEADLINE_EXCEEDED")

    def test_cancel(self):
        for _ in range(20):
            call = self.generate(raw())
            next(call)
            call.cancel()
        self.service.wait_log("was cancelled by its client")

    def test_vanished_client(self):
        channel = grpc.insecure_channel(self.service.address)
        call = channel.unary_stream("/avl.v1.Inference/Generate", request_serializer=pb.GenerateRequest.SerializeToString)
        next(call(raw()))
        channel.close()

    def test_many_streams(self):
        answers = {}

        def ask(seed):
            answers[seed] = Answer(self.generate(talk(PICTURE, "?", sampling=pb.SamplingParameters(seed=seed))))
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(answers), list(range(16)))
        for answer in answers.values():
            self.assertEqual(len(answer.ids), 20)
        self.assertEqual(len({tuple(a.ids) for a in answers.values()}), 16)

    def test_info(self):
        info = self.service.inference.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        self.assertEqual((info.model, info.family, info.ready), ("avl-tiny", "llava", True))
        self.assertEqual((info.device, info.dtype, info.ranks), ("fake", "f32", 1))
        self.assertEqual(info.visual_tokens_per_image, 196)
        self.assertEqual(info.image_placeholder, "<image>")
        self.assertEqual((info.images_max, info.message_bytes_max), (3, 2 << 20))
        self.assertAlmostEqual(info.attention_defaults.visual_store_ratio, 0.5)
        presets = {preset.name: preset.parameters for preset in info.attention_presets}
        self.assertEqual(presets["dense"].visual_compute_ratio, 1)
        self.assertEqual((presets["a-vl"].visual_store_ratio, presets["a-vl"].visual_update_interval), (0.5, 3))
        for name, store, compute in (("quality", .5, .1), ("balanced", .3, .1), ("lean", .1, .05)):
            self.assertEqual((presets[name].visual_store_ratio, presets[name].visual_compute_ratio), (store, compute))
            self.assertEqual((presets[name].visual_selection, presets[name].visual_core),
                             (pb.VISUAL_SELECTION_COVERAGE, pb.VISUAL_CORE_STEP))
        self.assertEqual(len(presets), 5)

    def test_tokenize(self):
        ids = self.service.inference.Tokenize(pb.TokenizeRequest(text="USER: <image>\nHi"), timeout=10).token_ids
        self.assertEqual(ids[0], 1)
        talked = self.service.inference.Tokenize(
            pb.TokenizeRequest(conversation=talk(PICTURE, "Hi").conversation), timeout=10).token_ids
        self.assertEqual(talked[0], 1)
        code, text = failure(lambda: self.service.inference.Tokenize(pb.TokenizeRequest(), timeout=10))
        self.assertEqual(code, "INVALID_ARGUMENT")

    def test_health(self):
        self.assertEqual(self.service.serving(), 1)
        self.assertEqual(self.service.serving("avl.v1.Inference"), 1)
        code, _ = failure(lambda: self.service.serving("nothing"))
        self.assertEqual(code, "NOT_FOUND")
        watch = self.service.health.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
        self.assertEqual(next(watch).status, 3)
        watch.cancel()
        watch = self.service.health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        self.assertEqual(next(watch).status, 1)
        watch.cancel()

    def test_reflection(self):
        for version in ("v1", "v1alpha"):
            call = self.service.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
            request = reflection_pb2.ServerReflectionRequest
            answers = list(call(iter([request(list_services="*"), request(file_by_filename="inference.proto"),
                                      request(file_containing_symbol="avl.v1.Inference.Generate"),
                                      request(file_containing_symbol="avl.v1.GenerateRequest"),
                                      request(file_containing_symbol="avl.v1.Missing"), request()]), timeout=10))
            names = [service.name for service in answers[0].list_services_response.service]
            self.assertEqual(sorted(names), ["avl.v1.Inference", "grpc.health.v1.Health",
                                             "grpc.reflection.v1.ServerReflection"])
            for answer in answers[1:4]:
                file = descriptor_pb2.FileDescriptorProto.FromString(
                    answer.file_descriptor_response.file_descriptor_proto[0])
                for message in file.message_type:
                    for field in message.field:
                        field.ClearField("json_name")
                self.assertEqual(file, descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb))
            self.assertEqual(answers[4].error_response.error_code, 5)
            self.assertEqual(answers[5].error_response.error_code, 3)


class Addresses(unittest.TestCase):
    def test_unix_socket(self):
        path = os.path.join(os.path.dirname(flag_path()), "socket")
        with Service(fake="", listen="unix:" + path) as service:
            self.assertEqual(service.address, "unix:" + path)
            Answer(service.inference.Generate(raw(), timeout=10))
            with self.assertRaisesRegex(AssertionError, "another server is listening"):
                Service(fake="", listen="unix:" + path)
        self.assertFalse(os.path.exists(path))

    def test_taken_port(self):
        with Service(fake="") as service:
            with self.assertRaisesRegex(AssertionError, "Address already in use"):
                Service(fake="", listen=service.address)

    def test_bad_arguments(self):
        for arguments, text in ((["--listen", "nowhere"], "HOST:PORT"), (["--tp", "0"], "--tp 0"),
                                (["--visual-compute", "0.9"], "visual_store_ratio"), (["--preset", "best"], "dense, a-vl"),
                                (["--dtype", "f8"], "f32"),
                                (["--model", "/nonexistent"], "/nonexistent"), (["stray"], "stray")):
            with self.assertRaisesRegex(AssertionError, text):
                Service(*arguments, fake="")


if __name__ == "__main__":
    unittest.main()
