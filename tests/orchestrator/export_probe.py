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
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
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


def fine_tune(auto_class, folder, answers, **labels):
    """What a head's loading says, and what a step moves and keeps when saved and loaded."""
    inputs = load_file(folder.with_suffix(".safetensors"))
    encoder = load(AutoModel, folder).state_dict()
    model, info = load(auto_class, folder, num_labels=3, output_loading_info=True)
    loaded = model.magic_nas.state_dict()
    equal = sorted(loaded) == sorted(encoder)
    equal = equal and all(loaded[name].equal(tensor) for name, tensor in encoder.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**inputs, **labels).loss.backward()
    optimizer.step()
    saved = answers / folder.name / auto_class.__name__  # its last name is that of another's
    model.save_pretrained(saved)
    again = load(auto_class, saved)
    moved = not again.magic_nas.stem.positions.weight.equal(encoder["stem.positions.weight"])
    with torch.no_grad():
        difference = (again(**inputs)[0] - model(**inputs)[0]).abs().max().item()
    return {
        "missing": sorted(info["missing_keys"]),
        "encoder_equal": equal,
        "moved": moved,
        "difference_after_loading": difference,
        "num_labels": again.config.num_labels,
    }


def fill(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fill_mask = pipeline("fill-mask", model=str(folder), trust_remote_code=True, top_k=3)
    return fill_mask(f"the {tokenizer.mask_token} of the array")


def main(exports, answers):
    model = use(exports / "child", answers)
    use(exports / "custom", answers)
    classes_B = torch.tensor([0, 2, 1])
    spans = {"start_positions": classes_B, "end_positions": classes_B + 1}
    said = {
        "classifier": {
            name: fine_tune(
                AutoModelForSequenceClassification, exports / name, answers, labels=classes_B
            )
            for name in ("child", "custom")
        },
        "spans": fine_tune(AutoModelForQuestionAnswering, exports / "child", answers, **spans),
        "fill_mask": fill(exports / "child"),
        "training": model.training,
        "max_length": AutoTokenizer.from_pretrained(exports / "child").model_max_length,
    }
    (answers / "said.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
