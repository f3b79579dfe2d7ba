#!/usr/bin/env python3
"""Times DeepGEMM's operators at the shapes of docs/spec/limits.md, the way kernel_bench times ours: weights that are not in L2,
CUDA graph replays. Needs PyTorch and the package sgl-deep-gemm (0.2.5 was used); run it in the same call as kernel_bench.
"""
import argparse
import csv
import os

import deep_gemm
import torch
from deep_gemm.utils.layout import get_mn_major_tma_aligned_tensor

ROTATED_BYTES = 120e6  # of weights between two uses of one
REPLAYS = 20
# name: outputs, inputs (limits.md)
LINEARS = {"wq_a + wkv": (1536, 4096), "wq_b": (32768, 1024), "index wq_b": (8192, 1024), "wo_b": (4096, 8192)}
INDEX_HEADS, INDEX_DIM = 64, 128
FIELDS = ["machine", "commit", "command", "operator", "shape", "us"]


def microseconds(copies, queue):
    """Median time of one of `copies` calls of queue(i), replayed as one graph."""
    for i in range(copies):
        queue(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            queue(i)
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / copies)
    return sorted(times)[REPLAYS // 2]


def fp8(*shape):
    return torch.randn(*shape, device="cuda").clamp(-3, 3).to(torch.float8_e4m3fn)


def time_linear(rows, outputs, inputs):
    copies = min(64, max(4, int(ROTATED_BYTES / (outputs * inputs)) + 1))
    weights = [(fp8(outputs, inputs), torch.full((outputs // 128, inputs // 128), 0.03125, device="cuda")) for _ in range(copies)]
    x = (fp8(rows, inputs), get_mn_major_tma_aligned_tensor(torch.full((rows, inputs // 128), 0.03125, device="cuda")))
    y = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
    return microseconds(copies if rows < 1024 else 4, lambda i: deep_gemm.fp8_gemm_nt(x, weights[i], y))


def time_index_logits(rows, keys):
    """Prefill: the last `rows` tokens of a prompt whose index has `keys` entries."""
    q = fp8(rows, INDEX_HEADS, INDEX_DIM)
    kv = (fp8(keys, INDEX_DIM), torch.full((keys,), 0.5, device="cuda"))
    weights = torch.randn(rows, INDEX_HEADS, device="cuda")
    first = torch.zeros(rows, device="cuda", dtype=torch.int32)
    last = (keys - rows // 4 + (torch.arange(rows, device="cuda") + 1) // 4).to(torch.int32)
    return microseconds(2, lambda i: deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, first, last, 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", default=torch.cuda.get_device_name(0))
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--csv", required=True, help="rows are appended here")
    args = parser.parse_args()
    is_new = not os.path.exists(args.csv)
    with open(args.csv, "a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(FIELDS)

        def report(operator, shape, time):
            print(f"{operator:24} {shape:16} {time:10.1f}", flush=True)
            writer.writerow([args.machine, args.commit, "bench/kernels/peers.py", f"DeepGEMM {operator}", shape, f"{time:.2f}"])

        for rows in (1, 8, 32, 128, 8192):
            for name, (outputs, inputs) in LINEARS.items():
                report(name, f"B={rows}" if rows < 1024 else f"prefill {rows}", time_linear(rows, outputs, inputs))
        for context in (8192, 131072):
            report("index logits", f"prefill 8192 {context >> 10}K", time_index_logits(8192, context // 4))


if __name__ == "__main__":
    main()
