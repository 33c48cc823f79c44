"""From zero-shot and fine-tuned weights to ensembles: sources, arithmetic, writing, and ensembles in memory."""
