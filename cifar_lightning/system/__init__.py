"""What must work before anything of a run does: whole files, locks, processes."""
