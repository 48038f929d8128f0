"""What is said of a gradient, a loss, or weights, that are not finite: in logs, tables, reports and errors alike."""

NONFINITE = "nonfinite"  # why an update was not made
MOST_IN_A_ROW = 100  # steps of a worker whose gradients are not finite: then the training fails


def of_loss(worker: int, step: int, value: str) -> str:
    """Whose loss it is, since when, and what (`nan`, `inf`, `-inf`)."""
    return f"worker-{worker}: loss is {value} at step {step}"


def of_gradient(worker: int, step: int, name: str) -> str:
    """Whose gradient it is, of which tensor, and in which step."""
    return f"worker-{worker}: the gradient of {name} is not finite at step {step}"


def of_many(worker: int, count: int, first: str) -> str:
    """A worker whose gradients were not finite in so many steps in a row; `first` says when that began."""
    return f"worker-{worker}: gradients were not finite in {count} steps in a row; {first}"


def of_weights(name: str) -> str:
    """The first tensor that is not finite."""
    return f"the weights are not finite: {name}"
