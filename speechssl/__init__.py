"""speechssl: pretrain speech encoders on unlabelled audio, fine-tune them with minutes of labels."""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str):
    # Importing speechssl stays light: torch is loaded only when an encoder is asked for.
    if name == "load_encoder":
        return import_module("speechssl.extract").load_encoder
    raise AttributeError(f"module 'speechssl' has no attribute {name!r}")
