"""Composes and checks configurations, and explains errors; imports neither torch nor Lightning."""
