"""Where a voice is cut in two, and where it is not: graphs as small as can be."""

from __future__ import annotations

from typing import Any

import pytest

from hotpind.engines import onnx_cut
from hotpind.engines.onnx_cut import FIRST_OF_SOUND, cut

NODES = [
    ("/enc/Embed", "Gather", ["enc.weight", "input"], ["hidden"]),
    ("/emb_g/Gather", "Gather", ["emb_g.weight", "sid"], ["speaker"]),
    ("/flow/Add", "Add", ["hidden", "speaker"], ["frames"]),
    (FIRST_OF_SOUND, "Conv", ["frames", "dec.weight"], ["wide"]),
    ("/dec/cond/Add", "Add", ["wide", "speaker"], ["coloured"]),
    ("/dec/Tanh", "Tanh", ["coloured"], ["output"]),
]
WEIGHTS = ["enc.weight", "emb_g.weight", "dec.weight"]


def voice(nodes: list[tuple[str, str, list[str], list[str]]], *, weights: list[str] = WEIGHTS) -> Any:
    """A model of these nodes (name, operator, inputs, outputs), which nobody could run."""
    model = onnx_cut._model_class()(ir_version=8)
    model.opset_import.add(version=15)
    model.graph.name = "voice"
    for name, operator, inputs, outputs in nodes:
        model.graph.node.add(name=name, op_type=operator, input=inputs, output=outputs)
    for name in weights:
        model.graph.initializer.add(name=name)
    for name in ("input", "scales", "sid"):
        model.graph.input.add(name=name)
    model.graph.output.add(name="output")
    return model


def parts(model: bytes) -> dict[str, list[str]]:
    graph = onnx_cut._model_class().FromString(model).graph
    return {"nodes": [node.name for node in graph.node], "weights": [tensor.name for tensor in graph.initializer],
            "inputs": [value.name for value in graph.input], "outputs": [value.name for value in graph.output]}


def test_each_half_holds_what_it_needs_and_no_more() -> None:
    halves = cut(voice(NODES).SerializeToString())
    assert halves is not None
    assert halves.cut == "frames"
    assert parts(halves.frames) == {"nodes": [name for name, *_ in NODES[:3]], "inputs": ["input", "sid"],
                                    "weights": ["enc.weight", "emb_g.weight"], "outputs": ["frames"]}
    assert parts(halves.sound) == {"nodes": [NODES[1][0], *(name for name, *_ in NODES[3:])],
                                   "weights": ["emb_g.weight", "dec.weight"], "inputs": ["sid", "frames"],
                                   "outputs": ["output"]}


def test_what_is_not_described_here_is_carried_along() -> None:
    # Field 5 of a node are its attributes, 8 of a tensor its name, 9 its bytes.
    model = voice(NODES)
    model.graph.node[3].MergeFromString(bytes([5 << 3 | 2, 3]) + b"abc")
    model.graph.initializer[2].MergeFromString(bytes([9 << 3 | 2, 4]) + b"1234")
    halves = cut(model.SerializeToString())
    assert halves is not None
    assert bytes([5 << 3 | 2, 3]) + b"abc" in halves.sound
    assert bytes([9 << 3 | 2, 4]) + b"1234" in halves.sound
    assert b"abc" not in halves.frames
    assert b"1234" not in halves.frames


@pytest.mark.parametrize("nodes", [
    pytest.param(NODES[:3] + NODES[4:], id="without the layer that sound begins with"),
    pytest.param([*NODES, NODES[3]], id="with two of them"),
    pytest.param([*NODES[:5], ("/dec/Add", "Add", ["coloured", "hidden"], ["output"])],
                 id="with a way for the text round the cut"),
    pytest.param([*NODES[:2], ("/flow/If", "If", ["hidden"], ["frames"]), *NODES[3:]], id="with a graph in a graph"),
])
def test_another_kind_of_voice_stays_whole(nodes: list[tuple[str, str, list[str], list[str]]]) -> None:
    assert cut(voice(nodes).SerializeToString()) is None


@pytest.mark.parametrize("data", [b"", b"no model", b"\x3a\xff\xff\xff\xff\x0f"])
def test_what_is_no_model_stays_whole(data: bytes) -> None:
    assert cut(data) is None
