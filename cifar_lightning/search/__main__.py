"""`python -m cifar_lightning.search`."""

from cifar_lightning.search import main

main()
