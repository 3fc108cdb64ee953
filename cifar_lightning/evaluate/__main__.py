"""`python -m cifar_lightning.evaluate`."""

from cifar_lightning.evaluate import main

main()
