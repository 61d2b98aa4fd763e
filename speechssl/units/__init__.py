"""Frame features -> k-means -> units, the targets of HuBERT and WavLM."""
