"""Runs sglang.benchmark.serving without torch: the packages above it are made empty, so that their __init__ is not run."""
import importlib.util
import os
import runpy
import sys
import types

ROOT = list(importlib.util.find_spec("sglang").submodule_search_locations)[0]
for name, folder in (("sglang", "."), ("sglang.srt", "srt"), ("sglang.srt.utils", "srt/utils"),
                     ("sglang.srt.disaggregation", "srt/disaggregation")):
    package = types.ModuleType(name)
    package.__path__ = [os.path.join(ROOT, folder)]
    sys.modules[name] = package
constants = types.ModuleType("sglang.srt.disaggregation.utils")
constants.FAKE_BOOTSTRAP_HOST = "2.2.2.2"
sys.modules[constants.__name__] = constants
runpy.run_module("sglang.benchmark.serving", run_name="__main__", alter_sys=True)
