#!/usr/bin/env python3
"""Models with depth_attention or hyper in float64, from docs/model.md: checks golden cases, and makes them.

    connectors.py CASE..           compares logits, loss and gradients with CASE/expected.safetensors
    connectors.py --make CASE      draws weights and tokens for CASE/config.json and writes the other files

Needs jax and safetensors; no test runs it.
"""
import json
import os
import re
import sys

import jax
import jax.numpy as np
import numpy
from safetensors.numpy import load_file, save_file

jax.config.update("jax_enable_x64", True)


def norm(x, eps, scale=1.0):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rotate(x, base):
    """[B, T, heads, E]"""
    T, half = x.shape[1], x.shape[3] // 2
    angle = np.arange(T)[:, None] * base ** (-np.arange(half) / half)
    c, s = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def attention(c, w, layer, h):
    H, G, E = c["n_head"], c["n_local_heads"], c["head_dim"]
    name, eps = f"layers.{layer}.attention.", c["norm_eps"]
    B, T = h.shape[:2]
    qkv = h @ w[name + "wqkv.weight"].T
    q, k, v = np.split(qkv, [H * E, (H + G) * E], axis=-1)
    q, k, v = q.reshape(B, T, H, E), k.reshape(B, T, G, E), v.reshape(B, T, G, E)
    if c["use_qk_norm"]:
        q = norm(q, eps, w[name + "q_norm.weight"])
        k = norm(k, eps, w[name + "k_norm.weight"])
    q, k = rotate(q, c["rope_base"]), rotate(k, c["rope_base"])
    k, v = np.repeat(k, H // G, axis=2), np.repeat(v, H // G, axis=2)
    score = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(E)
    score = np.where(np.tril(np.ones((T, T), bool)), score, -np.inf)
    out = np.einsum("bhts,bshe->bthe", jax.nn.softmax(score, axis=-1), v)
    return out.reshape(B, T, H * E) @ w[name + "wo.weight"].T


def sublayer(c, w, u, h):
    """f_u: u odd attention, u even FFN, with its norm, without a residual."""
    layer, eps = (u - 1) // 2, c["norm_eps"]
    if u % 2:
        return attention(c, w, layer, norm(h, eps, w[f"layers.{layer}.attention_norm.weight"]))
    x = norm(h, eps, w[f"layers.{layer}.ffn_norm.weight"])
    f = f"layers.{layer}.feed_forward."
    return (jax.nn.silu(x @ w[f + "w1.weight"].T) * (x @ w[f + "w3.weight"].T)) @ w[f + "w2.weight"].T


def depth_attention(c, w, x):
    L, S, eps = c["n_layer"], c.get("depth_attention_block", 0), c["norm_eps"]

    def mix(u, sources):
        c_ = np.stack(sources)
        q, g = w[f"depth_attention.{u - 1}.query"], w[f"depth_attention.{u - 1}.norm.weight"]
        alpha = jax.nn.softmax(np.einsum("d,sbtd->sbt", q, norm(c_, eps, g)), axis=0)
        return np.einsum("sbt,sbtd->btd", alpha, c_)

    finished, so_far = [x], None
    for u in range(1, 2 * L + 1):
        h = x if u == 1 else mix(u, finished + ([] if so_far is None else [so_far]))
        v = sublayer(c, w, u, h)
        so_far = v if so_far is None else so_far + v
        if S == 0 or u % (2 * S) == 0 or u == 2 * L:
            finished, so_far = finished + [so_far], None
    return mix(2 * L + 1, finished)


def sinkhorn(m):
    m = np.exp(m - m.max(axis=(-2, -1), keepdims=True))
    for _ in range(20):
        m = m / m.sum(axis=-2, keepdims=True)
        m = m / m.sum(axis=-1, keepdims=True)
    return m


def hyper(c, w, x):
    L, n, eps = c["n_layer"], c.get("hyper_streams", 4), c["norm_eps"]
    kind = c.get("hyper_kind", "mhc")
    H = np.stack([x] * n, axis=2)  # [B, T, n, D]
    for u in range(1, 2 * L + 1):
        a = lambda name: w.get(f"hyper.{u - 1}.{name}")
        p, M = None, np.eye(n)
        if kind == "static":
            p, M, o = a("pre"), a("res"), a("post")
        elif kind == "dynamic":
            s = norm(H, eps)
            if u > 1:
                p = a("pre") + a("pre_scale") * np.tanh(s @ a("pre_w"))
            M = a("res") + a("res_scale") * np.tanh(np.einsum("btrd,sd->btsr", s, a("res_w")))
            o = a("post") + a("post_scale") * np.tanh(s @ a("post_w"))
        else:
            s = norm(H.reshape(*H.shape[:2], -1), eps)
            if u > 1:
                p = jax.nn.sigmoid(a("pre_scale") * (s @ a("pre_w").T) + a("pre_b"))
            if 1 < u < 2 * L:
                z = (s @ a("res_w").T).reshape(*H.shape[:2], n, n)
                M = sinkhorn(a("res_scale") * z + a("res_b"))
            o = 2 * jax.nn.sigmoid(a("post_scale") * (s @ a("post_w").T) + a("post_b"))
        h = x if u == 1 else np.einsum("...s,...sd->...d", np.broadcast_to(p, H.shape[:3]), H)
        f = sublayer(c, w, u, h)
        mixed = np.einsum("...sr,...rd->...sd", np.broadcast_to(M, (*H.shape[:2], n, n)), H)
        H = mixed + np.broadcast_to(o, H.shape[:3])[..., None] * f[:, :, None, :]
    return H.sum(axis=2)


def forward(c, w, tokens):
    x = w["tok_embeddings.weight"][tokens[:, :-1]]
    connect = depth_attention if c["dense_type"] == "depth_attention" else hyper
    logits = norm(connect(c, w, x), c["norm_eps"], w["norm.weight"]) @ w["output.weight"].T
    loss = jax.nn.logsumexp(logits, axis=-1)
    loss = loss - np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return loss.mean(), logits


def decays(name, p):
    return p.ndim >= 2 and not re.fullmatch(r"hyper\.\d+\.res(_b)?", name)


def steps(c, w, tokens, count=10):
    """Loss and gradient norm of each AdamW step, as README.md says."""
    gradient = jax.jit(jax.value_and_grad(lambda w: forward(c, w, tokens)[0]))
    m = {k: 0 * p for k, p in w.items()}
    v, said = dict(m), []
    for t in range(1, count + 1):
        loss, g = gradient(w)
        size = np.sqrt(sum((x * x).sum() for x in g.values()))
        said.append([float(loss), float(size)])
        for k, p in w.items():
            x = g[k] * np.minimum(1, 1 / (size + 1e-6))
            p = p * (1 - 1e-4) if decays(k, p) else p
            m[k], v[k] = 0.9 * m[k] + 0.1 * x, 0.95 * v[k] + 0.05 * x * x
            w[k] = p - 1e-3 * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.95**t)) + 1e-8)
    return said


