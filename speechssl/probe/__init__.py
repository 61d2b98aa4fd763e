"""What a frozen encoder knows: pooled features of every layer, small classifiers on them, and their baselines."""
