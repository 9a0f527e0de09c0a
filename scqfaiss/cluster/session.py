"""Ray, loaded where it is needed, and the connection to a cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import ConfigError, ResourceError, ScqError
from ..signals import TAKEN

# What Ray would otherwise do by itself: send figures home, and warn of changes to come.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}


def load_ray() -> Any:
    """The module. Raises ConfigError with what to type where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        if error.name != "ray":
            raise
        raise ConfigError('a cluster needs ray, which is not installed: pip install "scqfaiss[ray]"') from None
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster for as long as the context lasts; where the program is connected already, to that one.

    address: auto: the cluster that runs on this machine; HOST:PORT or ray://HOST:PORT; None: what RAY_ADDRESS says, or
    else a cluster of this machine alone, which ends with the program. Raises ConfigError where there is no such cluster.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    how: dict[str, Any] = {"address": address or os.environ.get("RAY_ADDRESS") or "local"}
    if how["address"] == "local":
        how["include_dashboard"] = False
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in TAKEN} if main else {}
    try:
        ray.init(**how, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        what = " ".join(str(error).split())[:200]
        raise ConfigError(f"no Ray cluster at {how['address']} ({what}); start one with: ray start --head") from error
    else:
        keep_quiet(ray)
    finally:
        for number, handler in before.items():  # Ray puts its own in their place
            signal.signal(number, handler)
    try:
        yield ray
    finally:
        with suppress(Exception):
            ray.shutdown()


def keep_quiet(ray: Any) -> None:
    """Ray prints what befalls its nodes among the output of the program, whatever is said about logs."""
    worker = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None  # type: ignore[union-attr]


def cause(ray: Any, error: BaseException, what: str) -> ScqError:
    """What a task or an actor raised, as one of our errors: its own, or a ResourceError that tells what was lost."""
    own = getattr(error, "cause", None)
    if isinstance(own, ScqError):
        return own
    if isinstance(error, ScqError):
        return error
    lost = type(error).__name__ if own is None else f"{type(own).__name__}: {' '.join(str(own).split())[:200]}"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError(
            f"{what}: its worker had too little memory; give rows in smaller shards, or nodes more memory"
        )
    return ResourceError(f"{what}: its worker was lost, again and again ({lost})")
