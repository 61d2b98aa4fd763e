"""Speech to text with a fine-tuned encoder: decode (greedy CTC) and score (WER, CER)."""
