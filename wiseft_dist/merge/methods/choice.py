"""The method that the settings ask for."""

from __future__ import annotations

from wiseft_dist.config.sections import MergeConfig
from wiseft_dist.merge.methods.dare import Dare
from wiseft_dist.merge.methods.fisher import Fisher
from wiseft_dist.merge.methods.layers import Layers
from wiseft_dist.merge.methods.method import Method
from wiseft_dist.merge.methods.model_stock import ModelStock
from wiseft_dist.merge.methods.slerp import Slerp
from wiseft_dist.merge.methods.task_arithmetic import TaskArithmetic
from wiseft_dist.merge.methods.ties import Ties
from wiseft_dist.merge.methods.uniform_soup import UniformSoup
from wiseft_dist.merge.methods.wise import Wise


def make_method(settings: MergeConfig) -> Method:
    """The method, with its settings and with the alphas of layers around it.

    A greedy soup is a uniform one of the models that were chosen for it. A method that cannot merge the models at hand
    says so when it begins or concludes its statistics.
    """
    method = _plain_method(settings)
    if settings.layers or settings.lines is not None:
        method = Layers(method, settings.layers, settings.lines)
    return method


def _plain_method(settings: MergeConfig) -> Method:
    match settings.method:
        case "wise":
            return Wise()
        case "slerp":
            return Slerp()
        case "uniform_soup" | "greedy_soup":
            return UniformSoup(settings.method)
        case "model_stock":
            return ModelStock()
        case "task_arithmetic":
            return TaskArithmetic()
        case "ties":
            return Ties() if settings.density is None else Ties(settings.density)
        case "dare":
            return Dare(seed=settings.seed) if settings.density is None else Dare(settings.density, settings.seed)
        case "fisher":
            return Fisher()
