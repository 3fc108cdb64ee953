"""Composes, checks and explains configurations; imports neither torch nor Lightning."""
