"""Names of the precisions in which networks compute.

This module does not import torch, because command-line parsers import it.
"""

DEFAULT = "float32"
TF32 = "tf32"
# Name -> meaning. Weights and updates are float32 in all of them.
PRECISIONS = {
    DEFAULT: "without TF32",
    TF32: "float32, but convolutions and matrix products round their inputs to TF32 (10 bits)",
    "bfloat16": "autocast to bfloat16",
    "float16": "autocast to float16, with loss scaling",
}
MEANINGS = "; ".join(f"{name}: {meaning}" for name, meaning in PRECISIONS.items())
