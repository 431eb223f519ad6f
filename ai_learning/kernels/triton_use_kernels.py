# mypy: ignore-errors
"""The kernel that `triton_use` tries first; importing this module imports triton."""

import triton
import triton.language as tl


@triton.jit
def add_one(out):
    """out (1,) += 1."""
    tl.store(out, tl.load(out) + 1)
