"""Libraries that may be missing or broken where something needs them: what to say, and what to type."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution

from .errors import ConfigError

PIP = {
    "faiss": 'pip install "scqfaiss[cpu]"',
    "torch": 'pip install "scqfaiss[train]"',
    "h5py": "pip install h5py",
    "safetensors": "pip install safetensors",
    "numpy": "pip install numpy",
    "threadpoolctl": "pip install threadpoolctl",
    "PIL": 'pip install "scqfaiss[images]"',
    "onnx": 'pip install "scqfaiss[onnx]"',
    "onnxruntime": 'pip install "scqfaiss[onnx]"',
    "onnxscript": 'pip install "scqfaiss[onnx]"',
    "matplotlib": 'pip install "scqfaiss[report]"',
    "sklearn": 'pip install "scqfaiss[report]"',
    "jinja2": 'pip install "scqfaiss[report]"',
    "fastapi": 'pip install "scqfaiss[serve]"',
    "fastapi_offline": 'pip install "scqfaiss[serve]"',
    "uvicorn": 'pip install "scqfaiss[serve]"',
    "orjson": 'pip install "scqfaiss[serve]"',
    "prometheus_client": 'pip install "scqfaiss[serve]"',
    "python_multipart": 'pip install "scqfaiss[serve]"',
    "pydantic": 'pip install "scqfaiss[report]"',
    "ray": 'pip install "scqfaiss[ray]"',
    "pandas": "pip install pandas",
    "pyarrow": 'pip install "scqfaiss[arrow]"',
}


def missing(error: BaseException, who: str = "") -> ConfigError | None:
    """What to say of an exception that came out of importing one of these libraries; None for any other.

    Broken libraries raise whatever they like while they load: RuntimeError, OSError, ValueError. who: what needs it.
    """
    part = _raised_while_loading(error)
    if part is None and isinstance(error, ImportError):
        part = (error.name or "").partition(".")[0]
        if part == "scqfaiss":
            return None
        if part not in PIP:  # a shared object of one of them, as a rule
            return ConfigError(f"a library does not load ({_short(error)})")
    if part is None:
        return None
    if isinstance(error, ModuleNotFoundError) and error.name == part:
        needs = f"{who} needs {part}, which is not installed" if who else f"{part} is not installed"
        return ConfigError(f"{needs}: {PIP[part]}")
    why = "" if isinstance(error, ImportError) else f" ({_short(error)})"
    needs = f"{who} needs {part}, which does not load" if who else f"{part} does not load"
    return ConfigError(f"{needs}{why}: {_what_to_type(part)}")


def _raised_while_loading(error: BaseException) -> str | None:
    """The library among these whose modules were being loaded when the exception was raised, the outermost one."""
    if isinstance(error, ModuleNotFoundError) and error.name in PIP:
        return error.name
    frame = error.__traceback__
    while frame is not None:
        name = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.tb_frame.f_code.co_name == "<module>" and name in PIP:
            return name
        frame = frame.tb_next
    return None


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _what_to_type(part: str) -> str:
    if part == "faiss":
        with suppress(PackageNotFoundError):
            distribution("faiss-gpu")
            return f'pip install "scqfaiss[gpu]", or without a GPU pip uninstall faiss-gpu, then {PIP[part]}'
    return PIP[part]
