"""Operating system services: atomic files, locks, processes, jobs, memory."""
