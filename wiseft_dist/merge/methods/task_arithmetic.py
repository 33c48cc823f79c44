"""Task arithmetic: the sum of what each fine-tuning changed."""

from __future__ import annotations

from torch import Tensor

from wiseft_dist.merge.methods.endpoint import EndpointMethod, add_task_vector, task_vectors
from wiseft_dist.merge.methods.method import Slices


class TaskArithmetic(EndpointMethod):
    """``theta_0 + alpha sum_i (theta_i - theta_0)``.

    Source: Editing models with task arithmetic (arXiv 2212.04089), section 2.
    """

    name = "task_arithmetic"

    def endpoint(self, slices: Slices) -> Tensor:
        """theta_0 with all task vectors added."""
        vectors = task_vectors(slices)
        total = next(vectors)
        for vector in vectors:
            total += vector
        return add_task_vector(slices.models[0], total)
