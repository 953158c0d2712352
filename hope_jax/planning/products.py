"""FLOPs of matrix products and convolutions, by the operands' dtype."""

import math
import re

from hope_jax.planning import hlo
from hope_jax.planning.hlo import Computation, Instruction, Program


def fused_flops(program: Program, inside: Computation, it: Instruction) -> dict[str, float]:
    """FLOPs of an instruction and of what is fused into it."""
    total: dict[str, float] = {}
    for home, each in hlo.fused(program, inside, it):
        for dtype, flops in product_flops(home, each).items():
            total[dtype] = total.get(dtype, 0.0) + flops
    return total


def product_flops(inside: Computation, it: Instruction) -> dict[str, float]:
    """FLOPs of a matrix product or convolution by its operands' dtype; nothing for other instructions."""
    if it.opcode == "dot":
        contracted = _dims(it.attributes, r"lhs_contracting_dims=\{([\d,]*)\}")
    elif it.opcode == "convolution":
        return {inside[it.operands[0]].shapes[0].dtype: _convolution_flops(inside, it)}
    elif it.opcode == "custom-call" and '"dot_dimension_numbers"' in it.attributes:
        contracted = _dims(it.attributes, r'"lhs_contracting_dimensions":\[([\d,"]*)\]')
    elif it.opcode == "custom-call" and '"intermediate_tensor_shape"' in it.attributes:
        return {inside[it.operands[0]].shapes[0].dtype: _attention_flops(inside, it)}
    else:
        return {}
    left = inside[it.operands[0]].shapes[0]
    depth = math.prod(left.dims[d] for d in contracted)
    return {left.dtype: 2.0 * math.prod(it.shapes[0].dims) * depth}


def _dims(attributes: str, pattern: str) -> list[int]:
    found = re.search(pattern, attributes)
    return [int(d) for d in re.findall(r"\d+", found[1])] if found else []


def _attention_flops(inside: Computation, it: Instruction) -> float:
    """cuDNN's attention: two products with scores forward, five backward, which makes the scores again; under
    a causal mask half of each."""
    scores = _dims(it.attributes, r'"intermediate_tensor_shape".*?"dimensions": ?\[([\d," ]*)\]')
    products = 5 if 'Backward"' in it.attributes else 2
    share = 0.5 if 'CAUSAL"' in it.attributes else 1.0
    return share * products * 2.0 * math.prod(scores) * inside[it.operands[0]].shapes[0].dims[-1]


def _convolution_flops(inside: Computation, it: Instruction) -> float:
    """Padding and the holes of dilation, which TPU programs use for batched products, are not counted."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", it.attributes)
    assert labels is not None
    image, kernel = (inside[name].shapes[0].dims for name in it.operands[:2])
    left, right, result = labels[1], labels[2], labels[3]
    out = it.shapes[0].dims
    flops = 2.0 * out[result.index("b")] * out[result.index("f")] * kernel[right.index("i")]
    for axis, label in enumerate(sorted(c for c in result if c.isdigit())):
        stride, dilation = (_window(it.attributes, key, axis, 1) for key in ("stride", "rhs_dilate"))
        holes, pad = _window(it.attributes, "lhs_dilate", axis, 1), _window(it.attributes, "pad", axis, 0)
        size = image[left.index(label)]
        # Pairs of an output position and a kernel position that meet an element of the image.
        places = (
            o * stride + k * dilation - pad
            for k in range(kernel[right.index(label)])
            for o in range(out[result.index(label)])
        )
        flops *= sum(place % holes == 0 and 0 <= place // holes < size for place in places)
    return flops


def _window(attributes: str, key: str, axis: int, default: int) -> int:
    found = re.search(rf"window=\{{[^}}]*\b{key}=([\d_x\-]+)", attributes)
    values = found[1].split("x") if found else []
    return int(values[axis].split("_")[0]) if axis < len(values) else default
