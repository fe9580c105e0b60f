"""MME: masked motion encoding, an experiment-tracked implementation."""

from importlib.metadata import PackageNotFoundError, version


def _declare_torchvision_operators() -> None:
    """Let torchvision's registry build import beside a CPU-only torch.

    timm, torchmetrics and pytorch-lightning import torchvision, whose registry build is compiled against CUDA: beside a
    CPU build of torch its C++ extension does not load, and registering the fake kernels of ``nms`` and ``qnms`` fails
    because the operators do not exist. Nothing here calls them; declaring them is enough. It is done only where the
    installed torch is a CPU build, which its version tells without importing it.
    """
    try:
        if not version("torch").endswith("+cpu") or version("torchvision").endswith("+cpu"):
            return
    except PackageNotFoundError:
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_torchvision_operators"] = library  # operators live as long as their library object


_declare_torchvision_operators()
