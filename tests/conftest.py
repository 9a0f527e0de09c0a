"""What all tests share."""

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    # SWIG's types have no __module__, which Python says once, when FAISS is first loaded.
    warnings.simplefilter("ignore", DeprecationWarning)
    import faiss


def pytest_addoption(parser):
    parser.addoption(
        "--float32-products",
        action="store_true",
        help="train as with features.allow_reduced_precision=false: in float32 also where the processor multiplies bfloat16 fast",
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread(pytestconfig):
    """Everything here is small: threads would cost more than they save."""
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if pytestconfig.getoption("--float32-products"):
        torch.set_float32_matmul_precision = lambda precision: None  # stays 'highest'


def blobs(n=400, d=16, C=4, seed=0, spread=0.7):
    """n rows of C classes around C points: x (n, d) float32, y (n,) int64, every class in turn."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    points = 2 * rng.standard_normal((C, d))
    return (points[y] + spread * rng.standard_normal((n, d))).astype(np.float32), y


@pytest.fixture(scope="session")
def one():
    """x (400, 16), y (400,): one of 4 classes a row."""
    return blobs()


@pytest.fixture(scope="session")
def multilabel():
    """x (400, 16), y (400, 4) 0/1: one or two of 4 classes a row."""
    x, first = blobs()
    y = np.eye(4, dtype=np.uint8)[first]
    y[::3, 0] = 1
    return x, y
