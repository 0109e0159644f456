"""How products are rounded, and where double precision exists."""

import pytest
import torch

import lit_grok
from callbacks.base import where_double_exists
from lit_grok.trainer import Trainer


@pytest.fixture
def _precision():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_and_convolutions_are_rounded_alike(precision):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, matmul_precision=precision)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == (precision != "highest")


def test_the_results_say_which(command):
    run = command.mod_add("trainer.matmul_precision=high", "run_dir=high")
    assert lit_grok.open_run(run).attrs["matmul_precision"] == "high"
    assert lit_grok.open_run(command.mod_add()).attrs["matmul_precision"] == "highest"


def test_a_misspelt_precision(command):
    error = command("task=mod_add", "trainer.matmul_precision=hihg").err
    assert error == "error: trainer.matmul_precision=hihg: must be one of highest, high, medium\n"


class NoDouble:
    """A tensor on a device of this kind, as far as it is looked at."""

    def __init__(self, kind):
        self.device = torch.device(kind)

    def cpu(self):
        return "on the CPU"


def test_what_needs_double_precision_leaves_apples_gpus():
    assert where_double_exists(NoDouble("mps")) == "on the CPU"
    for kind in ("cpu", "cuda"):
        tensor = NoDouble(kind)
        assert where_double_exists(tensor) is tensor
