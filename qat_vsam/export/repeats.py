"""One quantizer a tensor on the ONNX graph: a tensor that is on its grid already is not quantized to it again.

    DequantizeLinear(codes, s) -> QuantizeLinear(s) -> [Clip]      becomes      codes

Training quantizes a tensor once and lets several layers read it; the graph, written layer by layer, repeats that.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def remove_repeats(graph: ir.Graph) -> None:
    """Let every reader of a quantized tensor read its codes; in place. What goes unused is left for a tidying pass."""
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        before = None if node.inputs[0] is None else node.inputs[0].producer()
        if before is None or before.op_type != "DequantizeLinear" or not _same(before, node, (1, 2)):
            continue
        codes, clipped = before.inputs[0], _clip_behind(node)
        first = None if codes is None else codes.producer()
        if codes is None or first is None or first.op_type not in ("QuantizeLinear", "Clip"):
            continue
        if clipped is None:
            node.outputs[0].replace_all_uses_with(codes)
        elif first.op_type == "Clip" and _same(first, clipped, (1, 2)):
            clipped.outputs[0].replace_all_uses_with(codes)


def _clip_behind(node: ir.Node) -> ir.Node | None:
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == "Clip" else None


def _same(one: ir.Node, other: ir.Node, positions: tuple[int, ...]) -> bool:
    """Whether two nodes have equal constants at these inputs."""
    for position in positions:
        a, b = one.inputs[position], other.inputs[position]
        if a is None or b is None or a.const_value is None or b.const_value is None:
            return False
        if not np.array_equal(a.const_value.numpy(), b.const_value.numpy()):
            return False
    return True
