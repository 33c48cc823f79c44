"""open_clip models in and out, zero-shot heads, and the classifier that is fine-tuned."""
