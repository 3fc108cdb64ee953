"""`python -m cifar_lightning.report`."""

from cifar_lightning.report import main

main()
