"""Graph fusion before quantising: subgraphs become the runtime's fused operators.

Measured for all-MiniLM-L6-v2 with dynamic int8 in ONNX Runtime 1.31 (docs/adr/0003): fusing Gelu alone gives 0.36
of fp32, no fusion 0.41, everything the optimiser knows 0.48. So it is a choice of the search, not a default.
"""

import contextlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from .graph import BaseGraph, find_weights, open_session

_log = logging.getLogger(__name__)

#: what each level switches off in `onnxruntime.transformers.fusion_options.FusionOptions`
_SWITCHED_OFF = {
    "gelu": (
        "enable_attention", "enable_embed_layer_norm", "enable_skip_layer_norm",
        "enable_bias_skip_layer_norm", "enable_bias_gelu",
    ),
    "attention": (
        "enable_embed_layer_norm", "enable_skip_layer_norm", "enable_bias_skip_layer_norm", "enable_bias_gelu",
    ),
    "full": ("enable_embed_layer_norm",),
}  # fmt: skip

#: a fused graph may differ from the base by this much, relative to the largest output, or it is not offered
_TOLERANCE = 1e-3


def build_variants(
    base: BaseGraph, levels: tuple[str, ...], sample: Mapping[str, np.ndarray]
) -> tuple[dict[str, ir.Model], dict[str, str]]:
    """Returns the graphs of the fusion levels that change anything, and why each other level was dropped.

    Args:
        base: the float graph.
        levels: the fusion levels to try, in order of preference.
        sample: model input name → (1, …) array, on which a fused graph must agree with the base.
    """
    variants = {"none": base.model}
    dropped: dict[str, str] = {}
    seen = {_histogram(base.model): "none"}
    for level in levels:
        if level == "none":
            continue
        fused, reason = _fuse_usably(base, level, sample)
        twin = seen.get(_histogram(fused)) if fused is not None else None
        if reason or twin or fused is None:
            dropped[level] = reason or f"it gives the same graph as '{twin}'"
            continue
        variants[level] = fused
        seen[_histogram(fused)] = level
    return variants, dropped


def _fuse_usably(base: BaseGraph, level: str, sample: Mapping[str, np.ndarray]) -> tuple[ir.Model | None, str | None]:
    """Returns the fused graph and why it cannot be used; tries again with layer norms left as they are.

    The optimiser of ONNX Runtime 1.31 takes a layer norm over the channels of an image for one over the last axis.
    """
    first_reason = None
    for fuses_norms in (True, False):
        fused = _fuse(base, level, fuses_norms=fuses_norms)
        reason = _why_unusable(base, fused, sample) if fused is not None else "the optimiser failed on this graph"
        if reason is None:
            return fused, None
        first_reason = first_reason or reason
    return None, first_reason


def _fuse(base: BaseGraph, level: str, *, fuses_norms: bool) -> ir.Model | None:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    #: keeps query, key and value as layers of their own instead of packing their weights
    options.use_multi_head_attention = True
    options.enable_layer_norm = fuses_norms
    for switch in _SWITCHED_OFF[level]:
        setattr(options, switch, False)
    heads, hidden = _attention_shape(base)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "base.onnx"
        onnx.save(ir.to_proto(base.model), path)
        try:
            with _quiet():
                fused = optimizer.optimize_model(
                    str(path), "bert", num_heads=heads, hidden_size=hidden, optimization_options=options, opt_level=0
                )
        except Exception as error:  # the optimiser raises anything on graphs that it does not expect
            _log.info("fusion level %s failed: %r", level, error)
            return None
    model: ir.Model = ir.from_proto(fused.model)
    LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the optimiser from complaining, through several loggers, about graphs that it cannot fuse."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def _attention_shape(base: BaseGraph) -> tuple[int, int]:
    """Returns (heads, hidden size) as seen in the softmaxes and layer norms; zeros without attention."""
    heads = hidden = 0
    for node in base.model.graph:
        shape = base.shapes.get(str(node.outputs[0].name), ())
        if node.op_type == "Softmax" and len(shape) == 4:
            heads = shape[1]
        if node.op_type == "LayerNormalization" and shape:
            hidden = shape[-1]
    return (heads, hidden) if heads else (0, 0)  # the optimiser refuses a hidden size that the heads do not divide


def _why_unusable(base: BaseGraph, fused: ir.Model, sample: Mapping[str, np.ndarray]) -> str | None:
    kept = {str(weight.name) for weight in find_weights(fused.graph)}
    lost = [layer.name for layer in base.layers if f"{layer.name}.weight" not in kept]
    if lost:
        return f"it merges the weights of {', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}"
    feed = dict(sample)
    want = open_session(base.model, []).run(None, feed)
    try:
        got = open_session(fused, []).run(None, feed)
    except Exception as error:  # a wrong fusion shows as a runtime error of any type
        return f"the fused graph does not run: {error}"
    for a, b in zip(want, got, strict=True):
        is_same = a.shape == b.shape and np.abs(a - b).max(initial=0) <= _TOLERANCE * max(
            np.abs(a).max(initial=0), 1e-6
        )
        if not is_same:  # NaN is never the same
            return "the fused graph gives other outputs"
    return None


def _histogram(model: ir.Model) -> frozenset[tuple[tuple[str, str], int]]:
    return frozenset(Counter((node.domain, node.op_type) for node in model.graph).items())
