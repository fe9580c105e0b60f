"""MME: masked motion encoding, an experiment-tracked implementation."""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

# OpenMP reads this when torch is imported. A thread that spins while it waits for another one holds the core that the
# other needs: beside one busy process, pretraining by two threads on two cores took 2.6 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _TorchvisionOperators(MetaPathFinder):
    """Lets torchvision's registry build import beside a CPU-only torch.

    timm, torchmetrics and pytorch-lightning import torchvision, whose registry build is compiled against CUDA: beside a
    CPU build of torch its C++ extension does not load, and registering the fake kernels of ``nms`` and ``qnms`` fails
    because the operators do not exist. Nothing here calls them; declaring them is enough. That is done when
    torchvision is first imported, and not before: processes that only decode never load torch.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find nothing; declare the operators as torchvision's import begins."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].__dict__["_operators"] = self.library  # operators live as long as this object
        return None


def _needs_operators() -> bool:
    """Return True if torch is a CPU build and torchvision is not; their versions show it without an import."""
    try:
        return version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return False


if _needs_operators():
    sys.meta_path.insert(0, _TorchvisionOperators())
