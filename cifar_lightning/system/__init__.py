"""Services of the operating system: atomic files, locks, processes, jobs, memory."""
