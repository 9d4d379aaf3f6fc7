"""Optimal transport between clips and captions as a measure: Eq. (2), (4) and (6)."""

from __future__ import annotations

from numbers import Real
from typing import final

import torch
from torch import Tensor

from norton_losses._checks import check_choice, check_positive
from norton_losses._numerics import full_precision, is_traced
from norton_losses._typing import TransportObjective
from norton_losses.prompt_bucket import PromptBucket
from norton_losses.sequence_measures.measure import AbstractSequenceMeasure, MeasureOutput
from norton_losses.similarity_block import SimilarityBlock
from norton_losses.sinkhorn import AbstractSinkhorn, TransportPlan, TransportProblem, resolve


def transport_score(plan: TransportPlan, *, conserve_mass: bool = True) -> Tensor:
    r"""Mean similarity over the mass that a plan moves between real clips and captions.

    .. math:: \langle Q, S \rangle / \sum Q \quad \text{over the core, without the bucket}

    With ``conserve_mass=False`` it is :math:`2 \langle Q, S \rangle` where there is a bucket, which
    takes half of the total mass of 1 or more, and :math:`\langle Q, S \rangle` where there is none:
    what goes to the bucket then scores 0.

    Args:
        plan: of problems (..., n, m), solved with a total mass of 1.
        conserve_mass: divide by the mass of the core.

    Returns:
        (...), with the gradient of the scores, the plan held fixed; 0 for an empty problem.

    Source: Eq. (4) of Lin et al., ICLR 2024; the division is the released implementation's.

    Example:
        >>> import torch
        >>> from norton_losses import TorchSinkhorn, TransportProblem
        >>> from norton_losses.functional import transport_score
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> problem = TransportProblem(torch.eye(2), half, half, epsilon=0.01)
        >>> transport_score(TorchSinkhorn().solve(problem))   # all the mass is on the diagonal
        tensor(1.)
    """
    log_core, scores = plan.log_plan, plan.problem.scores
    if plan.problem.has_bucket:
        log_core, scores = log_core[..., :-1, :-1], scores[..., :-1, :-1]
    if not conserve_mass:
        scores = 2 * scores if plan.problem.has_bucket else scores
        return (log_core.exp() * scores).sum((-2, -1))
    # Over its largest entry, since a core may hold less mass than the dtype's smallest number.
    largest = log_core.detach().amax((-2, -1), keepdim=True)
    core = (log_core - largest.masked_fill(largest == -torch.inf, 0)).exp()
    mass = core.sum((-2, -1))
    return (core * scores).sum((-2, -1)) / mass.masked_fill(mass == 0, 1)


def entropic_score(plan: TransportPlan) -> Tensor:
    r"""Value of the whole problem, smooth in the similarity, with an exact gradient.

    .. math:: \langle Q, S \rangle - \varepsilon \, KL(Q \,|\, \mu \otimes \nu)

    Its gradient is the plan (Danskin's theorem), once the plan has converged.

    Args:
        plan: of problems (..., n, m).

    Returns:
        (...), with the gradient of the scores; 0 for an empty problem.

    Source: Eq. (2) of Lin et al., ICLR 2024, up to a constant of the marginals.

    Example:
        >>> import torch
        >>> from norton_losses import TorchSinkhorn, TransportProblem
        >>> from norton_losses.functional import entropic_score
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> problem = TransportProblem(torch.full((2, 2), 0.7), half, half, epsilon=0.1)
        >>> entropic_score(TorchSinkhorn().solve(problem))    # a constant scores itself
        tensor(0.7000)
    """
    problem, coupling = plan.problem, plan.plan
    log_independent = problem.log_mu[..., :, None] + problem.log_nu[..., None, :]
    absent = log_independent == -torch.inf
    log_ratio = (plan.log_plan - log_independent.detach()).masked_fill(absent, 0)
    # Both measures have the same mass, so KL has no further term; 0 log 0 is 0.
    relative = torch.where(coupling > 0, coupling * log_ratio, 0)
    return plan.score - problem.epsilon * relative.sum((-2, -1))


