"""From a directory in the wild to batches: manifests, audio, tokens, batching, the dataset."""
