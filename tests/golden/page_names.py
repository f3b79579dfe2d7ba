#!/usr/bin/env python3
"""Page names of contracts.md 1.5 from hashlib, independent of common/page_name.cc: the vectors of common/page_name_test.cc."""
import hashlib
import struct

WEIGHTS = bytes(range(16))
LAYOUT = bytes.fromhex("82bdcbab59d1e78b")
PREFILL = bytes.fromhex("49568d2f47f8263e")
DECODE = bytes.fromhex("0102030405060708")


def root(salt):
    text = b"baton.page.1" + WEIGHTS + LAYOUT + struct.pack("<I", len(salt)) + salt
    return hashlib.sha256(text).digest()[:16]


def name(previous, runs, tokens):
    text = previous + struct.pack("<B", len(runs))
    for count, class_id in runs:
        text += struct.pack("<H", count) + class_id
    text += struct.pack("<256I", *tokens)
    return hashlib.sha256(text).digest()[:16]


def tokens_of(page):
    return [(7 * t + 3) % 129280 for t in range(256 * page, 256 * page + 256)]


plain = root(b"")
print("root without salt", plain.hex())
print("root with salt 'tenant-7'", root(b"tenant-7").hex())
first = name(plain, [(256, PREFILL)], tokens_of(0))
print("page 0, one run", first.hex())
second = name(first, [(100, PREFILL), (156, DECODE)], tokens_of(1))
print("page 1, runs 100 + 156", second.hex())
print("page 2, runs 1 + 1 + 254", name(second, [(1, DECODE), (1, PREFILL), (254, DECODE)], tokens_of(2)).hex())
