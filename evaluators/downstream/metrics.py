"""How GLUE scores predictions, by scikit-learn and SciPy; figures are shares, not percentages."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evaluators.downstream.glue import Example
from evaluators.downstream.tasks import Task
from supernet.errors import InvalidInput

Floats = npt.NDArray[np.float64]


def score(
    task: Task, predictions: Sequence[float], references: Sequence[float]
) -> dict[str, float]:
    """The task's metrics (`Task.metrics`), each 1.0 at best.

    Correlations of constant predictions, which are not defined, are 0.0; so are F1 and Matthews
    where a class never occurs. F1 is that of class 1, as GLUE has it.

    Args:
        task: one of GLUE's.
        predictions: (examples,) class numbers, or similarities of STS-B.
        references: (examples,) the labels.

    Raises:
        InvalidInput: if the two differ in length, are empty, or hold what is no class or not
            finite; or if the task is one of spans.
    """
    if task.kind == "spans":
        raise InvalidInput(f"{task.name} is scored by evaluators.downstream.squad_metric")
    predicted_N, true_N = np.asarray(predictions, float), np.asarray(references, float)
    _check(task, predicted_N, true_N)
    return {name: _metric(name, predicted_N, true_N) for name in task.metrics}


def headline(task: Task, scores: Mapping[str, float]) -> float:
    """The task's one figure: the mean of its metrics, as GLUE has it, or F1 of spans."""
    if task.kind == "spans":
        return scores[task.metrics[0]]
    return sum(scores[name] for name in task.metrics) / len(task.metrics)


def majority(task: Task, train: Sequence[Example], dev: Sequence[Example]) -> dict[str, float]:
    """Scores on dev of always saying what train says most, or on average (STS-B).

    Raises:
        InvalidInput: if an example has no label, or there are none.
    """
    known, references = _labels(train), _labels(dev)
    if not known:
        raise InvalidInput("a majority needs examples to train on, but got none")
    if task.kind == "regression":
        constant = sum(known) / len(known)
    else:
        constant = Counter(known).most_common(1)[0][0]
    return score(task, [constant] * len(references), references)


def _labels(examples: Sequence[Example]) -> list[float]:
    labels = [example.label for example in examples if example.label is not None]
    if len(labels) < len(examples):
        raise InvalidInput(
            f"examples must have labels, but {len(examples) - len(labels)} of {len(examples)} "
            "have none; use the train and dev splits"
        )
    return labels


def _check(task: Task, predicted_N: Floats, true_N: Floats) -> None:
    if predicted_N.ndim != 1 or predicted_N.shape != true_N.shape or not len(true_N):
        raise InvalidInput(
            "predictions and references must be of one length, at least 1, but got shapes "
            f"{predicted_N.shape} and {true_N.shape}"
        )
    classes = range(task.num_labels)
    for name, values_N in (("predictions", predicted_N), ("references", true_N)):
        if task.kind == "regression":
            bad_N, allowed = ~np.isfinite(values_N), "finite"
        else:
            bad_N, allowed = ~np.isin(values_N, classes), f"classes from 0 to {classes[-1]}"
        if bad_N.any():
            first = int(bad_N.argmax())
            raise InvalidInput(
                f"{name} of {task.name} must be {allowed}, but number {first} is {values_N[first]}"
            )


def _metric(name: str, predicted_N: Floats, true_N: Floats) -> float:
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(metrics.accuracy_score(true_N, predicted_N))
    if name == "f1":
        return float(metrics.f1_score(true_N, predicted_N, zero_division=0.0))
    if name == "matthews":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where both sides are one and the same class
            return float(metrics.matthews_corrcoef(true_N, predicted_N))
    if np.ptp(predicted_N) == 0 or np.ptp(true_N) == 0:
        return 0.0
    correlation = stats.pearsonr if name == "pearson" else stats.spearmanr
    return float(correlation(predicted_N, true_N).statistic)
