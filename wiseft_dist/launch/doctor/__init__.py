"""What works here: this machine, the stores and files of a run, Slurm, and a node of each of its partitions."""
