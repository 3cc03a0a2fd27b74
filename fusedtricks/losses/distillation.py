"""Learning from the outputs of a teacher."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from fusedtricks._checks import check_number
from fusedtricks.losses._arguments import (
    check_reduction,
    checked_logits,
    reduced,
)
from fusedtricks.losses.penalties import reduction_of_softmax_loss, unwrapped
from fusedtricks.losses.softmax_loss import cross_entropies
from fusedtricks.targets import Targets

__all__ = ["DistillationLoss", "distillation_loss"]


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy between the softened outputs of a teacher and a student.

    temperature^2 * CE(softmax(teacher_logits / temperature), softmax(student_logits / temperature))

    The gradient of the cross-entropy itself falls with 1 / temperature^2; the factor keeps the
    weight of this loss beside that of the labels. The KL divergence, which timm has here, is
    smaller by temperature^2 times the entropy of the teacher and has the same gradients. None flow
    to the teacher. A class that both rule out, with logits of -inf, counts nothing.

    Args:
        student_logits: Shape (N, K), floating point; 16 bits are computed with in float32.
        teacher_logits: Of the same shape, floating point: for the same images as the student saw,
            mixed and cropped alike.
        temperature: Above 0; larger is softer.
        reduction: "none" for shape (N,), "mean" or "sum" for a scalar. Default "mean".

    Returns:
        The loss, in float32, or float64 for student_logits in float64.

    Raises:
        ValueError: If shapes differ, or an option is out of range.
        TypeError: If logits are no tensor or not floating point, or an option is no number.

    Example:
        >>> import torch
        >>> distillation_loss(torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 0.0]]), temperature=2.0)
        tensor(4.3944)

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", sections 2 and 2.1.
    """
    check_reduction("distillation_loss", reduction)
    check_number("distillation_loss", "temperature", temperature, above=0)
    student_logits = checked_logits("distillation_loss", student_logits, "student_logits")
    teacher_logits = checked_logits("distillation_loss", teacher_logits, "teacher_logits")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"distillation_loss: expected teacher_logits of the student's shape "
            f"{list(student_logits.shape)}, got {list(teacher_logits.shape)}"
        )
    teacher_logits = teacher_logits.detach().to(student_logits.dtype)
    teacher = functional.softmax(teacher_logits / temperature, dim=1)
    losses = cross_entropies(student_logits / temperature, Targets(teacher), 0)
    return temperature**2 * reduced(losses, reduction)


class DistillationLoss(nn.Module):
    """A loss on labels plus one on the outputs of a teacher.

    hard_weight * loss(student_logits, targets)
    + soft_weight * distillation_loss(student_logits, teacher_logits)

    Called as loss(student_logits, teacher_logits, targets). The soft part is reduced as the hard
    one is: as `loss.reduction` says, or the reduction of a functools.partial, or else to its mean.
    For the soft part alone there is `distillation_loss`.

    Args:
        loss: The hard part, called as loss(logits, targets); a softmax loss, such as
            `CrossEntropyLoss`.
        temperature: Above 0; larger is softer. He et al. use 20.
        hard_weight: At least 0. Default 1.
        soft_weight: At least 0. Default 1.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If `loss` is a binary cross-entropy: the logits of one student would be those of
            K sigmoids in one part and of a softmax in the other. If it takes log-probabilities, as
            NLLLoss does, or is a class; or if an option is no number.

    Example:
        >>> from fusedtricks.losses import CrossEntropyLoss
        >>> DistillationLoss(CrossEntropyLoss(), temperature=20.0)
        DistillationLoss(
          temperature=20.0, hard_weight=1.0, soft_weight=1.0
          (loss): CrossEntropyLoss(label_smoothing=0.0, reduction='mean')
        )

    Source: He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural
        Networks", section 5.3; Hinton et al. 2015, as of `distillation_loss`, for the weights.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor | Targets], Tensor],
        temperature: float,
        *,
        hard_weight: float = 1.0,
        soft_weight: float = 1.0,
    ) -> None:
        reduction = reduction_of_softmax_loss("DistillationLoss", loss)
        inner = unwrapped(loss)
        if isinstance(inner, nn.NLLLoss) or inner is functional.nll_loss:
            name = getattr(inner, "__name__", type(inner).__name__)
            raise TypeError(
                f"DistillationLoss: expected a loss of logits, got {name}, which takes "
                "log-probabilities; use CrossEntropyLoss"
            )
        check_number("DistillationLoss", "temperature", temperature, above=0)
        check_number("DistillationLoss", "hard_weight", hard_weight, low=0)
        check_number("DistillationLoss", "soft_weight", soft_weight, low=0)
        super().__init__()
        self.loss = loss
        self.temperature = float(temperature)
        self.hard_weight = float(hard_weight)
        self.soft_weight = float(soft_weight)
        self.reduction = reduction

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | Targets
    ) -> Tensor:
        """Return the loss of two tensors of shape (N, K), for the targets that `loss` takes."""
        soft_loss = distillation_loss(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            reduction=self.reduction,
        )
        return self.hard_weight * self.loss(student_logits, targets) + self.soft_weight * soft_loss

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"temperature={self.temperature}, hard_weight={self.hard_weight}, "
            f"soft_weight={self.soft_weight}"
        )
