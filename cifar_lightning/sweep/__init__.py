"""Sweeps (`-m`): each job in its own process, a summary at the end, and `resume_sweep=`."""
