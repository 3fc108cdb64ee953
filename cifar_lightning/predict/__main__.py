"""`python -m cifar_lightning.predict`."""

from cifar_lightning.predict import main

main()
