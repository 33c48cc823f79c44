"""`wiseft shards pack`: what a source holds, how its samples are dealt to shards, and the processes that write them."""
