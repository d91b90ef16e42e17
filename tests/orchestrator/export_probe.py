"""What a stranger does with an export: run on its own, in a Python that lacks magic-nas.

Arguments: the folder of exports, and where the answers go.
"""

import importlib.abc
import json
import sys
from pathlib import Path


class Refuse(importlib.abc.MetaPathFinder):
    """Makes the packages of magic-nas, and the user's own modules, as good as not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in {"supernet", "orchestrator", "evaluators", "user_gate"}:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Refuse())

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    pipeline,
)


def load(auto_class, folder, **settings):
    return auto_class.from_pretrained(folder, trust_remote_code=True, **settings)


def use(folder, answers):
    """Logits and hidden states of one export, and those of the same model saved again."""
    inputs = load_file(folder.with_suffix(".safetensors"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    model = load(AutoModelForMaskedLM, folder)
    again = answers / f"{folder.name}_again"
    model.save_pretrained(again)
    with torch.no_grad():
        tensors = {
            "logits": model(**inputs).logits,
            "as_tuple": model(**inputs, return_dict=False)[0],
            "hidden": load(AutoModel, folder)(**inputs).last_hidden_state,
            "again": load(AutoModelForMaskedLM, again)(**inputs).logits,
        }
    save_file(tensors, answers / f"{folder.name}.safetensors")
    return model


def fill(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fill_mask = pipeline("fill-mask", model=str(folder), trust_remote_code=True, top_k=3)
    return fill_mask(f"the {tokenizer.mask_token} of the array")


def main(exports, answers):
    model = use(exports / "child", answers)
    use(exports / "custom", answers)
    said = {
        "fill_mask": fill(exports / "child"),
        "training": model.training,
        "max_length": AutoTokenizer.from_pretrained(exports / "child").model_max_length,
    }
    (answers / "said.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
