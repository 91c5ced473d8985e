"""Who runs it: jobs, processes, locks, Snakemake, pages and git."""
