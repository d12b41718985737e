"""A LLaVA-1.5-shaped model as plain functions over a dictionary of weights under their Hugging Face names.

Written for training on few CPU cores: bf16 arithmetic over f32 master weights, one fixed shape per step, prefix rows
(the picture) attend among themselves only, rows of questions and answers to the prefix and their own block.
"""

import math

import torch
import torch.nn.functional as F

from pictures import GRID, LABEL_SIZES, PATCH

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
IMAGE_ROWS = GRID * GRID
TOWER, LLAMA = "vision_tower.vision_model.", "language_model.model."

SHAPE = {
    "v_hidden": 128, "v_mlp": 512, "v_heads": 4, "v_layers": 6,  # the last one is not used
    "hidden": 192, "mlp": 512, "heads": 6, "kv_heads": 6, "layers": 6,
    "positions": 2048, "rope_theta": 1e6, "rms_eps": 1e-5, "norm_eps": 1e-5,
}  # fmt: skip


def make_weights(shape, vocabulary, generator):
    """Random f32 weights."""
    weights = {}

    def normal(key, *size, std):
        weights[key] = torch.randn(*size, generator=generator) * std

    def linear(key, rows, columns, std=None, bias=True):
        normal(key + ".weight", rows, columns, std=std or columns**-0.5)
        if bias:
            weights[key + ".bias"] = torch.zeros(rows)

    def norm(key, width, bias=True):
        weights[key + ".weight"] = torch.ones(width)
        if bias:
            weights[key + ".bias"] = torch.zeros(width)

    width = shape["v_hidden"]
    normal(TOWER + "embeddings.class_embedding", width, std=0.1)
    normal(TOWER + "embeddings.patch_embedding.weight", width, 3, PATCH, PATCH, std=(3 * PATCH * PATCH) ** -0.5)
    normal(TOWER + "embeddings.position_embedding.weight", IMAGE_ROWS + 1, width, std=0.1)
    norm(TOWER + "pre_layrnorm", width)
    norm(TOWER + "post_layernorm", width)
    for i in range(shape["v_layers"]):
        layer = f"{TOWER}encoder.layers.{i}."
        deep = (width * 2 * shape["v_layers"]) ** -0.5
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(layer + "self_attn." + part, width, width)
        linear(layer + "self_attn.out_proj", width, width, deep)
        norm(layer + "layer_norm1", width)
        norm(layer + "layer_norm2", width)
        linear(layer + "mlp.fc1", shape["v_mlp"], width)
        linear(layer + "mlp.fc2", width, shape["v_mlp"], (shape["v_mlp"] * 2 * shape["v_layers"]) ** -0.5)
    hidden = shape["hidden"]
    linear("multi_modal_projector.linear_1", hidden, width, 0.02)
    linear("multi_modal_projector.linear_2", hidden, hidden, 0.02)
    normal(LLAMA + "embed_tokens.weight", vocabulary, hidden, std=0.05)
    head = hidden // shape["heads"]
    for i in range(shape["layers"]):
        layer = f"{LLAMA}layers.{i}."
        for part, rows in (
            ("q_proj", hidden),
            ("k_proj", shape["kv_heads"] * head),
            ("v_proj", shape["kv_heads"] * head),
        ):
            linear(layer + "self_attn." + part, rows, hidden, 0.02, bias=False)
        linear(layer + "self_attn.o_proj", hidden, hidden, 0.02, bias=False)
        linear(layer + "mlp.gate_proj", shape["mlp"], hidden, 0.02, bias=False)
        linear(layer + "mlp.up_proj", shape["mlp"], hidden, 0.02, bias=False)
        linear(layer + "mlp.down_proj", hidden, shape["mlp"], 0.02, bias=False)
        norm(layer + "input_layernorm", hidden, bias=False)
        norm(layer + "post_attention_layernorm", hidden, bias=False)
    norm(LLAMA + "norm", hidden, bias=False)
    linear("language_model.lm_head", vocabulary, hidden, 0.02, bias=False)
    linear("lessons", sum(LABEL_SIZES), width, 0.02)  # the patch labels' heads: not exported
    return weights


@torch.no_grad()
def centre_projector(weights, shape, pictures):
    """Biases that take the mean off what the projector gets and gives: more than half of a patch's length would else be
    what all patches share."""
    x = tower(weights, shape, pictures)
    for i in (1, 2):
        key = f"multi_modal_projector.linear_{i}"
        x = F.linear(x, weights[key + ".weight"])
        weights[key + ".bias"].copy_(-x.mean((0, 1)))
        x = F.gelu(x + weights[key + ".bias"])


