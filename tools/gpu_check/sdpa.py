"""The same attention shapes through PyTorch's scaled_dot_product_attention, one JSON object a line."""

import json
import statistics

import torch

SHAPES = [
    ("prefill attention, 2304 causal, 32 x 128", 1, 32, 2304, 128, True),
    ("prefill attention, 2304 causal, 32 x 128, 4 prompts", 4, 32, 2304, 128, True),
    ("vision attention, 577, 16 x 64, 5 tiles", 5, 16, 577, 64, False),
]


def measure(batch, heads, rows, width, causal):
    query, key, value = (
        torch.randn(batch, heads, rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    times = []
    for turn in range(35):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        end.record()
        end.synchronize()
        if turn >= 5:
            times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


for name, *shape in SHAPES:
    print(json.dumps({"name": name, "sdpa_us": round(measure(*shape), 2)}), flush=True)
