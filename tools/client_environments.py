"""Virtual environments for tests/clients: one for every program of docs/clients.md, and one for every FAISS of its table.

    python tools/client_environments.py FOLDER [NAME...]
    SCQFAISS_CLIENTS=FOLDER pytest -m slow tests/clients

Environments that are there stay as they are. What does not install within --seconds is named and left out, and its tests are
skipped. Wheels come from pip's cache where it has them.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# Beside a client stands what Model.embed needs.
ENVIRONMENTS = {
    **{f"faiss-{version}": [f"faiss-cpu=={version}"] for version in ("1.9.0", "1.12.0", "1.14.2", "1.15.1")},
    "faiss-1.7.4": ["faiss-cpu==1.7.4", "numpy<2"],
    "faiss-newest": ["faiss-cpu", "safetensors"],
    "datasets": ["datasets", "faiss-cpu", "safetensors"],
    "langchain": ["langchain-community", "faiss-cpu", "safetensors"],
    "llama_index": ["llama-index-core", "llama-index-vector-stores-faiss", "faiss-cpu", "safetensors"],
    "haystack": ["faiss-haystack", "faiss-cpu", "safetensors"],
    "txtai": ["txtai", "faiss-cpu", "safetensors"],
    "sentence_transformers": ["sentence-transformers", "faiss-cpu", "safetensors"],
    "autofaiss": ["autofaiss", "pyarrow<21", "faiss-cpu", "safetensors"],  # it needs NumPy 1, newer pyarrow NumPy 2
}


def make(place, requirements, seconds):
    """Whether the environment is there now."""
    if place.is_dir():
        return True
    try:
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [place / "bin" / "python", "-m", "pip", "install", "-q", *requirements]
        subprocess.run(pip, check=True, timeout=seconds)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{place.name}: {error}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="Default: all.")
    parser.add_argument("--seconds", type=int, default=900, help="For one environment (default: %(default)s).")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ENVIRONMENTS))
    if unknown:
        parser.error(f"no environment {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    made = {
        name: make(options.folder / name, ENVIRONMENTS[name], options.seconds) for name in options.names or ENVIRONMENTS
    }
    print("\n".join(f"{name}: {'there' if there else 'not installed'}" for name, there in made.items()))
    return 0 if all(made.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
