"""Say in one line which instruction set each library computes with in a process that is started here.

    python tools/instruction_sets.py
    env $(python tools/instruction_sets.py --old) pytest ...     hold all of them to old ones, and run the tests so
    python tools/instruction_sets.py --has-bfloat16              exit code 0 where products in bfloat16 are fast

Libraries choose by the processor, and sums come out differently by each choice: what passes here may fail elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

# Read when a library is loaded. Those of oneDNN, MKL_CBWR, OpenBLAS and NumPy were seen to change the bits of results; the
# others are heeded by what the library reports. They go as low as the wheels do: NumPy's are compiled for SSE4.2, torch's
# for SSE2.
OLD = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",  # heeded on Intel's processors alone;
    "MKL_CBWR": "COMPATIBLE",  # this one on all
    "OPENBLAS_CORETYPE": "Nehalem",  # of NumPy's and of FAISS's
    "NPY_DISABLE_CPU_FEATURES": "X86_V3,X86_V4,AVX512_ICL,AVX512_SPR",
    "FAISS_SIMD_LEVEL": "NONE",
}

# In a process of its own: oneDNN and MKL tell it on stdout alone, at the first thing they compute.
PROBE = """
import warnings
warnings.simplefilter("ignore")
import faiss
import numpy
import torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from threadpoolctl import threadpool_info
print("ATen", torch.backends.cpu.get_cpu_capability())
x = torch.ones(8, 16, 32, 32)
torch.conv2d(x, torch.ones(32, 16, 3, 3))
torch.ones(64, 64) @ torch.ones(64, 64)
fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False
print("bfloat16", "yes" if fast else "no")
print("NumPy", " ".join(f for f in __cpu_dispatch__ if __cpu_features__[f]) or "its baseline")
for one in threadpool_info():
    if one["internal_api"] == "openblas":
        print("OpenBLAS", ("NumPy's " if "scipy" in one["filepath"] else "FAISS's ") + str(one["architecture"]))
print("FAISS", faiss.SIMDConfig.get_level_name())
"""


def main() -> None:
    if sys.argv[1:] == ["--has-bfloat16"]:
        sys.exit("bfloat16: yes" not in report())
    if sys.argv[1:] == ["--old"]:
        print(" ".join(f"{name}={value}" for name, value in OLD.items()))
        return
    print(report())


def report() -> str:
    """The one line."""
    said = os.environ | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    command = [sys.executable, "-c", PROBE]
    out = subprocess.run(command, env=said, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        name, _, value = line.partition(" ")
        if name in ("ATen", "bfloat16", "NumPy", "OpenBLAS", "FAISS"):
            found.setdefault(name, []).append(value)
        elif match := re.search(r"cpu,isa:(.*)", line):
            found["oneDNN"] = [match[1]]
        elif match := re.search(r"MKL_VERBOSE oneMKL.*64 architecture (.*), Lnx", line):
            found["MKL"] = [match[1]]
        elif match := re.search(r"MKL_VERBOSE SGEMM.*(CNR:\S+)", line):
            found.setdefault("MKL", []).append(match[1])
    order = ("ATen", "oneDNN", "MKL", "NumPy", "OpenBLAS", "FAISS", "bfloat16")
    return "; ".join(f"{name}: {', '.join(dict.fromkeys(found.get(name, ['cannot be told'])))}" for name in order)


if __name__ == "__main__":
    main()
