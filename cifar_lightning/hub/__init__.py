"""Shares trained networks on the Hugging Face Hub.

    from cifar_lightning.hub import HubModel

    HubModel.from_checkpoint("runs/train/…/checkpoints/best.ckpt").push_to_hub("OWNER/NAME")
    model = HubModel.from_pretrained("OWNER/NAME")

docs/how-to/share.md has more.
"""

from cifar_lightning.errors import how_to_install

try:
    import huggingface_hub  # noqa: F401  # says what brings it
except ImportError as error:
    raise ImportError(
        f"HubModel needs huggingface_hub, which cannot be imported here: {error}. "
        f"{how_to_install('hub')}"
    ) from error

from cifar_lightning.hub.model import HubModel

__all__ = ["HubModel"]
