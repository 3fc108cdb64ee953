"""Sweeps (`-m`): every job in a process of its own, a summary at the end, and `resume_sweep=`."""
