"""What a stranger does with an ONNX file: run on its own, in a Python without magic-nas or torch.

Arguments: the file, the inputs as safetensors, and where the outputs go.
"""

import importlib.abc
import sys

REFUSED = {"supernet", "orchestrator", "evaluators", "torch", "transformers", "onnx"}


class Refuse(importlib.abc.MetaPathFinder):
    """Makes these packages as good as not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Refuse())

import onnxruntime  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
found = session.run(None, load_file(sys.argv[2]))
names = [given.name for given in session.get_outputs()]
save_file(dict(zip(names, found, strict=True)), sys.argv[3])