@final
class TransportMeasure(AbstractSequenceMeasure):
    """Optimal transport between the clips of a video and the captions of a paragraph.

    Builds the problem of Eq. (2), with the prompt bucket of Eq. (6), for every video with every
    paragraph, solves it, and scores the plan. Captions are updated first and clips last, as in the
    released implementation, so before convergence the clips' marginals are the exact ones.

    Args:
        epsilon: strength of the entropy, in units of similarity.
        bucket: a :class:`PromptBucket`, a number (its ratio), or None for no bucket.
        sinkhorn: a solver, or its name, see :func:`norton_losses.sinkhorn.resolve`.
        conserve_mass: for ``objective="similarity"`` alone, see :func:`transport_score`.
        objective: ``"similarity"`` is :func:`transport_score`; ``"entropic"`` is
            :func:`entropic_score` of the whole problem: it counts the bucket's mass at p and
            subtracts the entropy term, so it runs lower and may want a lower temperature.

    Raises:
        ValueError: ``epsilon`` not above 0, a ratio outside [0, 1], an unknown name; a learnable
            bucket whose gradient would be zero.

    Source: Eq. (2), (4), (6) of Lin et al., ICLR 2024.

    Example:
        >>> import torch
        >>> from norton_losses import TransportMeasure
        >>> similarity = torch.eye(4).expand(2, 2, 4, 4)
        >>> TransportMeasure(epsilon=0.05, bucket=None)(similarity)
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        bucket: PromptBucket | float | None = 0.3,
        sinkhorn: str | AbstractSinkhorn = "auto",
        *,
        conserve_mass: bool = True,
        objective: TransportObjective = "similarity",
    ) -> None:
        super().__init__()
        check_positive("epsilon", epsilon)
        check_choice("objective", objective, ("similarity", "entropic"))
        self.epsilon = epsilon
        if bucket is not None and not isinstance(bucket, PromptBucket):
            if isinstance(bucket, bool) or not isinstance(bucket, Real):
                raise TypeError(
                    "bucket must be a PromptBucket, a ratio in [0, 1], or None for no bucket, got "
                    f"{bucket!r}"
                )
            bucket = PromptBucket(float(bucket))
        self.bucket = bucket
        self.sinkhorn = resolve(sinkhorn)
        learnable = isinstance(bucket, PromptBucket) and bucket.offset is not None
        if learnable and objective == "similarity" and self.sinkhorn.plan_gradient == "detached":
            raise ValueError(
                "a learnable bucket enters the score by the plan alone, and this plan carries no "
                'gradient; build the measure with objective="entropic", or with '
                'sinkhorn=TorchSinkhorn(plan_gradient="implicit")'
            )
        self.conserve_mass = conserve_mass
        self.objective: TransportObjective = objective

    def evaluate(self, block: SimilarityBlock) -> MeasureOutput:
        with full_precision(block.raw):
            if self.bucket is None:
                bv, bt, n, m = block.raw.shape
                masks = block.clips.expand(bv, bt, n), block.captions.expand(bv, bt, m)
                problem = TransportProblem.uniform(
                    block.raw, *masks, self.epsilon, score_range=block.bounds
                )
            else:
                problem = self.bucket(block, self.epsilon)
            p = problem.bucket_value
            problem = self.sinkhorn.with_digits(problem, self._spread(problem, block))
            plan = self.sinkhorn.solve(problem.T).T
            if self.objective == "entropic":
                score = entropic_score(plan)
            else:
                score = transport_score(plan, conserve_mass=self.conserve_mass)
        score = score.to(block.raw.dtype)
        return MeasureOutput(score, plan, bucket_value=None if p is None else p.detach())

    def bucket_value(self, block: SimilarityBlock) -> Tensor | None:
        return None if self.bucket is None else self.bucket(block, self.epsilon).bucket_value

    def _spread(self, problem: TransportProblem, block: SimilarityBlock) -> float | None:
        """How far apart the scores are known to be; the CPU may look at them."""
        if problem.spread is not None:
            return problem.spread
        if block.bounds is not None and self.bucket is not None:
            # A learned offset, whose range nobody knows, begins at 0.
            value = block.bounds[0] if self.bucket.value is None else self.bucket.value
            return max(block.bounds[1], value) - min(block.bounds[0], value)
        look = problem.scores.is_cpu and not is_traced(problem.scores)
        return problem.look_for_spread() if look else None

    def for_retrieval(self, bucket_value: float | None = None) -> TransportMeasure:
        """The same measure with a fixed bucket value, or with no bucket.

        A bucket with a ratio takes its value from the batch: in retrieval a pair's score would
        depend on the other candidates.
        """
        bucket = None if bucket_value is None else PromptBucket(value=bucket_value)
        return TransportMeasure(
            self.epsilon,
            bucket,
            self.sinkhorn,
            conserve_mass=self.conserve_mass,
            objective=self.objective,
        )

    def extra_repr(self) -> str:
        return (
            f"epsilon={self.epsilon}, sinkhorn={self.sinkhorn}, "
            f"conserve_mass={self.conserve_mass}, objective={self.objective!r}"
        )
