"""What `slurm/devcluster` is made of."""
