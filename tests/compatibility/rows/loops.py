"""How training loops are written."""

from tests.compatibility.table import Row

START = """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer = paceline.distribute(model, optimizer)
"""

LOOPS = [
    Row("gradient accumulation", START + """
for step in range(STEPS):
    optimizer.zero_grad()
    for micro in range(3):
        x, y = batch(10 * step + micro)
        (F.cross_entropy(model(x), y) / 3).backward()
    optimizer.step()
"""),
    Row("gradient accumulation in `paceline.no_sync()`", START + """
for step in range(STEPS):
    optimizer.zero_grad()
    with paceline.no_sync():
        for micro in range(2):
            x, y = batch(10 * step + micro)
            (F.cross_entropy(model(x), y) / 3).backward()
    x, y = batch(10 * step + 2)
    (F.cross_entropy(model(x), y) / 3).backward()
    optimizer.step()
"""),
    Row("every backward pass in `paceline.no_sync()`", START + """
for step in range(STEPS):
    optimizer.zero_grad()
    with paceline.no_sync():
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""),
    Row("several losses with `retain_graph=True`", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    out = model(x)
    F.cross_entropy(out, y).backward(retain_graph=True)
    (0.1 * out.square().mean()).backward()
    optimizer.step()
"""),
    Row("`zero_grad(set_to_none=False)`", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad(set_to_none=False)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
"""),
    Row("gradients added up over steps, never zeroed", START + """
for step in range(STEPS):
    x, y = batch(step)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
""", compared={"AllReduce": True}),
    Row("gradients by `torch.autograd.grad`", START + """
for step in range(STEPS):
    x, y = batch(step)
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient
    optimizer.step()
"""),
    Row("a closure", START + """
for step in range(STEPS):
    x, y = batch(step)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss
    assert optimizer.step(closure) is not None
"""),
    Row("a gradient penalty (double backward)", START + """
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    x.requires_grad_()
    loss = F.cross_entropy(model(x), y)
    slope, = torch.autograd.grad(loss * len(x), x, create_graph=True)
    (loss + slope.square().sum(1).mean()).backward()
    optimizer.step()
"""),
    Row("evaluation on rank 0", START + """
def after(step):
    if R == 0:
        model.eval()
        with torch.no_grad():
            model(draw(99)[0])
        model.train()
train(model, optimizer, after=after)
"""),
    Row("forward passes with gradients and without a step, on rank 0", START + """
def after(step):
    if R == 0:
        model(draw(99)[0])
train(model, optimizer, after=after)
"""),
    Row("stopping early, decided on the mean over all workers", START + """
for step in range(100):
    x, y = batch(step % 2, n=6)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    mean = loss.item() if MODE == "Asynchronous" else paceline.mean(loss.item())
    if mean < 0.9:
        break
result = step
"""),
    Row("stopping early on one worker alone", START + """
train(model, optimizer, steps=range(STEPS if R == 0 else 2))
""", compared={"Synchronous": False}, alike=False,
        refused={"AllReduce": "left before step 3: in a ring every worker must make the same number of steps"},
        note="Synchronous: the others go on without it"),
    Row("ReduceLROnPlateau on the mean over all workers", START + """
schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
for step in range(STEPS):
    x, y = batch(step)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    schedule.step(loss.item() if MODE == "Asynchronous" else paceline.mean(loss.item()))
result = optimizer.param_groups[0]["lr"]
assert result < 0.1
"""),
    Row("values of all workers (`paceline.all_gather`, `paceline.mean`)", START + """
if MODE != "Asynchronous":
    assert paceline.all_gather({"rank": R}) == [{"rank": r} for r in range(W)]
    assert paceline.mean(float(R)) == (W - 1) / 2
    assert torch.equal(paceline.mean(torch.full((3,), float(R))), torch.full((3,), (W - 1) / 2))
train(model, optimizer)
"""),
    Row("an average of the weights (`AveragedModel`, EMA)", START + """
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
train(model, optimizer, after=lambda step: average.update_parameters(model))
models = [model, average.module]
""", saved=False),
    Row("weights swapped for an evaluation, and back", START + """
def after(step):
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v * 0.5 for k, v in kept.items()})
    model(draw(99)[0])
    model.load_state_dict(kept)
train(model, optimizer, after=after)
"""),
    Row("hooks on gradients (`parameter.register_hook`)", START + """
for parameter in model.parameters():
    parameter.register_hook(lambda gradient: gradient * 0.5)
train(model, optimizer)
"""),
    Row("hooks on the optimizer", START + """
calls = []
optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
optimizer.register_step_post_hook(lambda *_: calls.append("after"))
train(model, optimizer)
result = len(calls)
"""),
    Row("the same script run by hand, alone", """
model = net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
assert ALONE or W == 2
assert paceline.distribute(model, optimizer) == (model, optimizer)
train(model, optimizer)
"""),
]  # fmt: skip
