"""Writing a trained model as one ONNX file that needs nothing beside it."""

import io
import json
import logging
import warnings
from pathlib import Path

import onnx
import torch

from braintumor.deployed import Inference
from braintumor.files import replacing_file
from braintumor.predictor import INPUT, OUTPUTS


def save_onnx(
    module: Inference, size: int, classes: tuple[str, ...], preprocess: dict, temperature: float, file: Path
) -> None:
    """Export a model; input is uint8 of shape (n, 1, size, size), outputs are logits and novelty.

    Parameters
    ----------
    module : Inference
    size : int
        Side of the images, in pixels.
    classes, preprocess, temperature
        See `braintumor.predictor.Predictor`; they go into the file's metadata as json.
    file : Path
    """
    images = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    buffer = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # the exporter's, of its own inside
        program = torch.onnx.export(
            module,
            (images,),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            dynamo=True,
            verbose=False,
        )
    program.save(buffer)
    model = onnx.load_from_string(buffer.getvalue())
    # The exporter notes where in which file each step comes from, which differs from machine to machine.
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    about = {"classes": list(classes), "preprocess": preprocess, "temperature": temperature}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    onnx.checker.check_model(model)
    with replacing_file(file) as beside:
        onnx.save(model, beside)
