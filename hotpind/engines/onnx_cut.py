"""Cuts a Piper voice in two: from text to latent frames, and from those to sound.

The second half, HiFi-GAN, is convolutions only: it can turn some frames at a time into sound while the rest waits, and
what it needs besides them is a few neighbours. So the first sound does not wait for the whole clause.

A voice is an ONNX file (https://onnx.ai, ``onnx.proto``), a protobuf message. Only the fields that the cut needs are
described here; protobuf carries the others along as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

FIRST_OF_SOUND = "/dec/conv_pre/Conv"
"""HiFi-GAN's first layer, as Piper's export names it; its first input are the latent frames."""
SUBGRAPHS = {"If", "Loop", "Scan"}
"""Operators that hold graphs of their own, which may use tensors that they do not list."""
SPEAKER = "sid"
"""Input of voices with several speakers; both halves want it."""
FLOAT = 1
"""``TensorProto.DataType.FLOAT``."""

_FIELDS: dict[str, tuple[tuple[str, int, type | str, bool], ...]] = {
    "Dimension": (),
    "Shape": (("dim", 1, "Dimension", True),),
    "TensorType": (("elem_type", 1, int, False), ("shape", 2, "Shape", False)),
    "Type": (("tensor_type", 1, "TensorType", False),),
    "Value": (("name", 1, str, False), ("type", 2, "Type", False)),
    "Tensor": (("name", 8, str, False),),
    "Node": (("input", 1, str, True), ("output", 2, str, True), ("name", 3, str, False), ("op_type", 4, str, False)),
    "Graph": (("node", 1, "Node", True), ("name", 2, str, False), ("initializer", 5, "Tensor", True),
              ("input", 11, "Value", True), ("output", 12, "Value", True)),
    "Opset": (("domain", 1, str, False), ("version", 2, int, False)),
    "Model": (("ir_version", 1, int, False), ("graph", 7, "Graph", False), ("opset_import", 8, "Opset", True)),
}
"""Per message the fields (name, number, type, repeated) of ``onnx.proto`` that are read or written here."""


@dataclass(frozen=True, slots=True)
class Halves:
    """A voice in two ONNX models."""

    frames: bytes
    """Text to latent frames, shape (1, channels, frames)."""
    sound: bytes
    """Latent frames to audio, shape (1, 1, samples)."""
    cut: str
    """Name of the tensor in between: the first model's output, an input of the second."""


def cut(voice: bytes) -> Halves | None:
    """Return the halves of a voice (the bytes of an ONNX file); None when it is not built as Piper's are."""
    try:
        model = _model_class().FromString(voice)
    except DecodeError:
        return None
    graph = model.graph
    first = [node for node in graph.node if node.name == FIRST_OF_SOUND]
    if len(first) != 1 or not graph.output or any(node.op_type in SUBGRAPHS for node in graph.node):
        return None
    between = first[0].input[0]
    frames, sound = _part(model, between), _part(model, graph.output[0].name, given=between)
    sound.graph.output.append(graph.output[0])
    for value in (frames.graph.output.add(name=between), sound.graph.input.add(name=between)):
        value.type.tensor_type.elem_type = FLOAT
        for _ in range(3):
            value.type.tensor_type.shape.dim.add()
    if {value.name for value in sound.graph.input} - {between, SPEAKER}:
        # Something of the text leads round the cut.
        return None
    return Halves(frames.SerializeToString(), sound.SerializeToString(), between)


def _part(model: Any, wanted: str, given: str = "") -> Any:
    """Return a model of what leads to the ``wanted`` tensor, from the inputs and a ``given`` one; without outputs."""
    graph = model.graph
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    needed, kept, todo = {given}, set(), [wanted]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            if name in makers:
                kept.add(makers[name])
                todo += graph.node[makers[name]].input
    part = type(model)(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = graph.name
    part.graph.node.extend(node for at, node in enumerate(graph.node) if at in kept)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    part.graph.input.extend(value for value in graph.input if value.name in needed)
    return part


def _model_class() -> Any:
    """Make the class of ``ModelProto`` with the fields above."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="hotpind/onnx.proto", package="hotpind.onnx", syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = described.field.add(name=name, number=number,
                                        label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL)
            if isinstance(kind, str):
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".hotpind.onnx.{kind}"
            else:
                field.type = kinds.TYPE_STRING if kind is str else kinds.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("hotpind.onnx.Model"))
