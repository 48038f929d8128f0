"""What a script sets for its own tensors (device, dtype, modes of autograd) is not what ours are made by."""

import ast
from pathlib import Path

import pytest

import paceline

from .conftest import Run

SOURCE = Path(paceline.__file__).parent
MAKERS = {  # what torch.set_default_device and set_default_dtype change
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
    "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
SCRIPT = """
import contextlib, torch, paceline
torch.manual_seed(0)
torch.set_num_threads(1)
BEFORE
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(300, 40), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 4)
        self.frozen, self.unused = torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(30, 30)
    def forward(self, x):
        return self.frozen(self.last(torch.relu(self.norm(self.first(x)))))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
with CONTEXT:
    model, optimizer = paceline.distribute(model, optimizer)
AFTER
for step in range(6):
    x = torch.randn(8, 300, device="cpu")
    optimizer.zero_grad()
    loss = model(x).square().mean()
    if step > 3:
        loss = loss + model.unused(x[:, :30]).square().mean()
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss)
print("gathered", paceline.mean(torch.ones(2, device="cpu")).tolist(), len(paceline.all_gather(torch.zeros(0, device="cpu"))))
"""
STRATEGIES = ["Synchronous", "AllReduce"]


def test_every_tensor_of_ours_names_its_device_and_dtype() -> None:
    bare = [
        f"{file.relative_to(SOURCE)}:{node.lineno}: torch.{node.func.attr}"
        for file in SOURCE.rglob("*.py")
        if "examples" not in file.parts
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if not {"device", "dtype"} <= {k.arg for k in node.keywords}
    ]
    assert bare == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_script_may_set_a_default_device(strategy: str, run: Run) -> None:
    text = SCRIPT.replace("BEFORE", "").replace("CONTEXT", "torch.device('meta')")
    outcome = run(
        text.replace("AFTER", "torch.set_default_device('meta')"), strategy=strategy, gradients={"bucketMib": 0.02}
    )
    assert outcome.code == 0, outcome.output
    assert "[worker-1] gathered [1.0, 1.0] 2" in outcome.output


@pytest.mark.slow
def test_a_script_may_join_in_inference_mode_with_another_dtype(run: Run) -> None:
    before = "torch.set_default_dtype(torch.float64); torch.use_deterministic_algorithms(True)"
    text = SCRIPT.replace("BEFORE", before).replace("CONTEXT", "torch.inference_mode()").replace("AFTER", "")
    outcome = run(text, strategy="AllReduce", gradients={"bucketMib": 0.02})
    assert outcome.code == 0, outcome.output
