"""The training step: LightningModule, augmentation, optimizers, metrics and callbacks."""
