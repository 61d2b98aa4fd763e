"""Weights in and out: transformers, torchaudio, fairseq and WavLM's own release; one file of key maps for them all."""
