"""`python -m wiseft_dist` is the `wiseft` command, for torchrun and srun."""

from wiseft_dist.cli import main

main()
