"""Building blocks: they import torch and nothing of ours but each other."""