def normalise(pictures, dtype):
    """uint8 [n, side, side, 3] -> [n, patches, 3 * patch * patch], as the patch embedding reads them."""
    mean = torch.tensor(MEAN, device=pictures.device) * 255
    deviation = torch.tensor(DEVIATION, device=pictures.device) * 255
    pixels = ((pictures.float() - mean) / deviation).to(dtype)
    n = len(pixels)
    pixels = pixels.view(n, GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return pixels.reshape(n, IMAGE_ROWS, 3 * PATCH * PATCH)


class Attention(torch.autograd.Function):
    """softmax(q k^T + mask) v, a few pictures at a time so that scores stay in the processor's cache, and with one
    buffer of weights where autograd's own pieces would copy it several times."""

    @staticmethod
    def forward(ctx, query, keys, values, mask, heads):
        """[n * heads, ...] each; `heads` are KV heads, whose query heads lie one after the other in the rows."""
        weights = query.new_empty(len(query), query.shape[1], keys.shape[1])
        out = torch.empty_like(query)
        for part, pictures in parts(len(query), heads, query.device):
            scores = torch.bmm(query[part], keys[part].transpose(1, 2))
            if mask is not None:  # [n or 1, rows, columns]
                some = mask[pictures] if len(mask) > 1 else mask
                n, rows, columns = some.shape
                scores.view(n if len(mask) > 1 else len(scores), -1, rows, columns).add_(some[:, None])
            torch._softmax(scores, -1, False, out=weights[part])
            torch.bmm(weights[part], values[part], out=out[part])
        ctx.save_for_backward(query, keys, values, weights)
        ctx.heads = heads
        ctx.set_materialize_grads(False)
        return out, weights

    @staticmethod
    def backward(ctx, out_grad, weights_grad):
        query, keys, values, weights = ctx.saved_tensors
        if out_grad is None:  # only the weights were used
            out_grad = torch.zeros_like(query)
        grads = torch.empty_like(query), torch.empty_like(keys), torch.empty_like(values)
        for part, _ in parts(len(query), ctx.heads, query.device):
            grad = torch.bmm(out_grad[part], values[part].transpose(1, 2))
            if weights_grad is not None:
                grad += weights_grad[part]
            torch.bmm(weights[part].transpose(1, 2), out_grad[part], out=grads[2][part])
            grad = torch._softmax_backward_data(grad, weights[part], -1, weights.dtype)
            torch.bmm(grad, keys[part], out=grads[0][part])
            torch.bmm(grad.transpose(1, 2), query[part], out=grads[1][part])
        return *grads, None, None


def parts(count, heads, device):
    """(slice of n * heads, slice of n): four pictures each on a CPU, all of them on a GPU."""
    n = count // heads
    step = 4 if device.type == "cpu" else n
    return [(slice(i * heads, min(n, i + step) * heads), slice(i, min(n, i + step))) for i in range(0, n, step)]


def attend(query, keys, values, mask=None):
    """[n, heads, rows, d] over [n, kv heads, columns, d]; `mask` is added, [n or 1, rows, columns].
    Returns (out [n, rows, heads * d], weights [n, kv heads, group, rows, columns])."""
    n, heads, rows, d = query.shape
    kv, columns = keys.shape[1], keys.shape[2]
    group = heads // kv
    out, weights = Attention.apply(
        query.reshape(n * kv, group * rows, d),
        keys.reshape(n * kv, columns, d),
        values.reshape(n * kv, columns, d),
        mask,
        kv,
    )
    out = out.view(n, kv, group, rows, d).permute(0, 3, 1, 2, 4).reshape(n, rows, heads * d)
    return out, weights.view(n, kv, group, rows, columns)


def split(x, heads):
    n, rows, width = x.shape
    return x.view(n, rows, heads, width // heads).transpose(1, 2)


def tower(weights, shape, pictures):
    """uint8 pictures -> [n, patches, width]: the output of the last layer but one, without the class row."""

    def linear(x, key):
        return F.linear(x, weights[key + ".weight"], weights[key + ".bias"])

    def norm(x, key):
        return F.layer_norm(x, x.shape[-1:], weights[key + ".weight"], weights[key + ".bias"], shape["norm_eps"])

    kernel = weights[TOWER + "embeddings.patch_embedding.weight"]
    x = F.linear(normalise(pictures, kernel.dtype), kernel.view(len(kernel), -1))
    first = weights[TOWER + "embeddings.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + weights[TOWER + "embeddings.position_embedding.weight"]
    x = norm(x, TOWER + "pre_layrnorm")
    heads = shape["v_heads"]
    scale = (shape["v_hidden"] // heads) ** -0.5
    for i in range(shape["v_layers"] - 1):
        layer = f"{TOWER}encoder.layers.{i}."
        y = norm(x, layer + "layer_norm1")
        query = split(linear(y, layer + "self_attn.q_proj") * scale, heads)
        keys, values = (split(linear(y, layer + "self_attn." + p), heads) for p in ("k_proj", "v_proj"))
        x = x + linear(attend(query, keys, values)[0], layer + "self_attn.out_proj")
        y = linear(norm(x, layer + "layer_norm2"), layer + "mlp.fc1")
        x = x + linear(y * torch.sigmoid(1.702 * y), layer + "mlp.fc2")
    return x[:, 1:]


def project(weights, features):
    """Patches as rows of the language model."""
    for i in (1, 2):
        key = f"multi_modal_projector.linear_{i}"
        features = F.linear(features, weights[key + ".weight"], weights[key + ".bias"])
        if i == 1:
            features = F.gelu(features)
    return features


def rms_norm(x, weight, epsilon):
    """Only the row's length is taken in f32."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).pow(2) / x.shape[-1]
    return x * torch.rsqrt(square + epsilon).to(x.dtype) * weight


def rotation(shape, positions, dtype):
    """(cos, sin) [n, 1, rows, d] of positions [n, rows]."""
    d = shape["hidden"] // shape["heads"]
    frequencies = 1.0 / shape["rope_theta"] ** (torch.arange(0, d, 2, device=positions.device).float() / d)
    angles = positions[..., None].float() * frequencies
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def project_qkv(weights, shape, i, x, cos, sin):
    layer = f"{LLAMA}layers.{i}."
    y = rms_norm(x, weights[layer + "input_layernorm.weight"], shape["rms_eps"])
    query = split(F.linear(y, weights[layer + "self_attn.q_proj.weight"]), shape["heads"])
    keys = split(F.linear(y, weights[layer + "self_attn.k_proj.weight"]), shape["kv_heads"])
    values = split(F.linear(y, weights[layer + "self_attn.v_proj.weight"]), shape["kv_heads"])
    scale = (shape["hidden"] // shape["heads"]) ** -0.5
    return rotate(query, cos * scale, sin * scale), rotate(keys, cos, sin), values


def finish_layer(weights, shape, i, x, out):
    layer = f"{LLAMA}layers.{i}."
    x = x + F.linear(out, weights[layer + "self_attn.o_proj.weight"])
    y = rms_norm(x, weights[layer + "post_attention_layernorm.weight"], shape["rms_eps"])
    gate, up = (F.linear(y, weights[f"{layer}mlp.{part}_proj.weight"]) for part in ("gate", "up"))
    gated = gate * torch.sigmoid(gate) * up  # F.silu takes six times as long in bf16
    return x + F.linear(gated, weights[layer + "mlp.down_proj.weight"])


def decoder(weights, shape, x, positions, prefix, mask, watch=None, select=None):
    """Hidden states of all rows. The first `prefix` rows are causal among themselves; the others see columns by
    `mask` [n, rows, columns], which is added. `watch(layer, weights of the others)` collects what a loss needs;
    `select(weights of the others)` returns the mask that they attend with after all."""
    cos, sin = rotation(shape, positions, x.dtype)
    causal = torch.full((prefix, prefix), -math.inf, device=x.device, dtype=x.dtype).triu(1)[None]
    for i in range(shape["layers"]):
        query, keys, values = project_qkv(weights, shape, i, x, cos, sin)
        first, _ = attend(query[:, :, :prefix], keys[:, :, :prefix], values[:, :, :prefix], causal)
        rest, attention = attend(query[:, :, prefix:], keys, values, mask)
        if watch is not None:
            watch(i, attention)
        if select is not None:
            rest, _ = attend(query[:, :, prefix:], keys, values, select(attention.detach()))
        x = finish_layer(weights, shape, i, x, torch.cat([first, rest], 1))
    return x


def logits(weights, shape, x):
    x = rms_norm(x, weights[LLAMA + "norm.weight"], shape["rms_eps"])
    return F.linear(x, weights["language_model.lm_head.weight"])


def lesson_loss(weights, features, labels):
    """How well the tower's patches tell what they show: colour, shape, size, character, row, column, ordinal."""
    out = F.linear(features, weights["lessons.weight"], weights["lessons.bias"]).float()
    total, start = 0, 0
    for kind, size in enumerate(LABEL_SIZES):
        target = labels[:, kind].flatten()
        loss = F.cross_entropy(out[..., start : start + size].reshape(-1, size), target, reduction="none")
        weight = torch.where(target > 0, 1.0, 0.1)
        total = total + (loss * weight).sum() / weight.sum()
        start += size
    return total / len(LABEL_SIZES)
