"""`python -m cifar_lightning.new`."""

from cifar_lightning.new import main

main()
