"""`python -m cifar_lightning.dashboard`."""

from cifar_lightning.dashboard import main

main()
