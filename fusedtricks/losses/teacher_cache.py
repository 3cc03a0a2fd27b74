"""The outputs of a teacher, computed once per sample."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusedtricks._checks import check_module, check_tensor, check_whole
from fusedtricks.nn.model_tensors import restored_modes
from fusedtricks.targets import Targets, as_targets

__all__ = ["TeacherCache"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A state is checked in parts of about this many logits, so that no second one lies in memory.
_PART = 2**22


class TeacherCache:
    """Run a teacher only for samples that it has not seen, and keep its logits by sample index.

    Called as cache(inputs, indices, targets), with the index of every sample in the dataset. The
    logits belong to the inputs of the first call with that index. So a sample has to look the same
    in every epoch: no random crops, flips or colours, and no blends of images. Where there are
    some, run the teacher on every batch, because students learn less from a teacher that saw
    another view of the image than they do.

    It takes `size_bytes` = n_samples * (n_classes * dtype.itemsize + 1) bytes, for the 1,281,167
    images and 1000 classes of ImageNet 5.1 GB in float32. float16 halves that, rounds logits by up
    to 0.05 % and holds none beyond 65504 and -65504.

    Which samples are new is decided on the CPU: indices on a GPU make it wait, and so does what
    moves between a GPU and a cache on the CPU. Each process has its own cache. With several, and
    samples that change places between epochs, fill one and load its state in all.

    Args:
        teacher: Called as teacher(inputs), returns logits of shape (N, n_classes). It is run in
            evaluation mode, without gradients, under the autocast of the caller; its modes come
            back afterwards. Its weights must not change.
        n_samples: Number of samples in the dataset.
        n_classes: K.
        dtype: Of the kept and returned logits: float16, bfloat16, float32 or float64. Default
            float32.
        device: Where they are kept. Default "cpu".

    Attributes:
        size_bytes: Memory that the kept logits take, in bytes.

    Raises:
        ValueError: If a number is below 1.
        TypeError: If `dtype` is another one, `teacher` no module, or a number not whole.

    Example:
        >>> teacher = nn.Linear(4, 3)
        >>> cache = TeacherCache(teacher, n_samples=100, n_classes=3)
        >>> images, indices, labels = torch.ones(2, 4), torch.tensor([7, 42]), torch.tensor([0, 1])
        >>> cache(images, indices, labels).shape, cache.size_bytes
        (torch.Size([2, 3]), 1300)

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
        whose "fixed teacher" this is.
    """

    def __init__(
        self,
        teacher: nn.Module,
        n_samples: int,
        n_classes: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_module("TeacherCache", "teacher", teacher)
        check_whole("TeacherCache", "n_samples", n_samples, 1)
        check_whole("TeacherCache", "n_classes", n_classes, 1)
        if dtype not in _DTYPES:
            choices = ", ".join(map(str, _DTYPES))
            raise TypeError(f"TeacherCache: expected dtype to be one of {choices}, got {dtype}")
        self.teacher = teacher
        # Made in inference mode, they could not be written to outside of it.
        with torch.inference_mode(False):
            self._logits = torch.zeros(n_samples, n_classes, dtype=dtype, device=device)
            self._is_known = torch.zeros(n_samples, dtype=torch.bool, device="cpu")

    @property
    def size_bytes(self) -> int:
        """Memory that the kept logits take, in bytes."""
        return self._logits.nbytes + self._is_known.nbytes

    def __call__(self, inputs: Tensor, indices: Tensor, targets: Tensor | Targets) -> Tensor:
        """Return the teacher's logits for a batch.

        Args:
            inputs: Shape (N, ...): what the teacher is run on.
            indices: Shape (N,), of an integer dtype, 0 to n_samples - 1, best on the CPU.
            targets: What the student is to learn from these inputs, labels or `Targets`. They tell
                whether the images were mixed.

        Returns:
            Shape (N, n_classes), on the device of `inputs`, without gradients.

        Raises:
            ValueError: If the images are, or may be, mixed; if shapes do not fit; if an index is
                out of range; or, for a cache on the CPU, if the teacher's logits are NaN or beyond
                what `dtype` can hold; -inf, of a class that the teacher rules out, is held.
            TypeError: If a dtype does not fit, or something is no tensor.
        """
        # As a decorator, it would make the import of this module that of the compiler.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(self._lookup)(inputs, indices, targets)
        return self._lookup(inputs, indices, targets)

    def _lookup(self, inputs: Tensor, indices: Tensor, targets: Tensor | Targets) -> Tensor:
        check_tensor("TeacherCache", "inputs", inputs)
        check_tensor("TeacherCache", "indices", indices)
        _refuse_mixed(targets, len(inputs))
        indices = self._checked_indices(inputs, indices)
        with torch.inference_mode(False), torch.no_grad():
            new = (~self._is_known[indices]).nonzero()[:, 0]
            if len(new):
                self._add(inputs, indices, new)
            return self._logits[indices.to(self._logits.device)].to(inputs.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept logits and which of them are known; the tensors themselves, no copies."""
        return {"logits": self._logits, "is_known": self._is_known}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over what another cache of the same numbers of samples and classes has kept.

        Raises:
            ValueError: If it is the state of something else, or has logits that are NaN or beyond
                what this cache's `dtype` can hold; nothing has changed then.
            TypeError: If it is no mapping of tensors, or its dtypes are those of something else;
                nothing has changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"TeacherCache: expected state_dict to be what state_dict() returns, got "
                f"{type(state_dict).__name__}"
            )
        for name, value in state_dict.items():
            check_tensor("TeacherCache", f"state_dict[{name!r}]", value)
        own = self.state_dict()
        shapes = {name: list(value.shape) for name, value in state_dict.items()}
        expected = {name: list(value.shape) for name, value in own.items()}
        if shapes != expected:
            raise ValueError(f"TeacherCache: expected a state of shapes {expected}, got {shapes}")
        logits, is_known = state_dict["logits"], state_dict["is_known"]
        if not logits.is_floating_point() or is_known.dtype != torch.bool:
            raise TypeError(
                f"TeacherCache: expected a state with logits of a floating point dtype and "
                f"is_known of torch.bool, got {logits.dtype} and {is_known.dtype}"
            )
        for part in logits.split(max(1, _PART // logits.shape[1])):
            _refuse_overflow(part, part.to(self._logits.dtype))
        self._logits.copy_(logits)
        self._is_known.copy_(is_known)

    def _checked_indices(self, inputs: Tensor, indices: Tensor) -> Tensor:
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise TypeError(
                f"TeacherCache: expected indices of an integer dtype, got {indices.dtype}"
            )
        if indices.ndim != 1 or len(indices) != len(inputs):
            raise ValueError(
                f"TeacherCache: expected one index per input, shape [{len(inputs)}], got "
                f"{list(indices.shape)}"
            )
        indices = indices.to("cpu", torch.int64)
        outside = (indices < 0) | (indices >= len(self._logits))
        if outside.any():
            raise ValueError(
                f"TeacherCache: expected indices from 0 to n_samples - 1 = "
                f"{len(self._logits) - 1}, got {indices[outside][0].item()}"
            )
        return indices

    def _add(self, inputs: Tensor, indices: Tensor, new: Tensor) -> None:
        if len(new) < len(indices):
            inputs, indices = inputs[new.to(inputs.device)], indices[new]
        with restored_modes(self.teacher):
            self.teacher.eval()
            logits = self.teacher(inputs)
        check_tensor("TeacherCache", "the teacher's logits", logits)
        expected = [len(indices), self._logits.shape[1]]
        if list(logits.shape) != expected:
            raise ValueError(
                f"TeacherCache: expected logits of shape {expected} from the teacher, got "
                f"{list(logits.shape)}"
            )
        kept = logits.to(self._logits.dtype)
        # For a cache on a GPU, looking at them would make the host wait.
        if self._logits.device.type == "cpu":
            _refuse_overflow(logits, kept)
        self._logits[indices.to(self._logits.device)] = kept.to(self._logits.device)
        self._is_known[indices] = True


def _refuse_overflow(logits: Tensor, kept: Tensor) -> None:
    lowest, highest = (value.item() for value in kept.aminmax())
    # A logit of -inf is that of a class which the teacher rules out, unless rounding made it.
    fits = highest < torch.inf and (
        lowest > -torch.inf or not ((kept == -torch.inf) & (logits > -torch.inf)).any()
    )
    if not fits:
        largest = torch.finfo(kept.dtype).max
        raise ValueError(
            f"TeacherCache: some of the teacher's logits are NaN, above {largest} or below "
            f"-{largest}, beyond what {kept.dtype} can hold; check the teacher, or use a dtype of "
            "a larger range, such as torch.float32"
        )


def _refuse_mixed(targets: Tensor | Targets, n_samples: int) -> None:
    is_plain = isinstance(targets, Tensor)
    targets = as_targets(targets)
    if len(targets) != n_samples:
        raise ValueError(
            f"TeacherCache: expected targets of the {n_samples} inputs, got {len(targets)}"
        )
    if is_plain and targets.classes is None:
        raise ValueError(
            "TeacherCache: a plain tensor of probabilities does not say whether the images are "
            "mixed; pass Targets(probabilities) if they are not"
        )
    if targets.is_mixed:
        raise ValueError(
            "TeacherCache: the images of this batch are mixed, and the kept logits belong to "
            "unmixed ones; run the teacher on the mixed images instead"
        )
