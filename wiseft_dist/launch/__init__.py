"""Where a stage's processes live: on this machine or on Slurm, both through submitit."""
