"""A run folder belongs to one run, and to one process at a time."""

from __future__ import annotations

from pathlib import Path

import filelock

from speechssl.config import Config, ConfigError, read_run, write

HARMLESS = {"data.workers", "data.max_bad_share", "name", "about"}  # keys that may change when a run goes on
HARMLESS |= {"train.log_every", "train.valid_every", "train.save_every", "train.save_minutes", "train.keep"}
HARMLESS |= {"train.threads", "train.trackers", "train.max_skipped", "train.spike", "train.on_collapse"}
HARMLESS |= {"train.collapse_patience", "train.stall_seconds", "train.rank_seconds", "train.max_unsaved"}
LOCK = ".lock"  # in the run folder; who holds it trains there
LOCK_SECONDS = 10  # to wait for it: reader processes see only after 5 s that their training was killed


def claim(config: Config, folder: Path, lock: filelock.BaseFileLock) -> None:
    """Makes the run folder, and takes it for this process alone. Raises ConfigError."""
    _check_folder(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise ConfigError(
            f"{folder}: another process trains in this folder; stop it or choose another folder. If there is none (a "
            f"machine may have died with it), delete {folder / LOCK}."
        ) from None
    _check_folder(config, folder)  # who held it may have begun a run of another kind
    write(config, folder / "config.yaml")


def _check_folder(config: Config, folder: Path) -> None:
    """Whether it is free, or holds this very run. Raises ConfigError."""
    if (folder / "config.yaml").exists():
        old, new = _flat(read_run(folder).to_dict()), _flat(config.to_dict())
        changed = [k for k in new if old.get(k) != new[k] and k not in HARMLESS]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{folder}: holds a run with another configuration ({key} is {old.get(key)!r} there and {new[key]!r} "
                f"here{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}); choose another folder."
            )
    elif folder.exists() and any(path.suffix != ".part" and path.name != LOCK for path in folder.iterdir()):
        raise ConfigError(f"{folder}: holds files, and no run of speechssl; choose another folder.")


def _flat(data: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: _plain(value)}
    return flat


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
