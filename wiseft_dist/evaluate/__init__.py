"""From ensembles to accuracies: one decode for every alpha, cells on disk, the choice of alpha."""
