"""From shards to batches: manifest, order, reading, decoding, transforms, loading, packing."""
