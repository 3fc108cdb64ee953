"""`python -m cifar_lightning.export`."""

from cifar_lightning.export import main

main()
