"""Names of the files with weights.

The script's first model is in weights.safetensors, a second one (of a GAN, say) in weights-1.safetensors.
"""

FILE = "weights.safetensors"


def file(model: int) -> str:
    """Name of the file with the weights of the script's model number `model`."""
    return f"weights-{model}.safetensors" if model else FILE


def signature_file(pair: int = 0) -> str:
    """Name of the file that describes a pair of a model and an optimizer."""
    return f"signature-{pair}.json" if pair else "signature.json"


def shard_file(ordinal: int | str, pair: int = 0) -> str:
    """Name of one shard's file; its tensors are named `index:start` (optimizer order, first element) or by name."""
    return f"weights-ps-{ordinal}{f'.{pair}' if pair else ''}.safetensors"