def read(case):
    with open(os.path.join(case, "config.json"), encoding="utf-8") as file:
        return json.load(file)


def compute(c, w, tokens):
    w = {k: np.asarray(p, np.float64) for k, p in w.items()}
    (loss, logits), g = jax.value_and_grad(lambda w: forward(c, w, tokens), has_aux=True)(w)
    out = {"logits": logits, "loss": np.asarray([loss])}
    out.update({f"grad.{k}": x for k, x in g.items()})
    return {k: numpy.asarray(x) for k, x in out.items()}, w


def check(case):
    found, w = compute(read(case), load_file(case + "/model.safetensors"),
                       load_file(case + "/tokens.safetensors")["tokens"])
    wanted = load_file(case + "/expected.safetensors")
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    worst = max(abs(found[k] - wanted[k]).max() / abs(wanted[k]).max() for k in wanted)
    print(f"{case}: largest difference {worst:.1e}")


def shapes(c):
    """Of hyper's static kind."""
    D, F, V, n = c["dim"], c["intermediate_size"], c["vocab_size"], c["hyper_streams"]
    H, G, E = c["n_head"], c["n_local_heads"], c["head_dim"]
    yield from (("tok_embeddings.weight", (V, D)), ("output.weight", (V, D)), ("norm.weight", (D,)))
    for i in range(c["n_layer"]):
        a, f = f"layers.{i}.attention.", f"layers.{i}.feed_forward."
        yield from ((a + "wqkv.weight", ((H + 2 * G) * E, D)), (a + "wo.weight", (D, H * E)),
                    (a + "q_norm.weight", (E,)), (a + "k_norm.weight", (E,)),
                    (f + "w1.weight", (F, D)), (f + "w3.weight", (F, D)), (f + "w2.weight", (D, F)),
                    (f"layers.{i}.attention_norm.weight", (D,)), (f"layers.{i}.ffn_norm.weight", (D,)))
    for u in range(2 * c["n_layer"]):
        yield from ((f"hyper.{u}.res", (n, n)), (f"hyper.{u}.post", (n,)))
        if u:
            yield f"hyper.{u}.pre", (n,)


def make(case):
    c, draw = read(case), numpy.random.default_rng(7)
    assert (c["dense_type"], c["hyper_kind"]) == ("hyper", "static"), "shapes() knows no other"
    w = {}
    for name, shape in shapes(c):
        scale = 0.3 if len(shape) == 1 else 0.4 if "hyper" in name else 1.5 / shape[-1] ** 0.5
        centre = 1.0 if "norm" in name or "post" in name else 0.5 if "pre" in name else 0.0
        value = centre + scale * draw.standard_normal(shape)
        w[name] = (value + (numpy.eye(*shape) if name.endswith(".res") else 0)).astype("f4")
    tokens = draw.integers(0, c["vocab_size"], (2, 25)).astype("i4")
    expected, wide = compute(c, w, tokens)
    save_file(w, case + "/model.safetensors")
    save_file({"tokens": tokens}, case + "/tokens.safetensors")
    save_file({k: x.astype("f4") for k, x in expected.items()}, case + "/expected.safetensors")
    with open(case + "/losses.json", "w", encoding="utf-8") as file:
        json.dump({"loss_and_grad_norm": steps(c, wide, tokens)}, file, indent=1)


if sys.argv[1] == "--make":
    make(sys.argv[2])
else:
    for folder in sys.argv[1:]:
        check(folder)
