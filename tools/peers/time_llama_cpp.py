#!/usr/bin/env python3
"""Times llama.cpp on the text part of a LLaVA-format model directory, for a side-by-side run with bench/.

    python3 -m venv peer && peer/bin/pip install llama-cpp-python==0.3.36 gguf==0.19.0
    peer/bin/python tools/peers/time_llama_cpp.py DIRECTORY --dtype bf16 --threads 2 --prompt 512 --tokens 64

Development only. The decoder's weights are written to a temporary GGUF file (no vocabulary: tokens go in as numbers) and
run through llama.cpp's C interface: one prompt, then one token at a time, for --sequences sequences at once.
Prints one line of JSON; the first greedy tokens are in it, so that both programs can be seen to compute the same thing.
"""
import argparse
import ctypes
import json
import os
import struct
import tempfile
import time

import gguf
import llama_cpp
import numpy as np


def read_safetensors(directory):
    """Name -> (dtype string, shape, bytes view) over all shards."""
    tensors = {}
    for file_name in sorted(os.listdir(directory)):
        if not file_name.endswith(".safetensors"):
            continue
        data = np.memmap(os.path.join(directory, file_name), dtype=np.uint8, mode="r")
        (header_bytes,) = struct.unpack("<Q", data[:8].tobytes())
        header = json.loads(data[8 : 8 + header_bytes].tobytes())
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            tensors[name] = (entry["dtype"], entry["shape"], data[8 + header_bytes + first : 8 + header_bytes + last])
    return tensors


def as_f32(tensor):
    dtype, shape, raw = tensor
    if dtype == "F32":
        values = np.frombuffer(raw.tobytes(), dtype=np.float32)
    elif dtype == "F16":
        values = np.frombuffer(raw.tobytes(), dtype=np.float16).astype(np.float32)
    elif dtype == "BF16":
        values = (np.frombuffer(raw.tobytes(), dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        raise SystemExit(f"unexpected dtype {dtype}")
    return values.reshape(shape)


def interleave_heads(weight, heads):
    """Hugging Face keeps rotary halves apart, GGUF's llama interleaves them."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(directory, path, dtype):
    config = json.load(open(os.path.join(directory, "config.json")))["text_config"]
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(config.get("max_position_embeddings", 2048))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")

    def add(name, values, matrix=True):
        if matrix and dtype == "bf16":
            bits = values.view(np.uint32).astype(np.uint64)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            writer.add_tensor(name, rounded.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))

    tensors = read_safetensors(directory)
    prefix = "language_model.model." if "language_model.model.norm.weight" in tensors else "model.language_model."

    def get(name):
        return np.ascontiguousarray(as_f32(tensors[prefix + name]))

    add("token_embd.weight", get("embed_tokens.weight"))
    add("output_norm.weight", get("norm.weight"), matrix=False)
    head = "language_model.lm_head.weight" if "language_model.lm_head.weight" in tensors else "lm_head.weight"
    add("output.weight", np.ascontiguousarray(as_f32(tensors[head])))
    for i in range(layers):
        layer = f"layers.{i}."
        add(f"blk.{i}.attn_norm.weight", get(layer + "input_layernorm.weight"), matrix=False)
        add(f"blk.{i}.ffn_norm.weight", get(layer + "post_attention_layernorm.weight"), matrix=False)
        q = interleave_heads(get(layer + "self_attn.q_proj.weight"), heads)
        k = interleave_heads(get(layer + "self_attn.k_proj.weight"), kv_heads)
        add(f"blk.{i}.attn_q.weight", np.ascontiguousarray(q))
        add(f"blk.{i}.attn_k.weight", np.ascontiguousarray(k))
        add(f"blk.{i}.attn_v.weight", get(layer + "self_attn.v_proj.weight"))
        add(f"blk.{i}.attn_output.weight", get(layer + "self_attn.o_proj.weight"))
        add(f"blk.{i}.ffn_gate.weight", get(layer + "mlp.gate_proj.weight"))
        add(f"blk.{i}.ffn_up.weight", get(layer + "mlp.up_proj.weight"))
        add(f"blk.{i}.ffn_down.weight", get(layer + "mlp.down_proj.weight"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config["vocab_size"]


def run(path, vocab, arguments):
    llama_cpp.llama_backend_init()

    @llama_cpp.llama_log_callback
    def quiet(level, text, data):
        del level, text, data

    llama_cpp.llama_log_set(quiet, None)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp refuses the converted model")
    parameters = llama_cpp.llama_context_default_params()
    rows = (arguments.prompt + arguments.tokens + 8) * arguments.sequences
    parameters.n_ctx = rows
    parameters.n_batch = parameters.n_ubatch = max(512, arguments.prompt)
    parameters.n_threads = parameters.n_threads_batch = arguments.threads
    parameters.n_seq_max = arguments.sequences
    kv_type = {"f32": 0, "bf16": 30}[arguments.dtype]
    parameters.type_k = parameters.type_v = kv_type
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(max(arguments.prompt, arguments.sequences), 0, 1)
    prompt = [(7 * i + 3) % (vocab - 64) + 32 for i in range(arguments.prompt)]

    def fill(index, token, position, sequence, logits):
        batch.token[index] = token
        batch.pos[index] = position
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = sequence
        batch.logits[index] = logits

    def best(index):
        logits = llama_cpp.llama_get_logits_ith(context, index)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    begin = time.perf_counter()
    latest = []
    for sequence in range(arguments.sequences):
        batch.n_tokens = arguments.prompt
        for i, token in enumerate(prompt):
            fill(i, token, i, sequence, i == arguments.prompt - 1)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed on the prompt")
        latest.append(best(arguments.prompt - 1))
    prefill_s = time.perf_counter() - begin
    tokens = [latest[0]]
    begin = time.perf_counter()
    for step in range(arguments.tokens):
        batch.n_tokens = arguments.sequences
        for sequence in range(arguments.sequences):
            fill(sequence, latest[sequence], arguments.prompt + step, sequence, True)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed on a token")
        latest = [best(sequence) for sequence in range(arguments.sequences)]
        tokens.append(latest[0])
    decode_s = time.perf_counter() - begin
    return {
        "program": "llama.cpp",
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "sequences": arguments.sequences,
        "prefill_tokens_per_second": arguments.prompt * arguments.sequences / prefill_s,
        "decode_tokens_per_second": arguments.tokens * arguments.sequences / decode_s,
        "first_tokens": tokens[:8],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        vocab = write_gguf(arguments.directory, file.name, arguments.dtype)
        print(json.dumps(run(file.name, vocab, arguments)))


if __name__ == "__main__":
    main()
